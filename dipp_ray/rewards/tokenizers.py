"""Tokenizers of reward models, from their files in a local folder."""

from pathlib import Path
from typing import Any

from dipp_ray.errors import UserError


def load_tokenizer(kind: Any, folder: str | Path, origin: str):
    """A tokenizer of class `kind` from its files in a local folder.

    Raises UserError where they are missing (transformers would give a tokenizer of no words) or do not load.
    """
    require_tokenizer(kind, folder, origin)
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The tokenizers library raises bare Exceptions.
        raise UserError(f"the tokenizer in {folder} does not load: {' '.join(str(error).split())}") from error


def require_tokenizer(kind: Any, folder: str | Path, origin: str) -> None:
    """Raise UserError where the folder holds no tokenizer's files."""
    own = list(kind.vocab_files_names.values())
    vocabulary = [name for name in own if name != "tokenizer.json"]
    if (Path(folder) / "tokenizer.json").is_file() or all((Path(folder) / name).is_file() for name in vocabulary):
        return
    raise UserError(
        f"tokenizer.json (or {' and '.join(vocabulary)}) is missing in {folder}: put there the tokenizer of {origin}"
    )
