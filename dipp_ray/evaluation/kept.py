"""What an evaluation has of a model so far, in a folder: its images as PNG, and what was measured on finished shards.

A shard is the images of a few prompts, all those of one prompt together. The images stay, and are taken again where
nothing changed that they depend on; the measures go once the evaluation is done.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dipp_ray.storage.aside import whole_file
from dipp_ray.storage.hashing import hash_of_json

KEY = "made_by.json"


@dataclass
class Measured:
    """What one shard of n images gave. units {measure: [n]}; pairs {measure: [prompts, 2]}, of each prompt with two
    images the mean distance and the number of its pairs; features [n, D], of no columns without a network."""

    units: dict[str, np.ndarray] = field(default_factory=dict)
    pairs: dict[str, np.ndarray] = field(default_factory=dict)
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))


def shards_of(texts: list[str], least: int) -> list[list[int]]:
    """The images' numbers in shards of at least `least`, the last one aside; those of one prompt are in one shard."""
    rows: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        rows.setdefault(text, []).append(number)
    shards: list[list[int]] = [[]]
    for same in rows.values():
        if len(shards[-1]) >= least:
            shards.append([])
        shards[-1] += same
    return shards


def stamp_of(folder: Path) -> list[list[Any]]:
    """(path, bytes, time of the last change) of each file: what tells a folder from what it was before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


class Kept:
    """The folder of one model. images_by: what its images depend on; measures_by: what the measures do besides.

    Images of another model or prompt list are removed.
    """

    def __init__(self, folder: Path, shards: list[list[int]], images_by: Any, measures_by: Any):
        self.folder, self.shards = folder, shards
        self._key, self._measures_key = hash_of_json(images_by), hash_of_json(measures_by)
        try:
            same = json.loads((folder / KEY).read_text())["key"] == self._key
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
            with whole_file(folder / KEY) as aside:
                aside.write_text(json.dumps({"key": self._key}))

    def image(self, number: int) -> Path:
        return self.folder / f"{number:05}.png"

    def has_images(self, shard: int) -> bool:
        """Whether a shard was sampled to its end."""
        return self._sampled(shard).is_file() and all(self.image(number).is_file() for number in self.shards[shard])

    def images(self, numbers: list[int]) -> list[bytes]:
        """The PNGs of these images."""
        return [self.image(number).read_bytes() for number in numbers]

    def seconds(self, shard: int) -> float:
        """That its sampling took."""
        return json.loads(self._sampled(shard).read_text())["seconds"]

    def keep_images(self, shard: int, pngs: list[bytes], seconds: float) -> None:
        for number, png in zip(self.shards[shard], pngs, strict=True):
            self.image(number).write_bytes(png)
        with whole_file(self._sampled(shard)) as aside:  # after them: by it a shard is known to be whole
            aside.write_text(json.dumps({"seconds": seconds}))

    def measured(self, shard: int) -> Measured | None:
        """What was measured on a shard by the same rewards and networks, or None."""
        try:
            with np.load(self._measures(shard), allow_pickle=False) as found:
                if str(found["by"]) != self._measures_key:
                    return None
                parts: dict[str, dict[str, np.ndarray]] = {"units": {}, "pairs": {}}
                for key in found.files:
                    kind, separator, name = key.partition("/")
                    if separator:
                        parts[kind][name] = found[key]
                return Measured(parts["units"], parts["pairs"], found["features"])
        except (OSError, ValueError, KeyError, EOFError):
            return None

    def keep_measures(self, shard: int, measured: Measured) -> None:
        named: dict[str, Any] = {f"units/{name}": values for name, values in measured.units.items()}
        named |= {f"pairs/{name}": values for name, values in measured.pairs.items()}
        with whole_file(self._measures(shard)) as aside, aside.open("wb") as file:
            np.savez(file, by=np.array(self._measures_key), features=measured.features, **named)

    def drop_measures(self) -> None:
        """The evaluation is done: another one measures anew, for a reward's own code may have changed."""
        for shard in range(len(self.shards)):
            self._measures(shard).unlink(missing_ok=True)

    def _sampled(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05}.json"

    def _measures(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05}.npz"
