"""Prompts from the files that people keep them in: one reader, local and s3:// alike, that doubts what it is given.

    .parquet            the column, in any number of row groups, which are read by range
    .csv, .tsv          the column; the first row names the columns
    .jsonl              an object a line, or a text a line
    .json               a list of objects or of texts, or COCO's captions
    .txt                a prompt a line; empty lines are passed over

PartiPrompts and DrawBench are read as they are published, though their columns are called otherwise. A folder stands
for all such files in it, in the order of their names; `*`, `?` and `[]` make a pattern; a list stands for its files one
after the other. Of parquet a bounded part is in memory; the others are read whole.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import pyarrow
import pyarrow.compute
from pyarrow import types

from dipp_ray.data.files import files_of, suffix_of, whole_content
from dipp_ray.data.published_prompts import published_column, published_list
from dipp_ray.data.row_groups import Groups, ParquetRows
from dipp_ray.errors import UserError
from dipp_ray.strict_json import once

Rows = Iterator[tuple[str, object]]  # (where, as a person finds it: 'row 3'; what stands there)
COLUMN = "prompt"  # of the groups, whatever the files call it


def open_texts(paths: str | Sequence[str], column: str, key: str) -> Groups:
    """Every prompt of the files, in order, as groups of one column of texts. `key` is the setting that names them.

    Raises UserError, in one sentence with the file and the row, for files that are not there, not of their kind, or
    without the column, for a column that is there twice, and for rows that are empty or no text: all of them are
    looked at here once, a group at a time.
    """
    counts: list[int] = []
    read: list[Callable[[], pyarrow.Table]] = []
    for path in [paths] if isinstance(paths, str) else paths:
        for fs, file, shown in files_of(path, key, READERS, "prompt file"):
            before = sum(counts)
            if suffix_of(file) == PARQUET:
                rows = _parquet(fs, file, shown, column)
                counts += rows.counts
                read += [partial(rows.read, group) for group in range(len(rows.counts))]
            else:
                found = _reader(file, shown, key)(whole_content(fs, file, shown), column, shown)
                texts = [_text_of(value, shown, where) for where, value in found]
                counts.append(len(texts))
                read.append(partial(_same, texts_table(texts)))
            if sum(counts) == before:
                raise UserError(f"prompt file {shown} holds no prompts: give {key} one that does")
    return Groups(counts, lambda group: read[group]())


def texts_table(texts: Sequence[str]) -> pyarrow.Table:
    """A group of texts that are in memory."""
    return pyarrow.table({COLUMN: pyarrow.array(texts, pyarrow.string())})


def _same(table: pyarrow.Table) -> pyarrow.Table:
    return table


def _text_of(value: object, shown: str, where: str) -> str:
    if not isinstance(value, str):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"prompt file {shown}, {where}: {kind} stands where a text should: mend that row")
    if not value.strip():
        raise UserError(f"prompt file {shown}, {where}: the prompt is empty: remove that row")
    return value


def _parquet(fs: Any, file: str, shown: str, column: str) -> ParquetRows:
    """A parquet file, of whose column every row has been looked at."""
    rows = ParquetRows(fs, file, shown, [column])
    if (published := published_column(rows.schema.names, column)) != column:
        rows, column = ParquetRows(fs, file, shown, [published]), published
    _require_column(rows.schema.names, column, shown)
    number = 0
    for table in Groups(rows.counts, rows.read).each():
        found = _first_fault(table.column(0), shown, number)
        if found is not None:
            _text_of(table.column(0)[found].as_py(), shown, f"row {number + found + 1}")
        number += len(table)
    return rows


def _first_fault(column: pyarrow.ChunkedArray, shown: str, before: int) -> int | None:
    """The first row that is no text, or an empty one. Raises UserError for one whose bytes are no UTF-8, which parquet
    does not look at; before: rows in front of the column's first."""
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (types.is_string(column.type) or types.is_large_string(column.type)):
        return 0 if len(column) else None
    try:
        column.validate(full=True)
    except pyarrow.ArrowInvalid:
        wrong = next(
            row for row, value in enumerate(column.cast(pyarrow.large_binary())) if not _is_utf8(value.as_py())
        )
        where = f"row {before + wrong + 1}"
        raise UserError(f"prompt file {shown}, {where}: its bytes are no UTF-8: write it as that") from None
    blank = pyarrow.compute.equal(pyarrow.compute.utf8_trim_whitespace(column), "")
    found = pyarrow.compute.index(pyarrow.compute.fill_null(blank, True), True).as_py()
    return None if found < 0 else found


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _table(content: bytes, column: str, shown: str, delimiter: str, quoting: Literal[0, 3]) -> Rows:
    text = _text(content, shown)
    # Strict: a quote that is never closed would make one prompt of all that follows.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    begun = 1
    try:
        header = next(lines, [])
        column = published_column(header, column)
        _require_column(header, column, shown)
        position = header.index(column)
        begun = lines.line_num + 1
        for row in lines:
            if row:
                yield f"line {lines.line_num}", row[position] if position < len(row) else None
            begun = lines.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"prompt file {shown}: the row that begins on line {begun} cannot be read ({error}): write a text with "
            'quotes or commas in it as "...", and each quote in it twice'
        ) from None


def _csv(content: bytes, column: str, shown: str) -> Rows:
    return _table(content, column, shown, ",", csv.QUOTE_MINIMAL)


def _tsv(content: bytes, column: str, shown: str) -> Rows:
    # Published lists (PartiPrompts) have quotes that belong to the prompt.
    return _table(content, column, shown, "\t", csv.QUOTE_NONE)


def _jsonl(content: bytes, column: str, shown: str) -> Rows:
    for number, line in enumerate(_lines_of(content, shown), start=1):
        if line.strip():
            where = f"line {number}"
            yield where, _of_object(_parsed(line, f"{shown}, {where}"), column, f"{shown}, {where}")


def _json(content: bytes, column: str, shown: str) -> Rows:
    data, column = published_list(_parsed(_text(content, shown), shown), column)
    if not isinstance(data, list):
        raise UserError(
            f"prompt file {shown} holds no list: expected one of prompts, of objects with '{column}', or COCO's "
            "annotations"
        )
    for number, value in enumerate(data, start=1):
        yield f"entry {number}", _of_object(value, column, f"{shown}, entry {number}")


def _lines(content: bytes, column: str, shown: str) -> Rows:
    for number, line in enumerate(_lines_of(content, shown), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


PARQUET = ".parquet"
READERS: dict[str, Callable[[bytes, str, str], Rows] | None] = {
    PARQUET: None,
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".txt": _lines,
}


def _reader(file: str, shown: str, key: str) -> Callable[[bytes, str, str], Rows]:
    reader = READERS.get(suffix_of(file))
    if reader is None:
        raise UserError(f"prompt file {shown} is none of the known kinds ({', '.join(READERS)}): convert it for {key}")
    return reader


def _lines_of(content: bytes, shown: str) -> Iterator[str]:
    """By the line ends of editors alone: within a line lie U+2028, form feeds and the like, where str.splitlines would
    end one."""
    return io.StringIO(_text(content, shown), newline=None)


def _text(content: bytes, shown: str) -> str:
    if (nothing := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, nothing) + 1
        raise UserError(f"prompt file {shown}, line {line}: a NUL byte is no text: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"prompt file {shown}, line {line}: its bytes are no UTF-8: save it as that") from None


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=once)
    except UserError as error:
        raise UserError(f"prompt file {where}: {error}") from None
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
