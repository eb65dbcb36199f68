"""What lies where a run's settings point: by it a model, prompt file or reward that was moved is known again.

A checkpoint's record holds it beside the settings, for after a move nothing is left at the old path to compare with.
So every file that a loader reads is read once, and remembered in the user's cache: sizes, headers or samples of bytes
would be cheaper, and are no content. Embeddings, which may be terabytes, are known by the record that lies with them:
of which encoders and prompts, and how many bytes a file has. What is of the hub has its commit, and no hash.

It only excuses a path that differs, and accuses none: a distillation that went on since may have left another generator
at the path where an alignment began, which only that beginning read.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from dipp_ray.checkpoints.record import group_of
from dipp_ray.checkpoints.store import newest_checkpoint
from dipp_ray.data.embeddings import read_record
from dipp_ray.data.files import files_of
from dipp_ray.data.prompt_files import READERS
from dipp_ray.errors import UserError
from dipp_ray.hub.selection import INDEX, Choice, of_reward, whole
from dipp_ray.reporting.waiting import waiting
from dipp_ray.rewards.loading import MODELS, reward_class
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.storage.hashing import hash_of_json
from dipp_ray.storage.remembered import remembered_hash

MODEL_KEYS = (("model", "teacher"), ("model", "generator"))


def contents_of(settings: Mapping) -> dict[str, str]:
    """{setting: hash of what it names} of a trajectory's settings, such as 'model.teacher' and, by the name of the
    term, 'reward.terms.clip'. What is not here is left out. A wait of more than a second is shown."""
    found = {}
    with waiting("the models' files to be read, to know them again if they are moved") as detail:
        tell = _counting(detail)
        for key, digest in _digests(settings, tell):
            with suppress(UserError, OSError, ValueError):
                if (value := digest()) is not None:
                    found[key] = value
    return found


def moved(before: Mapping, old: Mapping[str, str], now: Mapping, new: Mapping[str, str]) -> dict[str, Any]:
    """The settings `before` with the paths of `now` where the same lies there: `old` and `new` are their contents."""
    same = [key for key, value in old.items() if new.get(key) == value]
    settings = json.loads(json.dumps(before))
    terms = {term["name"]: term for term in now["reward"]["terms"]}
    for key in same:
        section, name, *entry = key.split(".", 2)
        if not entry:
            settings[section][name] = now[section][name]
            continue
        for term in settings[section][name]:
            if term["name"] == entry[0]:
                term["folder"] = terms[entry[0]]["folder"]
    return settings


def _digests(settings: Mapping, tell: Callable[[int], None]) -> Iterator[tuple[str, Callable[[], str | None]]]:
    for section, key in MODEL_KEYS:
        yield f"{section}.{key}", partial(_digest, settings[section][key], whole, tell)
    yield "init.score_checkpoint", lambda: _score_digest(settings["init"]["score_checkpoint"])
    yield "data.prompts", partial(_prompts_digest, settings["data"]["prompts"], tell)
    yield "data.embeddings", lambda: _embeddings_digest(settings["data"]["embeddings"])
    for term in settings["reward"]["terms"]:
        yield f"reward.terms.{term['name']}", partial(_reward_digest, term, tell)


def _digest(given: str | None, choice: Choice, tell: Callable[[int], None]) -> str | None:
    """Of the files at a local path that a loader reads, by their names within it; of all, where it knows none."""
    if given is None or not Path(given).exists():
        return None
    path = Path(given)
    if path.is_file():
        return remembered_hash(path, tell)
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    index = json.loads((path / INDEX).read_text()) if INDEX in names else None
    return hash_of_json({name: remembered_hash(path / name, tell) for name in choice(names, index) or names})


def _prompts_digest(given: str | Sequence[str], tell: Callable[[int], None]) -> str | None:
    """Of the files' bytes in order, whatever they are called; None where one is not on a disk of this machine."""
    paths = [given] if isinstance(given, str) else given
    found = [file for path in paths for file in files_of(path, "data.prompts", READERS, "prompt file")]
    if not all(isinstance(fs, LocalFileSystem) for fs, _, _ in found):
        return None
    return hash_of_json([remembered_hash(Path(file), tell) for _, file, _ in found])


def _embeddings_digest(given: str | None) -> str | None:
    """Of all that the folder's record says; where the folder lies is no part of it."""
    return read_record(given).digest() if given else None


def _reward_digest(term: Mapping, tell: Callable[[int], None]) -> str | None:
    """Of what a reward of ours reads of its folder; of another's all, for nobody knows."""
    if term["folder"] is None:
        return None
    if term["model"] not in MODELS:
        return _digest(term["folder"], lambda names, index: list(names), tell)
    kind = reward_class(RewardTerm(name=term["name"], model=term["model"]))
    return _digest(term["folder"], of_reward(getattr(kind, "FILE", None)), tell)


def _score_digest(given: str | None) -> str | None:
    """Of the score model in the newest checkpoint that a run left: a commit names its files with their hashes."""
    found = newest_checkpoint(given) if given else None
    return found and hash_of_json([asdict(file) for file in found[1].files if group_of(file) == "score"])


def _counting(detail: Callable[[str], None]) -> Callable[[int], None]:
    read = 0

    def tell(count: int) -> None:
        nonlocal read
        read += count
        detail(f"{read / 1e9:.2f} GB so far")

    return tell
