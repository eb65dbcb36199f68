"""What one reward model of a weighted sum is, in the configuration of a run and of a reward service alike.

A `RewardTerm` is a model and its part in the sum, a `SumTerm`, which a service can change while it runs.
"""

from collections.abc import Sequence

from pydantic import Field, model_validator

from dipp_ray.settings import Count, ModelPath, Positive, Section


class SumTerm(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$", description="Name in metrics and replies.")
    weight: float = Field(1.0, description="Weight in the sum.")
    held_out: bool = Field(False, description="Scored and reported; enters no sum and is never trained on.")
    mean: float = Field(0.0, description="Subtracted from the raw score, in its units.")
    deviation: Positive = Field(1.0, description="Divides the score after that, in the raw score's units.")
    hinge: float | None = Field(None, description="-max(0, hinge - s) in place of the standardised score s, as ReFL.")
    cap: float | None = Field(None, description="min(s, cap) in place of the standardised score s.")
    required: bool = Field(True, description="If false, calls are answered without this term where its model fails.")

    @model_validator(mode="after")
    def _one_bound(self):
        if self.hinge is not None and self.cap is not None:
            raise ValueError(f"reward term '{self.name}' has both hinge and cap, which bend alike: keep one")
        return self


class ServerSection(Section):
    """A server that scores pictures, and knows no gradient."""

    url: str = Field(
        pattern=r"^https?://[^\s/]+\S*$",
        description="Where `{images, prompts}` is posted as JSON, the images as base64 of PNG files.",
    )
    field: str | None = Field(
        "scores", description="Where the answer has its list of numbers, one an image; null: the answer is the list."
    )
    rows: Count = Field(16, description="Images of one request.")
    deadline_s: Positive = Field(60.0, description="Longest wait for the answer to one request, seconds, with retries.")


class RewardTerm(SumTerm):
    model: str = Field(description="A name that `rewards/loading.py` knows, such as `clip`, or `package.module:Class`.")
    folder: ModelPath | None = Field(None, description="Folder of its weights, or a hub id.")
    server: ServerSection | None = Field(None, description="Of `model: server`: who scores, and how it is asked.")

    @model_validator(mode="after")
    def _server_named(self):
        if (self.model == "server") != (self.server is not None):
            raise ValueError(
                f"reward term '{self.name}': model: server and server.url go together: give both or neither"
            )
        return self

    @property
    def part(self) -> SumTerm:
        """Its part in the sum, without the model."""
        return SumTerm(**{name: getattr(self, name) for name in SumTerm.model_fields})


def unique_names(entries: Sequence, where: str) -> None:
    """Raise ValueError where two entries, such as terms, bear one name."""
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{where} has two entries named '{twice}': rename one")
