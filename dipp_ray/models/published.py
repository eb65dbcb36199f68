"""A published one-step generator by its name; `docs/generators.md` is made of their table (`make schema`)."""

import re
from itertools import pairwise
from pathlib import PurePosixPath

from dipp_ray.models.families.published import TABLE, Published


def published(path: str) -> Published | None:
    """The entry that a path or hub id names, or None: a generator is known by the repository it is published in, or
    by the name of its file.

    By a repository, where its two names follow each other in the path, or stand as the hub's cache writes them
    (`models--org--name`); where files are named, by the last part alone, whatever folder it lies in. A revision after
    an `@` is no part of a name.
    """
    return _entry(path) or _entry(path.partition("@")[0])


def _entry(path: str) -> Published | None:
    parts = [part.lower() for part in PurePosixPath(path.replace("\\", "/")).parts]
    parts = [inner for part in parts for inner in _hub_parts(part)]
    pairs = {f"{org}/{name}" for org, name in pairwise(parts)}
    for entry in TABLE:
        if entry.files:
            known = bool(parts) and parts[-1] in {file.lower() for file in entry.files}
        else:
            known = any(repo.lower() in pairs for repo in entry.repos)
        if known:
            return entry
    return None


def _hub_parts(part: str) -> list[str]:
    cached = re.fullmatch(r"models--(.+?)--(.+)", part)
    return [cached[1], cached[2]] if cached else [part]


def table_page() -> str:
    """docs/generators.md."""
    lines = [
        "# Published one-step generators",
        "",
        "Made by `make schema` from `dipp_ray/models/families/published.py`; do not edit. `model.generator` with",
        "such a name needs no `model.t_star`, `model.input` or `model.prediction`; those given win. A name is known",
        "wherever `org/name` stands in the path or hub id, or by the file's own name. None of these weights was here:",
        "tests hold each reading against its formula on small networks of the same classes, not against an image.",
        "Licences are noted as they were seen: read the repository's. Basis: `read` is inference code or documentation",
        "that was read; `page` a stored page, maybe a mirror's; `not verified` memory.",
        "",
        "| generator | repository | file | teacher's family | t* | input | output | authors' call | licence | basis |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    taken = [entry for entry in TABLE if entry.why_not is None]
    lines += ["| " + " | ".join(_cells(entry)) + " |" for entry in taken]
    lines += ["", "A flow is read at its end, where `unit` and `sigma` are one.", ""]
    lines += [f"- {entry.name}: {entry.note}." for entry in taken if entry.note]
    lines += ["", "## Not by name", "", "| generator | repository | file | why |", "|---|---|---|---|"]
    for entry in TABLE:
        if entry.why_not is not None:
            lines.append(f"| {entry.name} | {_code(entry.repos)} | {_code(entry.files)} | {entry.why_not} |")
    return "\n".join(lines) + "\n"


def _cells(entry: Published) -> list[str]:
    time = "end" if entry.t_star is None else str(entry.t_star)
    reading = [time, entry.input or "", entry.prediction or ""]
    return [
        entry.name, _code(entry.repos), _code(entry.files), entry.family, *reading, entry.call, entry.licence,
        entry.source,
    ]  # fmt: skip


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
