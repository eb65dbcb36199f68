"""Every setting of fitting a reward model to preference pairs, with its unit, default and meaning, nowhere else."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dipp_ray.settings import LocalPath, ModelPath, Positive, Section, load_settings


class ColumnSettings(Section):
    prompt: str = Field("prompt", description="Column, or JSONL key, of the text.")
    image_a: str = Field("image_a", description="Column of the first image.")
    image_b: str = Field("image_b", description="Column of the second image.")
    label: str = Field("label", description="Column of the probability that a is preferred; or a, b, tie.")

    @property
    def names(self) -> tuple[str, str, str, str]:
        return self.prompt, self.image_a, self.image_b, self.label


class FitSettings(Section):
    """What defines the fitted weights: with the base and the pairs, the same ones come out at any number of workers."""

    steps: int = Field(1000, ge=1, description="Optimiser updates.")
    batch_size: int = Field(64, ge=1, description="Pairs of one update, over all workers; any number of workers.")
    lr: Positive = Field(1e-3, description="Largest learning rate of AdamW; cosine decay to zero.")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's decay of weights.")
    warmup_steps: int = Field(50, ge=0, description="Updates of linear learning-rate warm-up.")
    noise: float = Field(0.0, ge=0, description="Deviation of noise added to both images, in units of [0, 1] pixels.")
    shift: int = Field(0, ge=0, description="Both images of a pair are moved alike by up to so many pixels.")
    seed: int = Field(0, ge=0, lt=2**63, description="Keys the order of pairs and the augmentation.")
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast of forward and backward; weights fp32.")
    report_every: int = Field(100, ge=1, description="Updates between measurements on the held-out pairs.")
    calibration_bins: int = Field(10, ge=2, le=100, description="Bins of confidence in [0.5, 1], of equal width.")


class WorkerSettings(Section):
    count: int | tuple[int, int] = Field(
        1,
        description="Data-parallel workers, or [fewest, most]: as many as the cluster gives, before and after a loss.",
    )
    cpus: float = Field(1.0, ge=0, description="Ray CPUs of one worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs of one worker.")
    accelerator: str | None = Field(None, description="GPU kind as Ray names it, such as A100.")
    labels: dict[str, str] = Field(default_factory=dict, description="Node labels, such as market: spot.")
    threads: int = Field(1, ge=1, description="CPU threads of torch in one worker.")
    max_failures: int = Field(3, ge=-1, description="Lost workers that the fit survives; -1: any number.")
    resize_every_s: Positive = Field(60.0, description="Shortest time between two looks for more room, seconds.")
    wait_s: Positive = Field(600.0, description="Longest wait for the cluster to give the fewest workers, seconds.")

    @property
    def fewest(self) -> int:
        return self.count if isinstance(self.count, int) else self.count[0]

    @property
    def most(self) -> int:
        return self.count if isinstance(self.count, int) else self.count[1]

    @property
    def resources(self) -> dict[str, float]:
        """Ray resources of one worker, without the accelerator's kind."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    @model_validator(mode="after")
    def _sensible(self):
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"workers.count={self.count!r}: give a number from 1 on, or [fewest, most] in this order")
        if not self.resources:
            raise ValueError("workers.cpus and workers.gpus are both 0: a worker needs one of them, set workers.cpus=1")
        if self.most > 1 and 0 < self.gpus < 1:
            raise ValueError(
                f"workers.gpus={self.gpus}: {self.most} workers could share one GPU, which NCCL refuses: "
                "set workers.gpus=1, or workers.count=1"
            )
        return self


class CheckpointSettings(Section):
    every: int = Field(200, ge=1, description="Updates between checkpoints: what a lost worker costs at most.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept while the fit goes on; none once it is finished.")


class FitConfig(Section):
    base: ModelPath = Field(
        description="Folder or hub id of the CLIPModel to start from, safetensors, with its tokenizer."
    )
    pairs: LocalPath = Field(
        description="Training pairs: a file, a folder of files or a pattern, local or s3://; parquet, JSONL or lists "
        "in JSON, with the columns below; "
        "or Pick-a-Pic v2, HPDv2, HPDv3 or ImageRewardDB as they are published."
    )
    held_out: LocalPath | None = Field(None, description="Pairs to measure on; null: some of `pairs`.")
    held_out_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the prompts of `pairs` set aside where held_out is null, with all theirs.",
    )
    out: LocalPath = Field(description="Folder to leave the fitted model in; every worker's node must see the same.")
    replace: bool = Field(False, description="Whether a fit of another configuration in `out` gives way to this one.")
    columns: ColumnSettings = ColumnSettings()
    fit: FitSettings = FitSettings()
    workers: WorkerSettings = WorkerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @field_validator("base", "out")
    @classmethod
    def _local(cls, value: str, info):
        if "://" in value:
            raise ValueError(f"{value} is no local folder: the model is read and left on a disk that all nodes see")
        return value

    @model_validator(mode="after")
    def _rows_for_all(self):
        if self.workers.most > self.fit.batch_size:
            raise ValueError(
                f"workers.count goes up to {self.workers.most}, but an update has fit.batch_size={self.fit.batch_size} "
                "pairs: a worker needs one at least"
            )
        return self

    @property
    def out_folder(self) -> Path:
        return Path(self.out).absolute()

    @property
    def work_folder(self) -> Path:
        """Beside `out`, while the fit is unfinished: decoded pairs and checkpoints."""
        return self.out_folder.with_name(f".{self.out_folder.name}.fit")


def load_fit_config(path: str | Path, overrides: list[str] | None = None) -> FitConfig:
    """The configuration in the YAML file `path`, with its `section.key=value` overrides. Raises UserError."""
    return load_settings(path, overrides, FitConfig)
