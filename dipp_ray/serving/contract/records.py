"""The whole contract between the reward service and its callers over HTTP: every record; `wire.py` has their bytes.

A call is `POST /v1/score`, in one of two forms that say the same:

    application/x-safetensors   one tensor `x`, with a `ScoreOptions` record as JSON under `request` in the metadata;
                                answered by tensors `reward`, `scores/NAME`, `gradient`, and `ReplyRecord` under `reply`
    application/json            a `JsonCall`, answered by a `JsonReply`

Rows are independent: row i of every answer belongs to row i of what was sent, and `gradient` row i is the derivative of
reward i by x_i, in the units of what was sent (for uint8 images: of pixels in [0, 1]). Values that are not finite are
returned as they are (null in JSON). No torch here: callers do without it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SAFETENSORS, JSON = "application/x-safetensors", "application/json"
REQUEST, REPLY = "request", "reply"  # keys of the safetensors metadata
TRAINER = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
VAE = r"^[a-z][a-z0-9_.-]{0,63}$"
MOST_AXES = 8
MIB = 2**20
PROMPTS_SHARE = 0.1  # of a body, at least
Space = Literal["latents", "images"]
WireDtype = Literal["fp32", "fp16"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ScoreOptions(Record):
    """What is asked about the rows that are sent."""

    prompts: list[str] = Field(min_length=1, description="One prompt a row.")
    space: Space = Field("images", description="`images` in [0, 1], or `latents` in the diffusion model's scale.")
    vae: str | None = Field(
        None, pattern=VAE, description="Which VAE made the latents, by its name in `/v1/models`; null: the only one."
    )
    gradient: bool = Field(False, description="Return the gradient of the weighted reward too.")
    held_out: bool = Field(True, description="Score the models that are held out of the sum too.")
    reply_dtype: WireDtype = Field("fp32", description="Of the returned gradient; fp16 comes with a scale a row.")
    deadline_s: float = Field(60.0, gt=0, le=86400, description="Seconds after which nobody waits for the answer.")
    trainer: str = Field("anonymous", pattern=TRAINER, description="Who calls, where no token says it.")


class TensorRecord(Record):
    """A tensor in JSON: row-major, little-endian, in base64."""

    dtype: Literal["fp32", "fp16", "uint8"]
    shape: list[Annotated[int, Field(ge=1, le=2**31)]] = Field(
        min_length=1, max_length=MOST_AXES, json_schema_extra={"minItems": 4, "maxItems": 4}
    )
    data: str = Field(min_length=1)


class JsonCall(ScoreOptions):
    """A call for people and scripts: `images` as base64 of PNG or JPEG files of one size, or the tensor `x`."""

    images: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    x: TensorRecord | None = None

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.images is None) == (self.x is None):
            raise ValueError("give either images or x")
        if self.images is not None and self.space != "images":
            raise ValueError("files of images are images: leave space out, or send latents as x")
        if self.reply_dtype != "fp32":
            raise ValueError("JSON is answered in fp32: leave reply_dtype out, or send safetensors")
        return self


class ReplyRecord(Record):
    """What is returned beside the tensors."""

    held_out: list[str] = Field(description="Models that were scored and did not enter the sum.")
    failed: dict[str, str] = Field(description="Models that are not required and did not answer, and why.")


class JsonReply(ReplyRecord):
    """The answer to a `JsonCall`; null stands where a value is not finite."""

    reward: list[float | None] = Field(description="The weighted sum, one a row.")
    scores: dict[str, list[float | None]] = Field(description="Every model's raw score, held-out ones too.")
    gradient: TensorRecord | None = None


class ErrorBody(Record):
    code: str = Field(description="Of the kind of refusal, for programs.")
    message: str = Field(description="What is wrong and what to do, in one sentence.")


class ErrorReply(Record):
    """Every answer but 200; `/healthz` has its own."""

    error: ErrorBody


class ModelRecord(Record):
    """A served reward model and its part in the sum: see the configuration's reward terms."""

    name: str
    model: str
    differentiable: bool = Field(description="Whether it has a gradient; without one it can only be scored.")
    weight: float
    held_out: bool
    mean: float
    deviation: float
    hinge: float | None
    cap: float | None
    required: bool


class LimitsRecord(Record):
    """The most that a call may be: MiB, KiB and seconds of its body; rows, pixels, a latent's side, the long side over
    the short one, characters of a prompt."""

    body_mib: float
    header_kib: float
    upload_s: float
    rows: int
    image_side: int
    latent_side: int
    aspect: float
    prompt_chars: int

    def rows_of(self, row_bytes: int) -> int:
        """The most rows of so many bytes that one call may hold, with room in its body for the prompts."""
        return max(1, min(self.rows, int(self.body_mib * MIB * (1 - PROMPTS_SHARE)) // row_bytes))


class VaeRecord(Record):
    """A VAE of the service, and whose latents it decodes."""

    latent_channels: int
    latents: str = Field(description="What its latents are: class, channels, pixels a latent, scale and shift.")


class ServiceRecord(Record):
    """`GET /v1/models`: what this service is."""

    name: str
    version: str = Field(description="Of dipp-ray.")
    deterministic: bool
    batch_rows: int
    latent_channels: int | None = Field(description="null: no VAE, images only; or several, which `vaes` names.")
    vaes: dict[str, VaeRecord] = Field(
        default_factory=dict, description="VAEs that have a name, which a call gives as `vae`; left out where none has."
    )
    models: list[ModelRecord]
    limits: LimitsRecord

    def to_plain(self) -> dict:
        """As a record of plain values; without what younger services alone know, where it says nothing."""
        return self.model_dump(exclude_defaults=True)


class HealthRecord(Record):
    """`GET /healthz`. `ok`: every required model can score, and is finite."""

    ok: bool
    models: dict[str, str] = Field(description="`ok`, or what is wrong.")
