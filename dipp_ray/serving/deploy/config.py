"""The configuration of a reward service: its models, where they run, what it accepts, who may call."""

from ipaddress import ip_address

from pydantic import Field, model_validator

from dipp_ray.config import RoleSection
from dipp_ray.rewards.terms import RewardTerm, unique_names
from dipp_ray.serving.contract.limits import LimitsSection
from dipp_ray.serving.contract.records import VAE
from dipp_ray.serving.core.queue import QueueSection
from dipp_ray.settings import NAME, Count, LocalPath, ModelPath, Positive, Section


class Deployed(Section):
    """What has replicas."""

    name: str
    role: RoleSection = Field(RoleSection(), description="Resources of one replica: CPUs, GPU share, kind.")
    replicas: Count | tuple[Count, Count] = Field(
        1,
        description="Replicas, or [min, max]: scaled with the load. The most of any model is how many "
        "batches run at once.",
    )

    @model_validator(mode="after")
    def _replicas_in_order(self):
        if self.least_replicas > self.most_replicas:
            raise ValueError(f"replicas={list(self.bounds)} of '{self.name}': write [min, max]")
        if self.role.workers != 1:
            raise ValueError(f"role.workers of '{self.name}' has no effect: set its replicas")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    @property
    def least_replicas(self) -> int:
        return self.bounds[0]

    @property
    def most_replicas(self) -> int:
        return self.bounds[1]


class ServedVae(Deployed):
    """A VAE, and one deployment of it that decodes for all models."""

    name: str = Field(pattern=VAE, description="What callers name it by, such as the family of their latents.")
    folder: ModelPath = Field(description="Folder or hub id of a pipeline or VAE.")


class ServedModel(RewardTerm, Deployed):
    """A reward model and one deployment of it."""

    @property
    def term(self) -> RewardTerm:
        """What enters the sum, without the placement."""
        return RewardTerm(**{name: getattr(self, name) for name in RewardTerm.model_fields})


class HttpSection(Section):
    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback tokens are required.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    tokens: LocalPath | None = Field(
        None,
        description="File of `name:token` lines, one a trainer; DIPP_RAY_REWARD_TOKENS adds to it.",
    )

    @property
    def on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class ServiceConfig(Section):
    name: str = Field("rewards", pattern=NAME, description="Name of the Serve application (`reward.app`).")
    models: list[ServedModel] = Field(min_length=1, description="Reward models, and where each runs.")
    vae: ModelPath | None = Field(
        None,
        description="Folder or hub id of a pipeline or VAE that decodes latents, in each model's replica; null: images "
        "only, or `vaes`.",
    )
    vaes: list[ServedVae] = Field(
        default_factory=list,
        description="VAEs of one family or several, each in replicas of its own that decode once for all models.",
    )
    checkpoint_decoder: bool = Field(False, description="Recompute the decoder's activations: less memory, more time.")
    batch_rows: Count = Field(32, description="Rows of one forward pass: chunk of a call, bound of a merged batch.")
    deterministic: bool = Field(False, description="Calls are never merged, so a caller's bits are its own.")
    optional_wait_s: Positive = Field(
        20.0,
        description="Longest wait for a model that is not required, seconds, and at most half of what a call has; it "
        "is left alone 5 times as long then.",
    )
    stuck_s: Positive = Field(600.0, description="A batch that takes longer makes its replica unhealthy, seconds.")
    shutdown_s: Positive = Field(60.0, description="Longest wait at the end for calls that were accepted, seconds.")
    wait_s: Positive = Field(600.0, description="Longest wait for the replicas at the start, seconds.")
    http: HttpSection = HttpSection()
    limits: LimitsSection = LimitsSection()
    queue: QueueSection = QueueSection()

    @model_validator(mode="after")
    def _consistent(self):
        unique_names(self.models, "models")
        unique_names(self.vaes, "vaes")
        if self.vae and self.vaes:
            raise ValueError("vae is decoded in each model's replica, vaes once for all models: keep one of both")
        if self.queue.rows < self.limits.rows:
            raise ValueError(
                f"queue.rows={self.queue.rows} is below limits.rows={self.limits.rows}: such a call could never be "
                "accepted; raise the one or lower the other"
            )
        if self.queue.mib < self.limits.body_mib:
            raise ValueError(
                f"queue.mib={self.queue.mib:g} is below limits.body_mib={self.limits.body_mib:g}: such a body could "
                "never be accepted; raise the one or lower the other"
            )
        return self
