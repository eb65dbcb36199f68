"""Which text encoders made embeddings, by content: wherever the folder lies, and without loading a weight."""

import hashlib
from pathlib import Path
from typing import Any

from dipp_ray.models.components import models_of
from dipp_ray.models.families import Family
from dipp_ray.models.weights import find_weights
from dipp_ray.storage.weight_names import is_weights

SAMPLES, SAMPLE = 64, 2**16  # of a large file so many pieces of so many bytes, evenly spread, stand for all of it


def text_identity(frame: Family, dtype: str) -> dict[str, Any]:
    """What decides the embeddings of a text, as JSON: family, length, arithmetic, and a hash of each part.

    A part's hash covers its settings and vocabularies whole, and of its weights the length, the head and 64 pieces.
    """
    return {
        "family": type(frame).__name__,
        "pipeline": frame.pipeline_class,
        "longest": frame.longest,
        "dtype": dtype,
        "settings": {key: value for key, value in sorted(frame.index.items()) if _matters(key, value)},
        "parts": {name: _part(frame, name) for name in text_parts(frame)},
    }


def text_parts(frame: Family) -> list[str]:
    """The names of tokenizers and text encoders."""
    others = {frame.network_part, "vae", "scheduler", *frame.dispensable, *frame.absent}
    return sorted(name for name, entry in frame.index.items() if isinstance(entry, list) and name not in others)


def difference_of(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What differs between two identities, as half a sentence after 'were made'; None where nothing does."""
    for name in sorted({*before["parts"], *now["parts"]}):
        if before["parts"].get(name) != now["parts"].get(name):
            return f"with another {name}"
    said = {
        "longest": "of prompts of {} tokens, not {}",
        "dtype": "by encoders in {}, not {} (roles.text.dtype)",
        "family": "for the family {}, not {}",
        "pipeline": "by a {}, not a {}",
        "settings": "under the pipeline's settings {}, not {}",
    }
    for key, words in said.items():
        if before.get(key) != now.get(key):
            return words.format(before.get(key), now.get(key))
    return None


def _matters(key: str, value: Any) -> bool:
    """Whether an entry of model_index.json is a setting, such as force_zeros_for_empty_prompt."""
    return not key.startswith("_") and not isinstance(value, list) and key != "requires_safety_checker"


def _part(frame: Family, name: str) -> str:
    folder = frame.folder / name
    models = models_of(frame)
    weights = find_weights(folder, models[name][0]).paths if name in models else ()
    others = [path for path in folder.iterdir() if path.is_file() and not _aside(path)]
    sha = hashlib.sha256()
    for path in sorted({*weights, *others}):
        sha.update(f"{path.name} {path.stat().st_size}\n".encode())
        _sample(path, sha)
    return sha.hexdigest()


def _aside(path: Path) -> bool:
    """Whether a file of a part is not read: hidden, or weights of another kind, which are counted by themselves."""
    return path.name.startswith(".") or is_weights(path.name) or path.suffix == ".md"


def _sample(path: Path, sha: Any) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= 2 * SAMPLES * SAMPLE:
            sha.update(file.read())
            return
        for i in range(SAMPLES):
            file.seek(i * (size - SAMPLE) // (SAMPLES - 1))
            sha.update(file.read(SAMPLE))
