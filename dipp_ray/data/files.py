"""The files that a setting names, local or in a store alike: found, and read whole or by range."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow
from fsspec.implementations.local import LocalFileSystem

from dipp_ray.errors import UserError
from dipp_ray.storage.files import is_there
from dipp_ray.storage.remote import file_system, in_one_sentence

BESIDE = ("_encoded.json", "_encoding.json", "_null.parquet")
LARGEST_WHOLE = 2**30  # bytes of a file that is read as a whole


def files_of(path: str, key: str, kinds: Collection[str], what: str) -> Iterator[tuple[Any, str, str]]:
    """(file system, path on it, path as it was given) of each file that `path` stands for: a file, those of a folder,
    or those that a pattern matches.

    kinds: the suffixes that a folder is looked through for. key: the setting, and what: what it is to hold, both for a
    person. Raises UserError.
    """
    try:
        fs, root = file_system(path)
        if fs.isdir(root):
            found = [
                name for name in _files(fs.ls(root, detail=True)) if suffix_of(name) in kinds and not _beside(name)
            ]
            if not found:
                raise UserError(f"{path} holds no {what} ({', '.join(kinds)}): set {key} to a folder that does")
        elif is_there(fs, root):
            found = [root]
        elif any(mark in root for mark in "*?["):
            found = _files(fs.glob(root, detail=True).values())
            if not found:
                raise UserError(f"no file is called {path}: correct the pattern in {key}")
        else:
            raise UserError(f"{what} {path} does not exist: set {key} to one that does")
    except UserError:
        raise
    except Exception as error:  # each store's library raises classes of its own
        raise UserError(f"{what} {in_one_sentence(error, path)}") from None
    scheme = path.partition("://")[0] + "://" if "://" in path else ""
    for name in found:
        yield fs, name, path if found == [root] else f"{scheme}{name}"


def _files(found: Iterable[dict[str, Any]]) -> list[str]:
    """The names of files, sorted, without folders and what is hidden, such as macOS's `._a.parquet`."""
    names = (entry["name"] for entry in found if entry["type"] == "file")
    return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("."))


def _beside(name: str) -> bool:
    """Whether it is a file that lies beside the prompts in a folder of embeddings."""
    return name.rsplit("/", 1)[-1] in BESIDE


def whole_content(fs: Any, file: str, shown: str) -> bytes:
    """The bytes of a file. Raises UserError for one that is too large for that, or cannot be read."""
    try:
        size = fs.size(file)
        if size is not None and size > LARGEST_WHOLE:
            raise UserError(
                f"prompt file {shown} has {size / 2**30:.1f} GiB, but is of a kind that is read whole, up to "
                f"{LARGEST_WHOLE / 2**30:g} GiB: convert it to parquet, which is read by range"
            )
        return fs.cat_file(file)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"prompt file {in_one_sentence(error, shown)}") from None


def by_range(fs: Any, file: str) -> Any:
    """A file for pyarrow, of which only the ranges that are asked for are read: no block of a store's is read ahead."""
    if isinstance(fs, LocalFileSystem):
        return pyarrow.OSFile(file)
    return fs.open(file, "rb", cache_type="none")


def suffix_of(name: str) -> str:
    """'.parquet'; '' where the name has none."""
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name.rsplit("/", 1)[-1] else ""
