"""Fitting a CLIP reward to preference pairs: checks and decoding, then the workers, then the folder."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.head import watched_head
from dipp_ray.hub.revisions import pinned
from dipp_ray.preferences.config import FitConfig
from dipp_ray.preferences.dataset import split
from dipp_ray.preferences.identity import configuration_hash, refuse_other, trajectory
from dipp_ray.preferences.listener import Progress, Say
from dipp_ray.preferences.output import read_record, write_output
from dipp_ray.preferences.reading import read_labels
from dipp_ray.preferences.session import train_session
from dipp_ray.preferences.state import WEIGHTS
from dipp_ray.preferences.work_folder import WorkFolder
from dipp_ray.rewards.clip import load_clip
from dipp_ray.storage.aside import whole_folder


def fit_reward(config: FitConfig, progress: Progress | None = None, say: Say = print) -> dict:
    """Fit, or go on with a fit, and leave the model in `config.out` as `ClipReward` loads it; returns its fit.json.

    progress(step, message) is called, in another thread, with what `fit_worker` tells: the keys "accuracy" and so on
    at step 0 and every `report_every` updates. Needs Ray, and folders that its workers see. Raises UserError for bad
    input, before any worker starts; NonFiniteError where the fit diverges; RoleFailure where workers are lost too
    often. What is in `out` stays until the new model is whole, and a finished fit of this configuration is returned
    without another.
    """
    with prepared(config, say) as fit:
        return fit.record or fit.run(progress)


@contextmanager
def prepared(config: FitConfig, say: Say = print) -> Iterator["RewardFit"]:
    """All that needs no Ray: input checked, pairs decoded, and the work folder held against a second driver."""
    config = config.model_copy(update={"base": pinned(config.base)})  # the workers' nodes take the same
    clip, _ = load_clip(config.base)
    labels = read_labels(config.pairs, config.columns)
    if config.held_out:
        parts = [labels, read_labels(config.held_out, config.columns)]
        if both := sorted(set(labels.files) & set(parts[1].files)):
            raise UserError(
                f"{both[0]} is in pairs and in held_out: what was fitted to cannot be measured on: name other "
                "files in one of them"
            )
        shares = [(part, list(range(len(part)))) for part in parts]
    else:
        parts = [labels]
        shares = [(labels, rows) for rows in split(labels, config.held_out_share)]
    work = WorkFolder(config, configuration_hash(config, parts))
    fit = RewardFit(config, work, (len(shares[0][1]), len(shares[1][1])), say)
    if (record := read_record(config.out_folder)) is not None:
        if record["configuration"] == work.configuration:
            fit.record = record
            yield fit
            return
        refuse_other(config, record.get("settings", {}), config.out_folder, "a fit")
    with work.held():
        for name, (part, rows) in zip(("train", "held_out"), shares, strict=True):
            work.decode(name, part, rows, clip.config.vision_config.image_size, say)
        yield fit


class RewardFit:
    """One fit in its work folder. counts: pairs to fit and held out; record: its fit.json if it was finished before."""

    def __init__(self, config: FitConfig, work: WorkFolder, counts: tuple[int, int], say: Say):
        self.config, self.work, self.counts, self.say = config, work, counts, say
        self.record: dict | None = None

    def run(self, progress: Progress | None = None) -> dict:
        """Train from the last checkpoint on and leave the model in place; returns its fit.json."""
        started = time.perf_counter()
        found = self.work.latest()
        resumed = found[1]["step"] if found else 0
        if resumed < self.config.fit.steps:
            resume = found[0] if found else None
            try:
                with watched_head(self.say, "the same command goes on from the last checkpoint"):
                    train_session(self.config, self.work.next_session(resume), resume, progress, self.say)
            except NonFiniteError:
                self.work.forget()  # its checkpoints lead there again
                raise
            found = self.work.latest()
        assert found is not None, "a session that ends without an error leaves a checkpoint"
        folder, state = found
        record = self._record(state, resumed, time.perf_counter() - started)
        with whole_folder(self.config.out_folder) as aside:
            write_output(aside, self.config, folder / WEIGHTS, record)
        shutil.rmtree(self.work.path)
        return record

    def _record(self, state: dict, resumed: int, seconds: float) -> dict:
        """fit.json of the finished fit."""
        config, history = self.config, state["history"]
        measures = [{key: value for key, value in row.items() if key not in ("step", "loss")} for row in history]
        return {
            "configuration": self.work.configuration,
            "held_out": measures[-1] | {"reliability": state["reliability"]},
            "base": measures[0],
            "train_pairs": self.counts[0],
            "held_out_pairs": self.counts[1],
            "seconds": round(seconds, 1),
            "resumed_at": resumed,
            "settings": trajectory(config),
            "files": {"base": config.base, "pairs": config.pairs, "held_out": config.held_out},
            "history": history,
        }
