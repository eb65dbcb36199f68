"""What lies in a store, and where this machine keeps its copy of it."""

import hashlib
from pathlib import Path

from dipp_ray.storage.remembered import cache_folder


def is_remote(place: str) -> bool:
    """Whether a path or URL is of a store and not of this machine's disk."""
    return "://" in place and not place.startswith("file://")


def copy_of(url: str) -> Path:
    """Where this machine's copy of a file or folder of a store lies."""
    url = url.rstrip("/")
    return cache_folder() / "copies" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[-1]
