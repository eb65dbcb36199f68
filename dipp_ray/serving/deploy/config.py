"""The configuration of a reward service: its models, where they run, what it accepts, who may call."""

from ipaddress import ip_address
from typing import Annotated

from pydantic import Field, model_validator

from dipp_ray.config import RoleSection
from dipp_ray.rewards.terms import RewardTerm, SumTerm, unique_names
from dipp_ray.settings import Positive, Section

Count = Annotated[int, Field(ge=1)]


class ServedModel(RewardTerm):
    """A reward model and one deployment of it."""

    role: RoleSection = Field(RoleSection(), description="Resources of one replica: CPUs, GPU share, kind.")
    replicas: Count | tuple[Count, Count] = Field(
        1,
        description="Replicas, or [min, max]: scaled with the load. The most of any model is how many "
        "batches run at once.",
    )

    @model_validator(mode="after")
    def _replicas_in_order(self):
        if isinstance(self.replicas, tuple) and self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas={list(self.replicas)} of model '{self.name}': write [min, max]")
        if self.role.workers != 1:
            raise ValueError(f"role.workers of model '{self.name}' has no effect: set its replicas")
        return self

    @property
    def most_replicas(self) -> int:
        return self.replicas if isinstance(self.replicas, int) else self.replicas[1]

    @property
    def term(self) -> RewardTerm:
        """What enters the sum, without the placement."""
        return RewardTerm(**{name: getattr(self, name) for name in RewardTerm.model_fields})


class HttpSection(Section):
    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback tokens are required.")
    port: int = Field(8000, ge=1, le=65535)
    tokens: str | None = Field(
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


class LimitsSection(Section):
    """Checked before anything of that size is allocated."""

    body_mib: Positive = Field(64.0, description="Largest body of an HTTP request, MiB.")
    header_kib: Positive = Field(1024.0, description="Largest header of a safetensors body, KiB; prompts lie in it.")
    upload_s: Positive = Field(60.0, description="Longest time in which the body of a request comes, seconds.")
    rows: Count = Field(256, description="Images or latents of one call.")
    image_side: Count = Field(2048, description="Longest side of an image, pixels.")
    latent_side: Count = Field(256, description="Longest side of a latent.")
    aspect: float = Field(8.0, ge=1, description="Longest side over the shortest: models resize the short one.")
    prompt_chars: Count = Field(4000, description="Longest prompt, characters.")


class QueueSection(Section):
    rows: Count = Field(1024, description="Rows that one trainer may have waiting; more are answered 503.")
    mib: Positive = Field(1024.0, description="What may wait of all trainers together, MiB.")


class UserConfig(Section):
    """What the ingress changes while it runs: the sum, and who may call."""

    terms: list[SumTerm] = Field(min_length=1, description="Each deployed model's part in the sum.")
    tokens: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], str] = Field(
        description="SHA-256 of each token in hex, to its trainer's name."
    )


class ServiceConfig(Section):
    name: str = Field(
        "rewards", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the Serve application (`reward.app`)."
    )
    models: list[ServedModel] = Field(min_length=1)
    vae: str | None = Field(None, description="Folder of a pipeline or a VAE that decodes latents; null: images only.")
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
