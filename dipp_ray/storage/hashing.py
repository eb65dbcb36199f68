"""SHA-256, in hex, of what is compared between runs: JSON values and files."""

import hashlib
import json
from pathlib import Path


def hash_of_json(value) -> str:
    """The hash of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_of_file(path: str | Path) -> str:
    """The hash of a local file, without holding it in memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
