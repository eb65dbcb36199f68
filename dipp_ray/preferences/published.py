"""Preference data as they are published, each form brought to pairs: a prompt, two images, the probability that a wins.

    Pick-a-Pic v2   parquet: caption, jpg_0, jpg_1, label_0 (1, 0, or 0.5 of a tie), has_label
    HPDv2           train.json: prompt, file_path or image_path (a list), and human_preference of each; test.json:
                    prompt, image_path, and rank of each; the images lie in a folder of its name, or beside it
    HPDv3           .json: prompt, path1, path2, and choice_dist (votes) or confidence; path1 is the preferred one
    ImageRewardDB   .json or parquet, a row an image: prompt_id, prompt, image_path, rank (1 is the best); images are
                    named from the data set's root, where the parquet lies; the .json of a part lies beside them

A rank says which of two is better, not how surely: its label is 1 or 0, and 1/2 where the ranks are equal.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

from dipp_ray.errors import UserError

Row = tuple[str, dict[str, Any]]  # where it stands, for a person; its columns
PROMPT, A, B, LABEL = ROLES = ("prompt", "image_a", "image_b", "label")


class Places(NamedTuple):
    """Where images lie that a file names: in words, and the folders that the names may begin in, in the order in which
    they are looked at. of: the file's path -> folders."""

    said: str
    of: Callable[[str], list[str]]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _parents(path: str) -> list[str]:
    """From the nearest to the uppermost: of a store, the bucket."""
    found = []
    while path := _parent(path):
        found.append(path)
    return found


BESIDE = Places("beside the file", lambda file: [_parent(file)])
OWN_FOLDER = Places(
    "in a folder of the file's name or beside it", lambda file: [file.rpartition(".")[0], _parent(file)]
)
ABOVE = Places("beside the file or in the folders above it", _parents)


@dataclass(frozen=True)
class Form:
    """marks: the columns by which it is known. needs: those that each of ROLES is made of. pairs: rows with these
    columns -> rows with ROLES, as far as their columns were read; always the same ones in the same order.
    together: the column that is equal in rows which make pairs together."""

    name: str
    marks: frozenset[str]
    needs: dict[str, tuple[str, ...]]
    pairs: Callable[[Iterable[Row]], Iterator[Row]]
    places: Places = BESIDE
    together: str | None = None

    def columns(self, roles: Iterable[str], present: Iterable[str]) -> list[str]:
        """The columns to read for these roles, of those that are there."""
        wanted = {column for role in roles for column in (*self.needs[role], *self.needs[""])}
        return [column for column in present if column in wanted]


def form_of(present: Iterable[str]) -> Form | None:
    """The published form with these columns, or None."""
    names = set(present)
    return next((form for form in FORMS if form.marks <= names), None)


def _pick_a_pic(rows: Iterable[Row]) -> Iterator[Row]:
    for where, row in rows:
        if row.get("has_label", True):
            yield (
                where,
                {PROMPT: row.get("caption"), A: row.get("jpg_0"), B: row.get("jpg_1"), LABEL: row.get("label_0")},
            )


def _hpdv2(rows: Iterable[Row], paths: str) -> Iterator[Row]:
    """paths: the column of the images' names."""
    for where, row in rows:
        images = row[paths]
        better, worse = row.get("human_preference"), row.get("rank")
        order = worse if better is None else better
        if not isinstance(images, list) or not isinstance(order, list) or len(order) != len(images):
            raise UserError(f"{where}: {paths} and human_preference or rank are no lists of one length: remove it")
        for a, b in combinations(range(len(images)), 2):
            wins, loses = (a, b) if better is not None else (b, a)  # the lower rank is the better
            label = _label(where, order[wins], order[loses])
            yield where, {PROMPT: row["prompt"], A: images[a], B: images[b], LABEL: label}


def _hpdv3(rows: Iterable[Row]) -> Iterator[Row]:
    for where, row in rows:
        votes, label = row.get("choice_dist"), row.get("confidence")
        if isinstance(votes, list) and len(votes) == 2 and sum(votes) > 0:
            label = votes[0] / sum(votes)
        yield where, {PROMPT: row["prompt"], A: row["path1"], B: row["path2"], LABEL: 1.0 if label is None else label}


def _image_reward(rows: Iterable[Row]) -> Iterator[Row]:
    same: dict[Any, list[Row]] = {}
    for where, row in rows:
        same.setdefault(row["prompt_id"], []).append((where, row))
    for images in same.values():
        for (where, a), (_, b) in combinations(images, 2):
            both = {PROMPT: a.get("prompt"), A: a.get("image_path"), B: b.get("image_path")}
            yield where, both | {LABEL: _label(where, b["rank"], a["rank"]) if "rank" in a else None}


def _label(where: str, a: Any, b: Any) -> float:
    """1 where a is above b."""
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        raise UserError(f"{where}: a rank is no number: remove it")
    return 0.5 if a == b else float(a > b)


FORMS = (
    Form(
        "Pick-a-Pic v2",
        frozenset({"caption", "jpg_0", "jpg_1", "label_0"}),
        {PROMPT: ("caption",), A: ("jpg_0",), B: ("jpg_1",), LABEL: ("label_0",), "": ("has_label",)},
        _pick_a_pic,
    ),
    Form(
        "HPDv3",
        frozenset({"prompt", "path1", "path2"}),
        {PROMPT: ("prompt",), A: ("path1",), B: ("path2",), LABEL: ("choice_dist", "confidence"),
         "": ("prompt", "path1", "path2")},
        _hpdv3,
    ),
    Form(
        "ImageRewardDB",
        frozenset({"prompt_id", "prompt", "image_path", "rank"}),
        {PROMPT: ("prompt",), A: ("image_path",), B: ("image_path",), LABEL: ("rank",), "": ("prompt_id",)},
        _image_reward,
        ABOVE,
        "prompt_id",
    ),
    *(
        Form(
            "HPDv2",
            frozenset({"prompt", paths, order}),
            {PROMPT: (), A: (), B: (), LABEL: (), "": ("prompt", paths, order)},
            partial(_hpdv2, paths=paths),
            OWN_FOLDER,
        )
        for paths, order in (
            ("file_path", "human_preference"), ("image_path", "human_preference"), ("image_path", "rank")
        )
    ),
)  # fmt: skip
