"""The training loop of one Ray Train worker: its share of every update, measurements and checkpoints on rank 0."""

import math
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from ray import train
from ray.train.torch import prepare_model

from dipp_ray.preferences.calibration import measure
from dipp_ray.preferences.config import FitSettings
from dipp_ray.preferences.dataset import Pairs, load_pairs
from dipp_ray.preferences.model import PairModel, augment, batches, bradley_terry_loss, rate
from dipp_ray.preferences.state import load_state, save_state
from dipp_ray.reporting.pace import Pace
from dipp_ray.rewards.clip import image_statistics, load_clip, tokenize

LARGEST_LOGIT_SCALE = math.log(100.0)  # CLIP's own bound
EVALUATION_ROWS = 512
TELL_EVERY_S = 1.0  # shortest time between two messages of progress


def fit_worker(config: dict) -> None:
    """Fit from the last checkpoint on. config: base, work, resume (folders), settings, threads, every, queue.

    Messages to the driver by the queue: {"started": process id, "workers", "step"}, {"step", "seconds"} now and then,
    a row of the history with each measurement, {"not_finite": sentence}. All ranks see the same loss, so where it is
    not finite all of them return; raising would have Ray Train try the same again.
    """
    torch.set_num_threads(config["threads"])
    settings = FitSettings(**config["settings"])
    context = train.get_context()
    fit = Fit(config, settings, context.get_world_rank(), context.get_world_size())
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            fit.resume(folder)
    elif config["resume"]:
        fit.resume(config["resume"])
    fit.run()


class Fit:
    """Model, optimiser and what has been done so far, in one of `world` workers."""

    def __init__(self, config: dict, settings: FitSettings, rank: int, world: int):
        self.settings, self.rank, self.world = settings, rank, world
        self.queue, self.every = config["queue"], config["every"]
        self.device = train.torch.get_device()
        self.pairs = load_pairs(Path(config["work"]) / "train")
        self.held_out = load_pairs(Path(config["work"]) / "held_out") if rank == 0 else None
        self.clip, self.tokenizer = load_clip(config["base"])
        self.statistics = image_statistics(config["base"])
        self.clip.to(self.device)
        self.optimiser = torch.optim.AdamW(self.clip.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.step = 0
        self.history: list[dict] = []
        self.reliability: list = []
        self.loss_sum, self.losses = 0.0, 0  # since the last measurement
        self.pace = Pace(TELL_EVERY_S)

    def resume(self, folder: str | Path) -> None:
        state = load_state(Path(folder), self.clip, self.optimiser)
        self.step, self.history, self.reliability = state["step"], state["history"], state["reliability"]
        self.loss_sum, self.losses = state["loss_sum"], state["losses"]

    def run(self) -> None:
        settings = self.settings
        model = prepare_model(self.model(self.pairs))
        self.tell({"started": os.getpid(), "workers": self.world, "step": self.step})
        if self.step == 0:
            self.measure(None)
        began, first = time.monotonic(), self.step
        for rows in islice(batches(len(self.pairs), settings), self.step, None):
            self.step += 1
            loss = self.update(model, rows)
            if not math.isfinite(loss):
                sentence = f"the loss is not finite at step {self.step}: lower fit.lr={settings.lr}"
                return self.tell({"not_finite": f"fitting the reward: {sentence}"})
            self.loss_sum, self.losses = self.loss_sum + loss, self.losses + 1
            if self.step % settings.report_every == 0 or self.step == settings.steps:
                self.measure(self.loss_sum / self.losses)
                self.loss_sum, self.losses = 0.0, 0
            if self.step % self.every == 0 or self.step == settings.steps:
                self.checkpoint()
            if self.step < settings.steps and self.pace.due():
                done = (self.step - first) * settings.batch_size
                self.tell({"step": self.step, "pairs_per_second": done / (time.monotonic() - began)})

    def update(self, model, rows: torch.Tensor) -> float:
        """One update on the pairs `rows` [batch_size], of which this worker takes every `world`-th; its mean loss."""
        settings, places = self.settings, range(self.rank, len(rows), self.world)
        mine = rows[self.rank :: self.world]
        both = augment(self.pairs.both(mine), settings, self.step, places).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.dtype == "bf16"):
            margin = model(both[:, 0], both[:, 1], self.pairs.prompt[mine].to(self.device))
        loss = bradley_terry_loss(margin, self.pairs.label[mine].to(self.device), len(rows))
        self.optimiser.zero_grad()
        (loss * self.world).backward()  # gradients are averaged over the workers; their sum is the update's mean
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr * rate(self.step - 1, settings)
        self.optimiser.step()
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=LARGEST_LOGIT_SCALE)
        loss = loss.detach()
        if self.world > 1:
            torch.distributed.all_reduce(loss)
        return loss.item()

    def model(self, pairs: Pairs) -> PairModel:
        return PairModel(self.clip, tokenize(self.tokenizer, pairs.prompts, self.clip), self.statistics)

    def measure(self, loss: float | None) -> None:
        """Measure on the held-out pairs and tell; a row of the history."""
        if self.held_out is not None:
            margin = margins(self.model(self.held_out), self.held_out)
            measured = measure(margin, self.held_out.label, self.settings.calibration_bins)
            self.reliability = measured.pop("reliability")
            self.history.append({"step": self.step, "loss": loss, **measured})
            self.tell(self.history[-1])

    def checkpoint(self) -> None:
        """Report a checkpoint to Ray Train; every rank waits here for rank 0's files."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                keys = ("step", "history", "reliability", "loss_sum", "losses")
                save_state(Path(folder), self.clip, self.optimiser, {key: getattr(self, key) for key in keys})
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report({"step": self.step}, checkpoint=checkpoint)

    def tell(self, message: dict) -> None:
        if self.rank == 0:
            self.queue.put(message)


@torch.no_grad()
def margins(model: PairModel, pairs: Pairs) -> torch.Tensor:
    """The model's margins [N] on pairs, on the CPU, in fp32."""
    parts = []
    for rows in torch.arange(len(pairs)).split(EVALUATION_ROWS):
        both = pairs.both(rows).to(model.clip.device) / 255
        parts.append(model(both[:, 0], both[:, 1], pairs.prompt[rows].to(both.device)).cpu())
    return torch.cat(parts)
