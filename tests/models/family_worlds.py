"""A family's tiny pipeline beside what this package makes of its folder, and the pipeline's own prediction at x_t.

The comparison is independent: x_t goes into the pipeline's `__call__`, and what its own loop hands to the scheduler
after guidance comes out; x_0 is taken from it by the textbook's formula with the scheduler's own table.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from dipp_ray.alignment.questions import predict_guided
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.models.text import TextEncoder
from tiny_families import FLOW as FLOWS
from tiny_families import PROMPTS, save_family

CPU = torch.device("cpu")
SQUARE, OBLONG = (16, 16), (16, 24)  # pixels; two a latent
# What each pipeline's call needs to run at these sizes, written down here and not asked of the family.
SMALL = {"use_resolution_binning": False}
FLUX = {"max_sequence_length": 24}
CALLS: dict[str, dict] = {
    **{name: {} for name in ("sd15", "sd21v", "sdxl", "sd3", "sd3_without_t5")},
    **{name: SMALL for name in ("pixart", "pixart1024", "pixartsigma", "sana")},
    "sanasprint": SMALL | {"intermediate_timesteps": None},
    **{name: FLUX for name in ("flux", "schnell")},
    **{name: {} for name in ("qwenimage", "zimage")},
}
NAMES = list(CALLS)
ABSENT: dict[str, dict] = {"sd3_without_t5": {"text_encoder_3": None, "tokenizer_3": None}}
FLOW = tuple(name for name in NAMES if name in FLOWS)
PACKED = ("flux", "schnell", "qwenimage")


@dataclass
class World:
    """One family's folder, diffusers' pipeline of it, and this package's network and text encoder."""

    name: str
    folder: Path
    pipeline: DiffusionPipeline
    network: Denoiser
    text: TextEncoder

    @property
    def flow(self) -> bool:
        return self.name in FLOW

    def frame(self, resolution) -> Family:
        return read_frame(self.folder, resolution=size(self.name, resolution))


def size(name: str, resolution: tuple[int, int]) -> tuple[int, int]:
    """The resolution in what this family's pipeline takes: SANA's takes multiples of 32 alone."""
    if name not in ("sana", "sanasprint"):
        return resolution
    return {SQUARE: (32, 32), OBLONG: (32, 64)}[resolution]


def world_of(name: str, folder: Path) -> World:
    save_family(name, folder)
    pipeline = DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False, **ABSENT.get(name, {}))
    pipeline.set_progress_bar_config(disable=True)
    frame = read_frame(folder, resolution=size(name, SQUARE))
    return World(
        name, folder, pipeline, load_denoiser(folder, "fp32", frame=frame).eval(), TextEncoder(folder, CPU, frame=frame)
    )


def broken(frame: Family, **members) -> Family:
    """The same folder read by a family of which some methods are others."""
    kind = type("Broken", (type(frame),), members)
    return kind(**{field.name: getattr(frame, field.name) for field in fields(frame)})


def recording(scheduler, t):
    """A scheduler of the same class whose only time is t, which changes nothing and remembers the prediction."""

    class Recording(type(scheduler)):
        order, init_noise_sigma = 1, 1.0

        def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None, **angles):
            # Sprint's are given with the last, at which nothing is predicted any more.
            self.timesteps = torch.tensor([t, 0.0] if angles else [t])

        def set_begin_index(self, begin_index=0):
            pass

        def scale_model_input(self, sample, timestep=None):
            return sample

        def step(self, model_output, timestep, sample, **unused):
            self.seen = model_output
            return sample, sample

    return Recording.from_config(scheduler.config)


def alpha_sigma(world: World, t: int) -> tuple[float, float]:
    if world.flow:
        return 1 - t / 1000, t / 1000
    squared = world.pipeline.scheduler.alphas_cumprod[t].double().item()
    return squared**0.5, (1 - squared) ** 0.5


def guidance(name: str, scale: float) -> dict:
    """The arguments by which this pipeline guides with alpha_cfg = scale, in its own words."""
    if name in ("flux", "schnell"):  # what the network is told, and beside it two branches
        return {"guidance_scale": 3.5, "true_cfg_scale": scale, "negative_prompt": ""}
    if name == "zimage":
        return {"guidance_scale": scale - 1}
    return {"guidance_scale": scale}


def own_prediction(world: World, x_t, t: int, scale: float):
    """x_0 [B, C, h, w] in fp64 as the pipeline predicts it at x_t and t, guided by alpha_cfg = scale >= 1."""
    if world.name == "sanasprint":
        return by_branches(world, x_t, t, scale)
    if world.name != "qwenimage":
        return called(world, PROMPTS, x_t, t, guidance(world.name, scale))
    # Its guided prediction is bent to the length of the conditional one: the branches are taken one by one.
    branches = (called(world, prompts, x_t, t, {"true_cfg_scale": 1.0}) for prompts in ([" "] * 3, PROMPTS))
    null, conditional = branches
    return null + scale * (conditional - null)


def by_branches(world: World, x_t, t: int, scale: float):
    """The same of SANA-Sprint, whose pipeline has one branch, and goes by x = cos(angle) x_0 + sin(angle) z."""
    pipeline, scheduler = world.pipeline, world.pipeline.scheduler
    (batch, _, h, w), sigma = x_t.shape, torch.tensor(t / 1000, dtype=torch.float64)
    angle = torch.atan2(sigma, 1 - sigma)
    x = x_t.double() * (angle.sin() + angle.cos())
    found = []
    for prompts, more in (([""] * batch, {"complex_human_instruction": None}), (PROMPTS[:batch], {})):
        pipeline.scheduler = recording(scheduler, angle.item())
        try:
            pipeline(
                list(prompts), latents=x.float(), height=2 * h, width=2 * w, num_inference_steps=1, guidance_scale=4.5,
                output_type="latent", **CALLS[world.name], **more,
            )  # fmt: skip
            found.append(angle.cos() * x - angle.sin() * pipeline.scheduler.seen.double() / 0.5)  # sigma_data
        finally:
            pipeline.scheduler = scheduler
    null, conditional = found
    return null + scale * (conditional - null)


def called(world: World, prompts: list[str], x_t, t: int, arguments: dict):
    """The same, for one call of the pipeline."""
    pipeline, teacher = world.pipeline, world.pipeline.scheduler
    batch, channels, h, w = x_t.shape
    packed = world.name in PACKED
    pipeline.scheduler = recording(teacher, float(t) if world.flow else t)
    try:
        pipeline(
            prompts[:batch], latents=pipeline._pack_latents(x_t, batch, channels, h, w) if packed else x_t,
            height=2 * h, width=2 * w, num_inference_steps=1, output_type="latent", **CALLS[world.name], **arguments,
        )  # fmt: skip
        seen = pipeline.scheduler.seen
    finally:
        pipeline.scheduler = teacher
    if packed:
        seen = pipeline._unpack_latents(seen, 2 * h, 2 * w, pipeline.vae_scale_factor).reshape(x_t.shape)
    alpha, sigma = alpha_sigma(world, t)
    output, x_t = seen.double(), x_t.double()
    if world.flow:
        return x_t - sigma * output  # output = eps - x_0
    if world.name == "sd21v":
        return alpha * x_t - sigma * output  # v = alpha eps - sigma x_0
    return (x_t - sigma * output) / alpha


def own_null(world: World, x_t, t: int):
    """The null branch's prediction: what is left of a guided one when the conditional part is taken away."""
    guided, conditional = own_prediction(world, x_t, t, 4.5), own_prediction(world, x_t, t, 1.0)
    return (guided - 4.5 * conditional) / (1 - 4.5)


def difference(world: World, frame: Family, t: int, scale: float, batch: int) -> float:
    """Largest difference between the guided x_0 by this package's questions and the pipeline's, relative to x_0."""
    generator = torch.Generator().manual_seed(1000 * batch + t)
    x0, eps = torch.randn(2, batch, *frame.latent_shape, generator=generator)
    alpha, sigma = alpha_sigma(world, t)
    text = TextEncoder(world.folder, CPU, frame=frame) if type(frame).__name__ == "Broken" else world.text
    with torch.no_grad():
        ours = predict_guided(
            Denoiser(world.network.network, frame, torch.float32), frame.diffusion, x0, text(PROMPTS[:batch]),
            text([""]), torch.full((batch,), t), eps, scale,
        )  # fmt: skip
        x_t = (alpha * x0.double() + sigma * eps.double()).float()
        theirs = own_null(world, x_t, t) if scale == 0 else own_prediction(world, x_t, t, scale)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
