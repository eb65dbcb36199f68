"""Where this machine keeps copies of what lies elsewhere, and what it builds once."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """$DIPP_RAY_CACHE, or dipp-ray in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DIPP_RAY_CACHE") or f"{base}/dipp-ray").expanduser()


def is_remote(place: str) -> bool:
    """Whether a path or URL is of a store and not of this machine's disk."""
    return "://" in place and not place.startswith("file://")


def copy_of(url: str) -> Path:
    """Where this machine's copy of a file or folder of a store lies."""
    url = url.rstrip("/")
    return cache_folder() / "copies" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[-1]
