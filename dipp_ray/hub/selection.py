"""Which files of a repository are fetched: what a folder's loader would read, by names alone. Never code."""

from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath

from dipp_ray.storage.weight_names import STEMS, chosen_weights, is_weights

INDEX = "model_index.json"
# Beside weights: configurations, tokenizers, templates, shards' indices. No Python file is among them.
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")
# A LoRA's in a folder of PEFT or diffusers, small as it is.
ADAPTERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
LOOSE = (".safetensors", ".pt", ".pth", ".bin")  # weights under names of their author's

# From the names of a folder's files, relative to it, and its model_index.json where it has one, those that are wanted.
Choice = Callable[[Collection[str], Mapping | None], list[str]]


def whole(names: Collection[str], index: Mapping | None) -> list[str]:
    """Every component of a pipeline with its weights; of another folder the weights that a loader knows by name."""
    return _selected(names, index, lambda part: True)


def configurations(names: Collection[str], index: Mapping | None) -> list[str]:
    """All but weights; a LoRA's are taken for small files."""
    return _selected(names, index, lambda part: False)


def weights_of(*parts: str) -> Choice:
    """All but weights, and those of these components; of a folder that is no pipeline its own weights too."""
    return lambda names, index: _selected(names, index, lambda part: part in (*parts, ""))


def weights_but_of(*parts: str) -> Choice:
    """All but the weights of these components."""
    return lambda names, index: _selected(names, index, lambda part: part not in parts)


def of_reward(file: str | None) -> Choice:
    """What a reward model reads: a folder's weights, or `file`, or, of a class that names none, whatever weights lie
    there without a name that loaders know."""

    def choice(names: Collection[str], index: Mapping | None) -> list[str]:
        wanted = whole(names, index)
        known = {PurePosixPath(name).parent for name in wanted if is_weights(name)}
        loose = [name for name in names if name.endswith(LOOSE) and PurePosixPath(name).parent not in known]
        return wanted + ([name for name in names if name == file] if file else loose)

    return choice


def _selected(names: Collection[str], index: Mapping | None, with_weights: Callable[[str], bool]) -> list[str]:
    """A folder's own small files and those of the folders directly within, of a pipeline only of those it names."""
    folders: dict[str, list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition("/")
        if "/" not in parent:
            folders.setdefault(parent, []).append(leaf)
    if index is not None:
        folders = {part: leaves for part, leaves in folders.items() if part == "" or isinstance(index.get(part), list)}
    wanted = []
    for part, leaves in folders.items():
        kept = [leaf for leaf in leaves if leaf in ADAPTERS or (leaf.endswith(SMALL) and not is_weights(leaf))]
        if with_weights(part) and not (part == "" and index is not None):
            kept += _weights(leaves)
        wanted += [f"{part}/{leaf}" if part else leaf for leaf in kept]
    return sorted(wanted)


def _weights(leaves: Collection[str]) -> list[str]:
    """The one file of weights in a folder that its loader takes, or an index with the shards that bear its name."""
    for library in STEMS:
        chosen = chosen_weights(leaves, library)
        if chosen is None:
            continue
        name, safe, variant = chosen
        if ".index." not in name:
            return [name]
        stem, suffix = STEMS[library][0 if safe else 1], "safetensors" if safe else "bin"
        return [name, *(leaf for leaf in leaves if _is_shard(leaf, stem, suffix, variant))]
    return []


def _is_shard(leaf: str, stem: str, suffix: str, variant: str | None) -> bool:
    """Whether a name is a shard's, such as model-00001-of-00003.safetensors; a variant stands before or behind that."""
    if not (leaf.startswith(stem) and leaf.endswith(f".{suffix}") and "-of-" in leaf):
        return False
    between = leaf[len(stem) : -len(suffix) - 1]  # '-00001-of-00003', with '.fp16' on either side of it
    return ("." in between) == (variant is not None) and (variant is None or f".{variant}" in between)
