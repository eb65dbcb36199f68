"""The one configuration: every setting with its unit, default and meaning, and no default anywhere else.

`RunConfig` describes one run of training (distillation or alignment). It is read from YAML and changed by
`section.key=value` on the command line. Unknown keys are refused with the nearest right one. What the mathematics
defines is taken up from `alignment/hyperparameters.py`.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from dipp_ray.alignment.hyperparameters import Decay, Objective, Optimiser
from dipp_ray.data_settings import DataSection
from dipp_ray.evaluation.settings import EvaluationSection
from dipp_ray.reporting.trackers import Name as TrackerName
from dipp_ray.rewards.terms import RewardTerm, unique_names
from dipp_ray.role_settings import Between, RoleSection, RolesSection, TrainedRoleSection
from dipp_ray.settings import NAME, Count, LocalPath, ModelPath, Positive, Section, load_settings
from dipp_ray.storage.cache import copy_of, is_remote

__all__ = ["RoleSection", "RolesSection", "RunConfig", "TrainedRoleSection", "allowed_group_sizes", "load_config"]


class RunSection(Section):
    name: str = Field("run", pattern=NAME, description="Name of the run's folder.")
    folder: LocalPath = Field(
        "runs",
        validate_default=True,
        description="Where run folders lie: a local path, or s3://, of which this machine's cache holds a copy.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Keys every draw of noise, time and prompt.")
    steps: int = Field(ge=1, description="Generator updates of the whole run.")
    deterministic: bool = Field(
        True,
        description="Bit-equal on one kind of device; costs speed on a GPU. Without it prompts are encoded in batches.",
    )

    @field_validator("folder")
    @classmethod
    def _known_store(cls, folder: str) -> str:
        if is_remote(folder) and not folder.startswith("s3://"):
            raise ValueError(f"run.folder={folder}: give a local path, or s3://BUCKET/FOLDER")
        return folder.rstrip("/") if is_remote(folder) else folder


class ModelSection(Section):
    teacher: ModelPath = Field(
        description="Diffusers pipeline folder of the frozen teacher, or its hub id: org/name, org/name@REVISION."
    )
    generator: ModelPath | None = Field(
        None,
        description="Pipeline folder of the starting generator, its network alone (a folder or file of weights, "
        "safetensors or .bin), or a LoRA on the teacher; of each a hub id too, or a file or folder in a repository; "
        "null: the teacher.",
    )
    input: Literal["unit", "sigma"] | None = Field(
        None,
        description="Generator's input: z, or sigma_{t*} z; null: as `t_star`, sigma where it starts as the teacher.",
    )
    t_star: int | None = Field(
        None,
        ge=0,
        description="The fixed time at which the generator's network is read; null: as the generator's one_step.json "
        "or the table of docs/generators.md says, and the end of a flow.",
    )
    prediction: Literal["teacher", "epsilon", "sample", "v_prediction", "flow_prediction", "negative_flow"] | None = (
        Field(
            None,
            description="What the generator's output means: what the teacher's does, eps, x0, v, eps - x0 or x0 - eps "
            "(the last two read in flow time, whatever the teacher's schedule); null: as `t_star`, and the teacher's "
            "where neither says.",
        )
    )
    family: str | None = Field(
        None, description="`package.module:Class` of a family of one's own; null: by the class of the pipeline."
    )
    resolution: tuple[Count, Count] | None = Field(
        None, description="Height and width of the images, pixels; null: those that the teacher's folder is made for."
    )
    embedded_guidance: float | None = Field(
        None,
        ge=0,
        description="Scale told to a network that reads one (it was distilled from guidance), besides "
        "objective.guidance_scale, which is then 1 unless both are meant; null: its pipeline's own.",
    )


class InitSection(Section):
    score: Literal["teacher", "checkpoint"] = Field(
        "teacher", description="Start the score model from the teacher, or from the one that distillation left."
    )
    score_checkpoint: LocalPath | None = Field(None, description="Run folder or checkpoint whose score model is taken.")
    score_warmup_steps: int = Field(0, ge=0, description="Score-only updates before the first generator update.")

    @model_validator(mode="after")
    def _checkpoint_named(self):
        if (self.score == "checkpoint") != (self.score_checkpoint is not None):
            raise ValueError("init.score=checkpoint and init.score_checkpoint go together: give both or neither")
        return self


class AdapterSection(Section):
    rank: int = Field(ge=1, description="Rank of the two matrices.")
    alpha: Positive | None = Field(None, description="The product is scaled by alpha / rank; null: the rank.")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Last parts of the adapted modules' names; null: those of the family's training scripts."
    )

    @property
    def scaled_by(self) -> float:
        return self.rank if self.alpha is None else self.alpha


class AdaptersSection(Section):
    generator: AdapterSection | None = Field(None, description="LoRA on the generator; null: all of it is trained.")
    score: AdapterSection | None = Field(
        None,
        description="LoRA on the teacher as the score model, which then answers the teacher's question too; null: all "
        "of it is trained.",
    )


class EmaSection(Section):
    decay: Decay = Field(0.98, description="Decay per update of the generator's moving average.")


class RewardSection(Section):
    terms: list[RewardTerm] = Field(default_factory=list, description="Reward models and their parts in the sum.")
    app: str | None = Field(None, description="Shared service, by its Serve application; null: a private one.")
    urls: list[str] = Field(default_factory=list, description="Shared service, by HTTP; several serve the same.")
    token: LocalPath | None = Field(
        None, description="File of this run's bearer token; null: of DIPP_RAY_REWARD_TOKEN."
    )
    wire_dtype: Literal["fp32", "fp16"] = Field("fp32", description="Of x0 and its gradient by HTTP.")
    standardise: bool = Field(False, description="Divide by the deviation of the starting generator's reward.")
    standardise_samples: int = Field(256, ge=2, description="Samples that measure mean and deviation.")
    on_nonfinite: Literal["raise", "drop"] = Field("raise", description="drop: keep the divergence, count it.")
    deadline_s: Positive = Field(120.0, description="Longest wait for one answer, seconds, retries included.")
    away_s: float = Field(
        1800.0,
        ge=0,
        description="Longest time that a shared service may give no answer while the run pauses for it, seconds; 0: "
        "the run ends at the first deadline that passes.",
    )
    vae: str | None = Field(
        None, description="Which VAE of a shared service decodes this run's latents, by its name there; null: its only."
    )
    checkpoint_decoder: bool = Field(
        False, description="Private service: recompute the decoder's activations: less memory, more time."
    )
    decode_once: bool = Field(
        False,
        description="Private service: one process, placed as roles.reward, decodes for all terms, instead of each "
        "term's own: less memory, and with three terms or more less time.",
    )
    replicas: Count | Between = Field(
        1, description="Replicas of a private application's models; {min: 1, max: 4}: scaled with the load."
    )

    @model_validator(mode="after")
    def _unique(self):
        unique_names(self.terms, "reward.terms")
        return self

    @model_validator(mode="after")
    def _one_way(self):
        if self.app and self.urls:
            raise ValueError("reward.app and reward.urls are two ways to a shared service: keep one")
        if self.decode_once and (self.shared or not self.terms):
            raise ValueError("reward.decode_once is of a run's own service, and this run has none: remove it")
        return self

    @property
    def shared(self) -> bool:
        """Whether a service is used that is not this run's own."""
        return bool(self.app or self.urls)


class CheckpointSection(Section):
    every: int = Field(100, ge=1, description="Steps between checkpoints.")
    memory_every: int = Field(
        0,
        ge=0,
        description="Steps between states that are kept in the memory of other nodes, so that a lost rank or node "
        "costs no more of them; 0: never.",
    )
    keep: int = Field(
        2,
        ge=1,
        description="Newest checkpoints kept; the best by the held-out reward stays too, if it is above the start's.",
    )
    url: LocalPath | None = Field(None, description="Where checkpoints lie; null: in the run's folder.")


class LogSection(Section):
    samples_every: int = Field(50, ge=1, description="Steps between sample grids and held-out scores.")
    samples: int = Field(36, ge=1, description="Images of a grid, from fixed noises and prompts.")
    held_out_samples: int = Field(128, ge=1, description="Samples scored by the held-out reward.")
    trackers: list[TrackerName] = Field(
        default_factory=list,
        description="Who is told metrics and grids beside the run's own record, each an extra of the package; wandb "
        "and mlflow are set by their own variables, such as WANDB_MODE=offline and MLFLOW_TRACKING_URI.",
    )
    stop_patience: int = Field(
        0,
        ge=0,
        description="Stop after so many looks in a row at which the held-out reward is below its best, the start's "
        "included, by more than noise (95 % interval over the same samples); 0: never.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given):
        """Folders of runs hold configurations with what `trackers` took the place of."""
        if not isinstance(given, dict) or "tensorboard" not in given or "trackers" in given:
            return given
        rest = {key: value for key, value in given.items() if key != "tensorboard"}
        return rest | {"trackers": ["tensorboard"] if given["tensorboard"] else []}

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"log.trackers={trackers} names one twice: keep it once")
        return trackers


class RunConfig(Section):
    # What other training scripts call a setting, for who types it here.
    called_elsewhere: ClassVar[dict[str, str]] = {
        "mixed_precision": "roles.generator.dtype",
        "learning_rate": "generator_optim.lr",
        "train_batch_size": "data.batch_size",
        "gradient_accumulation_steps": "data.micro_batches",
        "max_train_steps": "run.steps",
        "num_train_epochs": "run.steps",
        "lora_rank": "adapters.generator.rank",
        "lora_alpha": "adapters.generator.alpha",
        "output_dir": "run.folder",
        "checkpointing_steps": "checkpoint.every",
        "max_grad_norm": "generator_optim.grad_clip",
        "pretrained_model_name_or_path": "model.teacher",
        "kl_coef": "objective.reward_scale",
        "cfg_scale": "objective.guidance_scale",
    }

    run: RunSection
    model: ModelSection
    init: InitSection = InitSection()
    data: DataSection
    objective: Objective = Objective()
    generator_optim: Optimiser
    score_optim: Optimiser
    adapters: AdaptersSection = AdaptersSection()
    ema: EmaSection = EmaSection()
    reward: RewardSection = RewardSection()
    roles: RolesSection = RolesSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _consistent(self):
        micro_batches = self.data.micro_batches
        for name in ("generator", "score"):
            role = getattr(self.roles, name)
            if not any(role.fewest <= size <= role.most for size in allowed_group_sizes(micro_batches)):
                sizes = ", ".join(map(str, allowed_group_sizes(micro_batches)))
                fault = (
                    f"={role.workers} does not divide"
                    if isinstance(role.workers, int)
                    else f" from {role.fewest} to {role.most} holds no divisor of"
                )
                raise ValueError(
                    f"roles.{name}.workers{fault} data.micro_batches={micro_batches}: allowed sizes are {sizes}"
                )
        if self.objective.reward_scale > 0 and not self.trained_terms and not self.reward.shared:
            raise ValueError(
                "objective.reward_scale is above 0 but reward.terms has no trained term: add one, name a shared "
                "service by reward.app or reward.urls, or set the scale to 0"
            )
        for key in ("score_timesteps", "divergence_timesteps"):
            low, high = getattr(self.objective, key)
            if low >= high:
                raise ValueError(f"objective.{key}=[{low}, {high}] is empty: low must be below high")
        if self.objective.divergence_timesteps[0] == 0:
            raise ValueError("objective.divergence_timesteps starts at 0, where the score is not defined: start at 1+")
        return self

    @property
    def trained_terms(self) -> list[RewardTerm]:
        return [term for term in self.reward.terms if not term.held_out]

    @property
    def teacher_in_score(self) -> bool:
        """Whether the score model is the teacher beside an adapter, so that its ranks answer for both."""
        return self.adapters.score is not None

    @property
    def teacher_guidance(self) -> float:
        """Guidance scale of the teacher that an evaluation shows beside."""
        given = self.evaluation.teacher_guidance
        return self.objective.guidance_scale if given is None else given

    @property
    def micro_batch_size(self) -> int:
        return self.data.batch_size // self.data.micro_batches

    @property
    def path(self) -> Path:
        """The run's folder on this machine's disk; of one in a store, the copy that is worked on here."""
        return copy_of(self.place) if is_remote(self.place) else Path(self.run.folder) / self.run.name

    @property
    def place(self) -> str:
        """The run's folder as a person knows it: a path or a URL."""
        return f"{self.run.folder}/{self.run.name}"

    @property
    def checkpoints(self) -> str:
        """Path or URL of the run's checkpoints."""
        beside = self.place if is_remote(self.place) else str(self.path.resolve())
        return self.checkpoint.url or f"{beside}/checkpoints"


def allowed_group_sizes(micro_batches: int) -> list[int]:
    """The divisors of M, ascending: the sizes that a group of ranks may have."""
    return [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The configuration of a run in the YAML file `path`, with its overrides. Raises UserError with one sentence."""
    return load_settings(path, overrides, RunConfig)


def settings_of_run(run: str) -> list[str]:
    """The settings that start a run where another one ended: its folder's generator and score model."""
    run = run.rstrip("/")
    return [f"model.generator={run}/pipeline", "init.score=checkpoint", f"init.score_checkpoint={run}"]
