"""Prompts from the files that people keep them in: one reader, local and s3:// alike, that doubts what it is given.

    .parquet            the column, in any number of row groups
    .csv, .tsv          the column; the first row names the columns
    .jsonl              an object a line, or a text a line
    .json               a list of objects or of texts
    .txt                a prompt a line; empty lines are passed over

A folder stands for all such files in it, in the order of their names; `*`, `?` and `[]` make a pattern; a list stands
for its files one after the other.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import pyarrow
import pyarrow.parquet
from fsspec.core import url_to_fs

from dipp_ray.errors import UserError

Rows = Iterator[tuple[str, object]]  # (where, as a person finds it: 'row 3'; what stands there)


def read_texts(paths: str | Sequence[str], column: str, key: str) -> list[str]:
    """Every prompt of the files, in order. `key` is the setting that names them.

    Raises UserError, in one sentence with the file and the row, for files that are not there, not of their kind, or
    without the column, for a column that is there twice, and for rows that are empty or no text.
    """
    texts: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        for fs, file, shown in _files(path, key):
            before = len(texts)
            for where, value in _reader(file, shown, key)(_content(fs, file, shown), column, shown):
                if not isinstance(value, str):
                    kind = "nothing" if value is None else f"a {type(value).__name__}"
                    raise UserError(f"prompt file {shown}, {where}: {kind} stands where a text should: mend that row")
                if not value.strip():
                    raise UserError(f"prompt file {shown}, {where}: the prompt is empty: remove that row")
                texts.append(value)
            if len(texts) == before:
                raise UserError(f"prompt file {shown} holds no prompts: give {key} one that does")
    return texts


def _files(path: str, key: str) -> Iterator[tuple[object, str, str]]:
    """(file system, path on it, path as it was given) of each file that `path` stands for."""
    try:
        fs, root = url_to_fs(path)
        if fs.isdir(root):
            found = sorted(name for name in fs.ls(root, detail=False) if _suffix(name) in READERS)
            if not found:
                raise UserError(f"{path} holds no prompt files ({', '.join(READERS)}): set {key} to a folder that does")
        elif any(mark in root for mark in "*?["):
            found = sorted(fs.glob(root))
            if not found:
                raise UserError(f"no file is called {path}: correct the pattern in {key}")
        elif fs.exists(root):
            found = [root]
        else:
            raise UserError(f"prompt file {path} does not exist: set {key} to one that does")
    except UserError:
        raise
    except Exception as error:  # each store's library raises classes of its own
        raise UserError(f"prompt file {path}: {_remote(path, error)}") from None
    scheme = path.partition("://")[0] + "://" if "://" in path else ""
    for name in found:
        yield fs, name, path if found == [root] else f"{scheme}{name}"


def _remote(path: str, error: Exception) -> str:
    """What is wrong with a store, and what to set."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if "Credentials" in kind or "Credentials" in text:
        return "no credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if "Endpoint" in kind or "ConnectionError" in kind or "Could not connect" in text:
        return f"its store cannot be reached ({text}): set AWS_ENDPOINT_URL, or correct it"
    return f"{kind}: {text}: correct the path, or the rights to it"


def _content(fs, file: str, shown: str) -> bytes:
    try:
        return fs.cat_file(file)
    except Exception as error:
        raise UserError(f"prompt file {shown}: {_remote(shown, error)}") from None


def _suffix(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name.rsplit("/", 1)[-1] else ""


def _reader(file: str, shown: str, key: str) -> Callable[[bytes, str, str], Rows]:
    reader = READERS.get(_suffix(file))
    if reader is None:
        raise UserError(f"prompt file {shown} is none of the known kinds ({', '.join(READERS)}): convert it for {key}")
    return reader


def _parquet(content: bytes, column: str, shown: str) -> Rows:
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"prompt file {shown} is not parquet ({error})") from None
    _require_column(table.schema_arrow.names, column, shown)
    number = 0
    for batch in table.iter_batches(columns=[column]):
        for value in batch.column(0).to_pylist():
            number += 1
            yield f"row {number}", value


def _table(content: bytes, column: str, shown: str, delimiter: str, quoting: Literal[0, 3]) -> Rows:
    lines = csv.reader(io.StringIO(_text(content, shown), newline=""), delimiter=delimiter, quoting=quoting)
    header = next(lines, [])
    _require_column(header, column, shown)
    position = header.index(column)
    for row in lines:
        if row:
            yield f"line {lines.line_num}", row[position] if position < len(row) else None


def _csv(content: bytes, column: str, shown: str) -> Rows:
    return _table(content, column, shown, ",", csv.QUOTE_MINIMAL)


def _tsv(content: bytes, column: str, shown: str) -> Rows:
    # Published lists (PartiPrompts) have quotes that belong to the prompt.
    return _table(content, column, shown, "\t", csv.QUOTE_NONE)


def _jsonl(content: bytes, column: str, shown: str) -> Rows:
    for number, line in enumerate(_text(content, shown).splitlines(), start=1):
        if line.strip():
            where = f"line {number}"
            yield where, _of_object(_parsed(line, f"{shown}, {where}"), column, f"{shown}, {where}")


def _json(content: bytes, column: str, shown: str) -> Rows:
    data = _parsed(_text(content, shown), shown)
    if not isinstance(data, list):
        raise UserError(f"prompt file {shown} holds no list: expected one of prompts, or of objects with '{column}'")
    for number, value in enumerate(data, start=1):
        yield f"entry {number}", _of_object(value, column, f"{shown}, entry {number}")


def _lines(content: bytes, column: str, shown: str) -> Rows:
    for number, line in enumerate(_text(content, shown).splitlines(), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


READERS: dict[str, Callable[[bytes, str, str], Rows]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".txt": _lines,
}


def _text(content: bytes, shown: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"prompt file {shown}, line {line}: its bytes are no UTF-8: save it as that") from None


def _parsed(text: str, where: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise UserError(f"prompt file {where}: an object names something twice: keep one")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise UserError(f"prompt file {where}: it is not JSON ({error})") from None


def _of_object(value: object, column: str, where: str) -> object:
    """The text itself, or the field of an object."""
    if not isinstance(value, dict):
        return value
    if column not in value:
        raise UserError(
            f"prompt file {where} has no '{column}' (it has: {', '.join(value) or 'none'}): set data.column"
        )
    return value[column]


def _require_column(names: Sequence[str], column: str, shown: str) -> None:
    if names.count(column) > 1:
        raise UserError(f"prompt file {shown} has {names.count(column)} columns '{column}': rename the others")
    if column not in names:
        have = ", ".join(names) or "none"
        raise UserError(f"prompt file {shown} has no column '{column}' (it has: {have}): set data.column")
