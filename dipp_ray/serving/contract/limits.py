"""The most that one call may be."""

from pydantic import Field

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.records import Space
from dipp_ray.settings import Count, Positive, Section


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


def check_limits(shape: tuple[int, ...], prompts: list[str], space: Space, limits: LimitsSection) -> None:
    """Raise CallError where rows, sides or prompts are beyond the limits."""
    if shape[0] > limits.rows:
        raise CallError(f"{shape[0]} rows were sent: at most {limits.rows} in one call")
    side = limits.image_side if space == "images" else limits.latent_side
    if max(shape[2:]) > side:
        raise CallError(f"{space} of {shape[2]} x {shape[3]} were sent: at most {side} a side")
    if max(shape[2:]) > limits.aspect * min(shape[2:]):
        raise CallError(
            f"{space} of {shape[2]} x {shape[3]} were sent: one side is at most {limits.aspect:g} times the other"
        )
    if (longest := max(map(len, prompts))) > limits.prompt_chars:
        raise CallError(f"a prompt of {longest} characters was sent: at most {limits.prompt_chars}")
