"""What files of weights are called, and which of them a loader takes: by names alone, of a folder or repository."""

from collections.abc import Collection

# What a file of weights is called, by the library that wrote it: safetensors, and torch's own.
STEMS = {
    "diffusers": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "transformers": ("model", "pytorch_model"),
}
# What a file of weights may end in, ours or another program's.
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf")


def chosen_weights(names: Collection[str], library: str) -> tuple[str, bool, str | None] | None:
    """(name, safe, variant) of one folder's weights, given the names of its files: safetensors before .bin, whole ones
    before a variant's such as fp16. The name is that of the file, or of the index of its shards. None: there are none.
    """
    for safe, stem in zip((True, False), STEMS[library], strict=True):
        suffix = "safetensors" if safe else "bin"
        for variant in (None, *_variants(names, stem, suffix)):
            for name in (_whole(stem, suffix, variant), _index(stem, suffix, variant)):
                if name in names:
                    return name, safe, variant
    return None


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, or is the index of some."""
    return name.endswith(SUFFIXES) or ".index." in name


def _whole(stem: str, suffix: str, variant: str | None) -> str:
    return f"{stem}.{variant}.{suffix}" if variant else f"{stem}.{suffix}"


def _index(stem: str, suffix: str, variant: str | None) -> str:
    return f"{stem}.{suffix}.index.{variant}.json" if variant else f"{stem}.{suffix}.index.json"


def _variants(names: Collection[str], stem: str, suffix: str) -> list[str]:
    """Names of the variants, as in model.fp16.safetensors or model.safetensors.index.fp16.json."""
    found = {
        name[len(stem) + 1 : -len(suffix) - 1]
        for name in names
        if name.startswith(f"{stem}.") and name.endswith(f".{suffix}")
    }
    start = f"{stem}.{suffix}.index."
    found |= {name.removeprefix(start).removesuffix(".json") for name in names if name.startswith(start)}
    return sorted(name for name in found if name and name != "json" and "-of-" not in name and "." not in name)
