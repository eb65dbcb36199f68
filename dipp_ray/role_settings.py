"""The settings of the roles: how many workers of each, on what, and in which precision."""

from typing import Literal

from pydantic import Field, model_validator

from dipp_ray.settings import Count, Positive, Section


class Between(Section):
    """As many as the cluster can give, from min to max."""

    min: Count = Field(description="The fewest.")
    max: Count = Field(description="The most.")

    @model_validator(mode="after")
    def _in_order(self):
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


class RoleSection(Section):
    workers: Count | Between = Field(
        1,
        description="Ranks of a group, or actors of a pool; {min: 1, max: 4}: as many as there is room for, which may "
        "change while the run goes on.",
    )
    cpus: float = Field(0.25, ge=0, description="Ray CPUs of one worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs of one worker; a fraction shares a GPU with another role.")
    accelerator: str | None = Field(None, description="GPU kind as Ray names it, such as H100.")
    labels: dict[str, str] = Field(default_factory=dict, description="Node labels, such as role: teacher.")
    resources: dict[str, float] = Field(default_factory=dict, description="Custom Ray resources of one worker.")
    threads: int = Field(1, ge=1, description="CPU threads of torch in one worker.")
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Precision of the network's forward and backward.")

    @model_validator(mode="after")
    def _whole_or_fraction(self):
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus={self.gpus}: more than one GPU must be a whole number")
        return self

    @property
    def fewest(self) -> int:
        return self.workers.min if isinstance(self.workers, Between) else self.workers

    @property
    def most(self) -> int:
        return self.workers.max if isinstance(self.workers, Between) else self.workers


class NetworkRoleSection(RoleSection):
    channels_last: bool = Field(
        False,
        description="UNets: a pixel's channels lie side by side, which convolutions are faster with on most GPUs.",
    )
    compile: bool = Field(
        False, description="torch.compile of the network: minutes at its first call, then faster; not at ZeRO 3."
    )


class TrainedRoleSection(NetworkRoleSection):
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    persistence_threshold: int = Field(
        100_000, ge=0, description="Parameters smaller than this stay whole at ZeRO 3, in elements."
    )
    frozen: Literal["fp32", "bf16"] | None = Field(
        None,
        description="In what the weights beside an adapter are kept; null: as dtype. bf16 needs dtype bf16, which "
        "rounds them so at each use: it changes no result, and halves their memory.",
    )
    offload: Literal["optimizer", "weights"] | None = Field(
        None,
        description="What lies in the node's memory in the place of the GPU's: moments, the copy of the weights that "
        "is stepped, and the average (ZeRO 1 to 3), or the weights too (ZeRO 3).",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    recompute: bool = Field(
        False, description="Generator: sample without a graph, run the forward again at the backward. Always at ZeRO 3."
    )

    @property
    def frozen_dtype(self) -> str:
        return self.frozen or self.dtype

    @model_validator(mode="after")
    def _frozen_as_read(self):
        if self.frozen == "bf16" and self.dtype == "fp32":
            raise ValueError(
                "frozen=bf16 would round what arithmetic in fp32 reads: set dtype=bf16 too, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _stage_fits(self):
        least = {"optimizer": 1, "weights": 3}.get(self.offload or "", 0)
        if self.zero_stage < least:
            raise ValueError(
                f"offload={self.offload} needs zero_stage={least} or above: DeepSpeed moves what it divides"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile=true at zero_stage=3: weights are gathered between the operations: leave it out")
        return self


class RolesSection(Section):
    generator: TrainedRoleSection = TrainedRoleSection()
    score: TrainedRoleSection = TrainedRoleSection()
    teacher: NetworkRoleSection = NetworkRoleSection()
    reward: RoleSection = RoleSection()
    text: RoleSection = RoleSection(cpus=0.1)
    ports: tuple[int, int] = Field((20000, 30000), description="Range of rendezvous ports, below the ephemeral one.")
    wait_s: Positive = Field(600.0, description="Longest wait for the cluster to give what the roles ask, seconds.")
    step_timeout_s: Positive = Field(1800.0, description="Longest wait for one result inside a step, seconds.")
    heartbeat_s: Positive = Field(
        30.0, description="A process that gives no sign of life for so long, whatever it is busy with, hangs; seconds."
    )
    spares: bool = Field(
        False,
        description="Keep a process ready beside each rank, its libraries loaded, to take the place of a lost one "
        "within seconds; of groups without GPUs alone.",
    )
    failures: int = Field(
        3,
        ge=0,
        description="Faults in a row, with no step finished between them, that a run recovers from; lost nodes are not "
        "counted.",
    )

    @model_validator(mode="after")
    def _ports_in_order(self):
        if not 1024 <= self.ports[0] < self.ports[1] <= 65535:
            raise ValueError(f"roles.ports={list(self.ports)} is no range of ports: write [low, high] in 1024..65535")
        return self

    @model_validator(mode="after")
    def _single(self):
        if self.reward.workers != 1:
            raise ValueError(f"roles.reward.workers has no effect: use reward.replicas={self.reward.workers}")
        if self.text.workers != 1:
            raise ValueError(
                f"roles.text.workers={self.text.workers} has no effect, for one worker encodes all prompts: remove it, "
                "or give that one more with roles.text.threads or roles.text.gpus"
            )
        return self

    @model_validator(mode="after")
    def _one_rank_a_gpu(self):
        for name in ("generator", "score"):
            role = getattr(self, name)
            if role.most > 1 and 0 < role.gpus < 1:
                raise ValueError(
                    f"roles.{name}: {role.most} ranks at {role.gpus} GPU each could share one GPU, which NCCL "
                    f"refuses: give roles.{name}.gpus=1, or workers=1 (fractions are for different roles)"
                )
        return self
