"""Preference pairs as they lie in files: parquet, JSONL or lists in JSON, local or on an object store; one file, those
of a folder, or those that a pattern matches, in the order of their names.

Each row has a prompt, two images and a label; or the file is of one of the forms in `published.py`. An image is a
file's bytes, the {bytes, path} that the `datasets` library writes, base64 (JSON), or a path beside the pairs' file; of
a published form, in one of the folders that it says.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from os import sched_getaffinity
from posixpath import isabs, normpath
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dipp_ray.data.files import files_of
from dipp_ray.errors import UserError
from dipp_ray.preferences.config import ColumnSettings
from dipp_ray.preferences.images import decode, from_base64
from dipp_ray.preferences.published import BESIDE, ROLES, Form, Places, form_of
from dipp_ray.storage.remote import file_system, in_one_sentence, of_storage
from dipp_ray.strict_json import once

KINDS = (".parquet", ".jsonl", ".json")  # of the files that a folder is looked through for
WHICH = ("first", "second")
LONGEST_PATH = 1024  # characters: what is longer was meant to be a file's bytes
ROWS = 64  # read, fetched and decoded together
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
WORDS = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Labels:
    """What is known of N pairs before any image is looked at. label [N]: fp32 in [0, 1]; size: the files' bytes.

    files: those that `path` stood for when they were read."""

    path: str
    files: tuple[str, ...]
    prompts: tuple[str, ...]
    label: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.prompts)


def read_labels(path: str, columns: ColumnSettings) -> Labels:
    """Prompts and labels of all rows. Raises UserError for what is missing, empty or no probability."""
    prompts: list[str] = []
    labels: list[float] = []
    size = 0
    files, torn = _each(path), _Torn()
    for file in files:
        before = len(prompts)
        fs, inside = _file_system(file)
        with _opened(file, (columns.prompt, columns.label), columns, torn) as (_, rows):
            for where, prompt, label in rows:
                if not isinstance(prompt, str) or not prompt.strip():
                    raise UserError(f"preference pairs {file}, {where}: the prompt is empty or no text: remove the row")
                prompts.append(prompt)
                labels.append(_probability(label, file, where))
        if len(prompts) == before:
            raise UserError(f"preference pairs {file} is empty: give at least one pair")
        with _said(file):
            size += fs.size(inside)
    return Labels(path, files, tuple(prompts), np.array(labels, np.float32), size)


def read_images(
    labels: Labels, columns: ColumnSettings, size: int, wanted: Callable[[int], bool]
) -> Iterator[np.ndarray]:
    """The images of the rows whose number is `wanted`, in order: uint8 [n, 2, 3, size, size], n at most ROWS.

    Raises UserError that names the row of an image that is not there or does not decode.
    """
    names = (columns.image_a, columns.image_b)
    number, torn = count(), _Torn()
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        for file in labels.files:
            with _opened(file, names, columns, torn) as (places, rows):
                files = _Images(file, places)
                chosen = (row for row in rows if wanted(next(number)))
                while chunk := list(islice(chosen, ROWS)):
                    yield _decoded(chunk, file, files, size, pool)


def _each(path: str) -> tuple[str, ...]:
    """The files that `path` stands for. Beside parquet, JSON in a folder is not of pairs: libraries put notes there."""
    found = [shown for _, _, shown in files_of(path, "the path", KINDS, "preference pairs")]
    parquet = [name for name in found if name.endswith(KINDS[0])]
    return tuple(parquet if parquet and found != [path] else found)


class _Torn:
    """Watches that what makes pairs together (a prompt's images, of forms with a row an image) lies in one file."""

    def __init__(self) -> None:
        self.where: dict[Any, str] = {}

    def whole(self, form: Form, rows: Iterable[tuple[str, dict]], path: str) -> Iterator[tuple[str, dict]]:
        for where, row in rows:
            if form.together and (other := self.where.setdefault(row[form.together], path)) != path:
                raise UserError(
                    f"{where}: {form.together} {row[form.together]} is in {other} too: put its rows into one file"
                )
            yield where, row


def _decoded(chunk: list[tuple], path: str, files: "_Images", size: int, pool: ThreadPoolExecutor) -> np.ndarray:
    images = [
        (f"{where}, {which} image", value) for where, *pair in chunk for which, value in zip(WHICH, pair, strict=True)
    ]
    payloads = [_payload(value, path, where) for where, value in images]
    named = {index: payload for index, payload in enumerate(payloads) if isinstance(payload, str)}
    for index, found in zip(named, files.read(list(named.values())), strict=True):
        where = images[index][0]
        if isinstance(found, MISSING):
            raise UserError(
                f"preference pairs {path}, {where}: there is no {named[index]} {files.places.said} "
                f"({type(found).__name__}), nor is that an image in base64: give paths relative to it"
            )
        if isinstance(found, Exception):
            image = f"{path.rpartition('/')[0]}/{named[index]}"
            raise UserError(f"preference pairs {path}, {where}: {in_one_sentence(found, image)}")
        payloads[index] = found
    wheres = [where for where, _ in images]
    pixels = list(pool.map(partial(_decode, size=size, path=path), payloads, wheres))
    return np.stack(pixels).reshape(-1, 2, 3, size, size)


class _Images:
    """The files of images that the pairs in `path` name."""

    def __init__(self, path: str, places: Places):
        self.path, self.places = path, places
        self.fs, inside = _file_system(path)
        self.folders = places.of(inside)

    def read(self, names: list[str]) -> list[bytes | Exception]:
        """The content of each, or what was raised in the first folder that was looked at."""
        found: dict[str, bytes | Exception] = {}
        missing = list(dict.fromkeys(names))
        for folder in list(self.folders):
            if not missing:
                break
            paths = [f"{folder}/{name}" for name in missing]
            with _said(self.path):
                # Not fs.cat: it takes a path's [ or * for a pattern.
                answers = self.fs.cat_ranges(paths, [None] * len(paths), [None] * len(paths), on_error="return")
            for name, answer in zip(missing, answers, strict=True):
                if not isinstance(answer, MISSING):
                    found[name] = answer
                found.setdefault(name, answer)
            left = [name for name in missing if isinstance(found[name], MISSING)]
            if len(left) < len(missing):  # those that follow lie there too: it is looked at first
                self.folders = [folder, *(other for other in self.folders if other != folder)]
            missing = left
        return [found[name] for name in names]


def _decode(data: bytes, where: str, size: int, path: str) -> np.ndarray:
    try:
        return decode(data, size)
    except UserError as error:
        raise UserError(f"preference pairs {path}, {where}: {error}") from None


def _payload(value, path: str, where: str) -> bytes | str:
    """The bytes of an image, or the path where they lie."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, str):
            value = from_base64(value) or value
    except UserError as error:
        raise UserError(f"preference pairs {path}, {where}: {error}") from None
    if isinstance(value, str) and len(value) > LONGEST_PATH:
        raise UserError(
            f"preference pairs {path}, {where}: {value[:20]}... is no PNG, JPEG or WEBP file in base64, and too "
            "long for a path"
        )
    if isinstance(value, str) and (isabs(value) or "://" in value or normpath(value).startswith("..")):
        raise UserError(f"preference pairs {path}, {where}: {value[:80]} is not below the file's folder: move it there")
    if not isinstance(value, (bytes, str)) or not value:
        raise UserError(
            f"preference pairs {path}, {where}: it is neither bytes, base64 nor a path ({type(value).__name__})"
        )
    return value


def _probability(label, path: str, where: str) -> float:
    label = WORDS.get(label, label) if isinstance(label, str) else label
    if isinstance(label, (int, float)) and 0 <= label <= 1:  # a NaN is not
        return float(label)
    raise UserError(
        f"preference pairs {path}, {where}: label {label!r} is no probability: give a number in [0, 1], or a, b, tie"
    )


@contextmanager
def _opened(
    path: str, names: tuple[str, ...], columns: ColumnSettings, torn: _Torn
) -> Iterator[tuple[Places, Iterator[tuple]]]:
    """(where the images lie that it names, (where, the values of `names`) of each pair)."""
    fs, inside = _file_system(path)
    with _said(path), fs.open(inside, "rb") as file:
        is_parquet = file.read(4) == b"PAR1"
        file.seek(0)
        form, rows = (_parquet_rows if is_parquet else _json_rows)(file, path, names, columns, torn)
        yield form.places if form else BESIDE, rows


def _json_rows(
    file, path: str, names: tuple[str, ...], columns: ColumnSettings, torn: _Torn
) -> tuple[Form | None, Iterator[tuple]]:
    objects = _objects(file, path)
    first = next(objects, None)
    every = chain([first] if first else [], objects)
    form = _published(first[1], columns) if first else None
    if form is not None:
        marked = ((where, _marked(row, form, path, where)) for where, row in every)
        return form, _pairs(form, marked, names, columns, path, torn)

    def plain() -> Iterator[tuple]:
        for where, row in every:
            _require(row, f"{path}, {where}", columns)
            yield where, *(row[name] for name in names)

    return None, plain()


def _published(present: Iterable[str], columns: ColumnSettings) -> Form | None:
    """The published form of a file that has not the columns which were asked for."""
    return None if set(columns.names) <= set(present) else form_of(present)


def _marked(row: dict, form: Form, path: str, where: str) -> dict:
    if missing := sorted(form.marks - row.keys()):
        raise UserError(f"preference pairs {path}, {where}: no {', '.join(missing)}, as in {form.name}: remove it")
    return row


def _pairs(
    form: Form,
    rows: Iterable[tuple[str, dict]],
    names: tuple[str, ...],
    columns: ColumnSettings,
    path: str,
    torn: _Torn,
) -> Iterator[tuple]:
    """(where, the values of `names`) of each pair."""
    roles = [ROLES[columns.names.index(name)] for name in names]
    try:
        for where, pair in form.pairs(torn.whole(form, rows, path)):
            yield where, *(pair[role] for role in roles)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith("preference pairs") else f"preference pairs {path}, {said}") from None


def _parquet_rows(
    file, path: str, names: tuple[str, ...], columns: ColumnSettings, torn: _Torn
) -> tuple[Form | None, Iterator[tuple]]:
    parquet = pyarrow.parquet.ParquetFile(file)
    present = parquet.schema_arrow.names
    if twice := sorted(name for name, times in Counter(present).items() if times > 1):
        raise UserError(f"preference pairs {path}: column {twice[0]} is there twice: rename one")
    form = _published(present, columns)
    if form is None:
        _require(present, path, columns)
        return None, ((where, *(row[name] for name in names)) for where, row in _numbered(parquet, list(names)))
    roles = [ROLES[columns.names.index(name)] for name in names]
    return form, _pairs(form, _numbered(parquet, form.columns(roles, present)), names, columns, path, torn)


def _numbered(parquet: pyarrow.parquet.ParquetFile, names: list[str]) -> Iterator[tuple[str, dict]]:
    number = 0
    for batch in parquet.iter_batches(batch_size=ROWS, columns=names):
        for row in batch.to_pylist():
            yield f"row {number}", row
            number += 1


def _objects(file, path: str) -> Iterator[tuple[str, dict]]:
    """(where, object) of a list in JSON, or of JSONL."""
    found: Iterable[tuple[str, Any]]
    begins = file.read(1)
    file.seek(0)
    if begins == b"[":
        try:
            rows = json.load(file, object_pairs_hook=once)
        except UserError as error:
            raise UserError(f"preference pairs {path}: {error}") from None
        except ValueError as error:
            raise UserError(f"preference pairs {path}: it is not JSON ({error})") from None
        found = ((f"entry {number}", row) for number, row in enumerate(rows, start=1))
    else:
        found = _lines(file, path)
    for where, row in found:
        if not isinstance(row, dict):
            raise UserError(f"preference pairs {path}, {where}: no object: write {{...}} with its keys")
        yield where, row


def _lines(file, path: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line, object_pairs_hook=once)
        except UserError as error:
            raise UserError(f"preference pairs {path}, line {number}: {error}") from None
        except ValueError:
            raise UserError(
                f"preference pairs {path}, line {number}: neither JSON nor parquet: write one object a line"
            ) from None


def _require(present, source: str, columns: ColumnSettings) -> None:
    missing = [name for name in columns.names if name not in present]
    if missing:
        raise UserError(
            f"preference pairs {source}: no column {', '.join(missing)} (it has: {', '.join(present) or 'none'}): "
            "rename it, or name yours in columns"
        )


def _file_system(path: str):
    with _said(path):
        return file_system(str(path))


@contextmanager
def _said(path: str) -> Iterator[None]:
    """What a file system or pyarrow raises, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError, pyarrow.ArrowException) as error:
        raise UserError(f"preference pairs {path} cannot be read: {_text(error)}: write it anew") from None
    except Exception as error:
        if not of_storage(error):
            raise
        if type(error) is OSError and error.errno is None:  # pyarrow's, of what stands in the file
            raise UserError(f"preference pairs {path} cannot be read: {_text(error)}: write it anew") from None
        raise UserError(f"preference pairs {in_one_sentence(error, path)}") from None


def _text(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
