"""Fitting a CLIP reward to preference pairs by Bradley-Terry, with Ray Train: P(a preferred) = sigmoid(r_a - r_b)."""

import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from ray import train
from ray.train.torch import TorchTrainer, prepare_model
from ray.util.queue import Queue
from torch import nn
from torch.nn import functional as F

from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.preferences.dataset import Pairs, check_pairs, read_pairs
from dipp_ray.rewards.clip import image_features, image_statistics, load_clip, text_features, tokenize
from dipp_ray.settings import Positive, Section

LARGEST_LOGIT_SCALE = math.log(100.0)  # CLIP's own bound
EVALUATION_ROWS = 512


class FitSettings(Section):
    steps: int = Field(1000, ge=1, description="Optimiser updates.")
    batch_size: int = Field(64, ge=1, description="Pairs of one update, over all workers.")
    lr: Positive = Field(1e-3, description="Largest learning rate of AdamW; cosine decay to zero.")
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(50, ge=0, description="Updates of linear learning-rate warm-up.")
    noise: float = Field(0.0, ge=0, description="Deviation of noise added to both images, in units of [0, 1] pixels.")
    shift: int = Field(0, ge=0, description="Both images of a pair are moved alike by up to so many pixels.")
    seed: int = Field(0, ge=0, lt=2**63, description="Keys the order of pairs and the augmentation.")
    report_every: int = Field(100, ge=1, description="Updates between measurements on the held-out pairs.")
    workers: int = Field(1, ge=1, description="Data-parallel workers; must divide batch_size.")
    cpus: float = Field(1.0, ge=0, description="Ray CPUs of one worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs of one worker.")
    threads: int = Field(1, ge=1, description="CPU threads of torch in one worker.")


class PairModel(nn.Module):
    """The margin r(a, c) - r(b, c) of a CLIPModel as a reward."""

    def __init__(self, clip, tokens: dict[str, torch.Tensor], statistics: tuple):
        super().__init__()
        self.clip, self.tokens, self.statistics = clip, tokens, statistics

    def forward(self, a: torch.Tensor, b: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """a, b [B, 3, H, W] in [0, 1]; prompt [B], indices of the tokens -> margins [B]."""
        distinct, index = prompt.unique(return_inverse=True)
        text = text_features(self.clip, {key: value[distinct] for key, value in self.tokens.items()})[index]
        of_a, of_b = image_features(self.clip, torch.cat([a, b]), *self.statistics).chunk(2)
        return self.clip.logit_scale.exp() * ((of_a - of_b) * text).sum(-1)


def bradley_terry_loss(margin: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the label [B], P(a preferred), under sigmoid(margin [B])."""
    return F.binary_cross_entropy_with_logits(margin, label)


def pair_accuracy(margin: torch.Tensor, label: torch.Tensor) -> float:
    """Share of pairs whose margin [B] has the sign of label - 1/2; pairs labelled 1/2 are left out."""
    decided = label != 0.5
    return ((margin > 0) == (label > 0.5))[decided].float().mean().item()


def fit_reward(
    base_folder: str | Path,
    pairs_train: str | Path,
    pairs_test: str | Path,
    out_folder: str | Path,
    settings: FitSettings | None = None,
    progress: Callable[[int, dict], None] | None = None,
) -> dict:
    """Fit the CLIP model in `base_folder` and leave it in `out_folder`, as `ClipReward` loads it, with fit.json.

    pairs_*: parquet files with columns prompt, image_a, image_b (PNG bytes) and label (probability that a is
    preferred). progress(step, metrics) is called at step 0 and every `report_every` updates, in another thread.
    Returns what fit.json holds: accuracy and log_loss on `pairs_test`, those of the base, counts, seconds, settings.
    Needs Ray, and folders that its workers see. Raises UserError for bad input (files and columns before any worker
    starts), NonFiniteError where the fit diverges; an `out_folder` that was there is then as it was.
    """
    settings = settings or FitSettings()
    if settings.batch_size % settings.workers:
        raise UserError(f"batch_size={settings.batch_size} does not split among {settings.workers} workers")
    load_clip(base_folder)
    counts = {"train_pairs": check_pairs(pairs_train), "test_pairs": check_pairs(pairs_test)}
    started = time.perf_counter()
    out = Path(out_folder).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fit-") as storage:
        queue = Queue(actor_options={"num_cpus": 0})
        listener = threading.Thread(target=_listen, args=(queue, progress), daemon=True)
        listener.start()
        trainer = TorchTrainer(
            _fit_worker,
            train_loop_config={
                "base": str(Path(base_folder).absolute()),
                "train": str(Path(pairs_train).absolute()),
                "test": str(Path(pairs_test).absolute()),
                "settings": settings.model_dump(),
                "queue": queue,
            },
            scaling_config=train.ScalingConfig(
                num_workers=settings.workers,
                use_gpu=settings.gpus > 0,
                resources_per_worker={"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {}),
            ),
            run_config=train.RunConfig(
                name="fit", storage_path=storage, logging_config=train.LoggingConfig(log_level="ERROR")
            ),
        )
        try:
            result = trainer.fit()
        except train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                cause = getattr(failure, "_base_exc", failure)
                if isinstance(cause, (UserError, NonFiniteError)):
                    raise cause from None  # the sentence, not Ray's account of where it was said
            raise
        finally:
            queue.put(None)
            listener.join()
            queue.shutdown()
        history = result.metrics["history"]
        fitted = Path(tempfile.mkdtemp(dir=storage))
        result.checkpoint.to_directory(fitted)
        record = {
            "accuracy": history[-1]["accuracy"],
            "log_loss": history[-1]["log_loss"],
            "base_accuracy": history[0]["accuracy"],
            "base_log_loss": history[0]["log_loss"],
            **counts,
            "seconds": round(time.perf_counter() - started, 1),
            "settings": settings.model_dump(),
            "history": history,
        }
        (fitted / "fit.json").write_text(json.dumps(record, indent=1))
        # The old one goes only now that the new one is whole.
        if out.exists():
            shutil.rmtree(out)
        os.replace(fitted, out)
    out.chmod(0o755)  # mkdtemp makes it private
    return record


def _listen(queue: Queue, progress: Callable[[int, dict], None] | None) -> None:
    while (metrics := queue.get()) is not None:
        if progress:
            progress(metrics["step"], metrics)


def _fit_worker(config: dict) -> None:
    """The training loop of one Ray Train worker."""
    settings = FitSettings(**config["settings"])
    torch.set_num_threads(settings.threads)
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = train.torch.get_device()
    clip, tokenizer = load_clip(config["base"])
    statistics = image_statistics(config["base"])
    clip.to(device)
    size = clip.config.vision_config.image_size
    pairs = read_pairs(config["train"], size)
    model = PairModel(clip, tokenize(tokenizer, pairs.prompts, clip), statistics)
    wrapped = prepare_model(model)
    optimiser = torch.optim.AdamW(clip.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    test = read_pairs(config["test"], size) if rank == 0 else None
    history = []

    def measure(step: int, loss: float | None) -> None:
        if rank == 0:
            held_out = PairModel(clip, tokenize(tokenizer, test.prompts, clip), statistics)
            history.append({"step": step, "loss": loss, **evaluate(held_out, test)})
            config["queue"].put(history[-1])

    measure(0, None)
    total, since = 0.0, 0
    for step, rows in enumerate(_batches(len(pairs), settings), start=1):
        rows = rows[rank::world]
        a, b = _augment(pairs.a[rows], pairs.b[rows], settings, (settings.seed, step, rank))
        margin = wrapped(a.to(device), b.to(device), pairs.prompt[rows].to(device))
        loss = bradley_terry_loss(margin, pairs.label[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=LARGEST_LOGIT_SCALE)
        total, since = total + loss.item(), since + 1
        if not math.isfinite(total):
            raise NonFiniteError(f"fitting the reward: the loss is not finite at step {step}: lower lr={settings.lr}")
        if step % settings.report_every == 0 or step == settings.steps:
            measure(step, total / since)
            total, since = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            clip.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if (preprocessor := Path(config["base"]) / "preprocessor_config.json").is_file():
                shutil.copy(preprocessor, folder)
            checkpoint = train.Checkpoint.from_directory(folder)
        train.report({"history": history}, checkpoint=checkpoint)


@torch.no_grad()
def evaluate(model: PairModel, pairs: Pairs) -> dict[str, float]:
    """Accuracy and mean log loss of the model on pairs."""
    device = model.clip.device
    margins = []
    for rows in torch.arange(len(pairs)).split(EVALUATION_ROWS):
        a, b, prompt = (part[rows].to(device) for part in (pairs.a, pairs.b, pairs.prompt))
        margins.append(model(a / 255, b / 255, prompt).cpu())
    margins = torch.cat(margins)
    return {
        "accuracy": pair_accuracy(margins, pairs.label),
        "log_loss": bradley_terry_loss(margins, pairs.label).item(),
    }


def _rate(step: int, settings: FitSettings) -> float:
    """Factor on lr: linear warm-up, then cosine to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _batches(count: int, settings: FitSettings):
    """The rows of every update: all pairs in a new order, again and again; the same for any number of workers."""
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[: settings.batch_size]
        order = order[settings.batch_size :]


def _augment(
    a: torch.Tensor, b: torch.Tensor, settings: FitSettings, key: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [B, 3, H, W] -> [0, 1]: both images of a pair moved alike, the border repeated, and noise added."""
    a, b = a / 255, b / 255
    if not settings.shift and not settings.noise:
        return a, b
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part) % 2**63
    generator = torch.Generator().manual_seed(seed)
    both = torch.stack([a, b], dim=1)  # [B, 2, 3, H, W]
    if settings.shift:
        height, width = both.shape[-2:]
        dy, dx = torch.randint(-settings.shift, settings.shift + 1, (2, len(both), 1), generator=generator)
        rows = (torch.arange(height) + dy).clamp(0, height - 1)
        columns = (torch.arange(width) + dx).clamp(0, width - 1)
        index = torch.arange(len(both))[:, None, None]
        both = both.permute(0, 3, 4, 1, 2)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 4, 1, 2)
    if settings.noise:
        both = (both + settings.noise * torch.randn(both.shape, generator=generator)).clamp(0, 1)
    return both[:, 0], both[:, 1]
