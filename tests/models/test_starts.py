"""How a generator is read is settled once: by what was written, its folder, its published name; and it is read so.

The formulas are written out here, by the scheduler's own table: nothing of `diffusion/` is called for them.
"""

import pytest
import torch
from diffusers import DDPMScheduler
from start_worlds import SIZES, lay

from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.models.families.published import TABLE
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.models.published import published
from dipp_ray.training.checks import check
from dipp_ray.training.plain import plain_loop

SD_TABLE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.double()
LINEAR = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").alphas_cumprod.double()


# -- published names: family, where its weights lie, and x0 by hand from the network's output at (input, time) ---------


def unit_eps(t, table=SD_TABLE):
    a = table[t]
    return 1.0, t, lambda z, output: (z - (1 - a).sqrt() * output) / a.sqrt()


def sigma_eps(t, table=SD_TABLE):
    a = table[t]
    return (1 - a).sqrt().item(), t, lambda z, output: ((1 - a).sqrt() * z - (1 - a).sqrt() * output) / a.sqrt()


FLOW_END = (1.0, 1000, lambda z, output: z - output)
LIGHTNING = ((1 - SD_TABLE[999]).sqrt().item(), 999, lambda z, output: output)
PLACES = {
    "tianweiy/DMD2/dmd2_sdxl_1step_unet.bin": ("sdxl", unit_eps(399)),
    "models/dmd2_sdxl_1step_unet_fp16.bin": ("sdxl", unit_eps(399)),
    "XDG-XHS/dipp_1step": ("sdxl", unit_eps(399)),
    "models--XDG-XHS--sim_1step/snapshots/0a1b": ("sdxl", unit_eps(399)),
    "ByteDance/Hyper-SD/Hyper-SDXL-1step-Unet.safetensors": ("sdxl", unit_eps(800)),
    "nitrosd-realism_unet.safetensors": ("sdxl", unit_eps(249)),
    "nitrosd-vibrant_unet.safetensors": ("sdxl", unit_eps(499)),
    "sdxl_lightning_1step_unet_x0.safetensors": ("sdxl", LIGHTNING),
    "stabilityai/sdxl-turbo": ("sdxl", sigma_eps(999)),
    "stabilityai/sd-turbo": ("sd21v", sigma_eps(999)),
    "thuanz123/swiftbrush": ("sd15", unit_eps(999)),
    "XCLIU/instaflow_0_9B_from_sd_1_5": ("sd15", (1.0, 1000, lambda z, output: z + output)),
    "xcliu/instaflow_0_9b_from_sd_1_5/unet": ("sd15", (1.0, 1000, lambda z, output: z + output)),
    "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512": ("pixart", unit_eps(400, LINEAR)),
    "black-forest-labs/FLUX.1-schnell": ("schnell", FLOW_END),
    "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers": ("sanasprint", FLOW_END),
    "stabilityai/stable-diffusion-3.5-large-turbo": ("sd3", FLOW_END),
    "Tongyi-MAI/Z-Image-Turbo": ("zimage", FLOW_END),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_published_generator_is_read_as_it_was_trained(pairs, config, tmp_path, place):
    family, (factor, t_star, x0_of) = PLACES[place]
    teacher, other = pairs(family)
    frame = read_frame(teacher, resolution=SIZES.get(family, (16, 16)))
    run = config(family, lay(tmp_path / place, other, frame.network_part))
    loop = plain_loop(run, check(run))
    draws = Draws(7, EVALUATION, 0, range(2))
    with torch.no_grad():
        _, _, embeds, x0 = loop.sample(draws, graph=False)
        z = draws.normal("z", frame.latent_shape)
        output = load_denoiser(other, "fp32", frame=frame)(
            (factor * z.double()).float(), torch.tensor([t_star] * 2), embeds
        )
    expected = x0_of(z.double(), output.double())
    assert ((x0 - expected).abs().max() / expected.abs().max()).item() < 1e-6
    assert all(torch.tensor(value).isfinite() for value in loop.step(0).values())


def test_every_entry_that_is_taken_up_is_tested():
    tested = {published(place).name for place in PLACES}
    assert tested == {entry.name for entry in TABLE if entry.why_not is None}


def test_a_revision_is_no_part_of_a_name():
    for path in (
        "XDG-XHS/dipp_1step@main",
        "tianweiy/DMD2/dmd2_sdxl_1step_unet.bin@0a/1b",
        "/a@b/dmd2_sdxl_1step_unet.bin",
    ):
        assert published(path).t_star == 399, path


def test_names_that_are_none():
    for path in (
        "/models/DMD2/other.bin",
        "XDG-XHS",
        "dipp_1step",
        "pytorch_model.bin",
        "",
        "/",
        "my/sdxl-turbo-tuned",
    ):
        assert published(path) is None, path
