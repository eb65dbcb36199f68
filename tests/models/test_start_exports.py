"""Every reading of a generator that is accepted is exported exactly, and read back as exactly the same generator."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from family_worlds import OBLONG, SQUARE, world_of

from dipp_ray.errors import UserError
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.plain_pipeline import call_arguments
from dipp_ray.models.schedulers import FLOW_STEP_SIGMA
from dipp_ray.training.checks import check
from settings import tiny_config
from tiny import prompt_file
from tiny_families import PROMPTS

NAMES = ("sd15", "sdxl", "pixart", "pixartsigma")
FLOWS = ("flow_prediction", "negative_flow")
READINGS = [
    *[(440, convention, kind) for kind in ("epsilon", "sample", "v_prediction") for convention in ("unit", "sigma")],
    *[(1000, "unit", kind) for kind in FLOWS],
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    made, folder = {}, tmp_path_factory.mktemp("start-exports")

    def world(name):
        if name not in made:
            made[name] = world_of(name, folder / name)
        return made[name]

    return world


@torch.no_grad()
def by_hand(world, network, frame, reading, prompts):
    """z and x0, by the formulas and the table of the world's own scheduler."""
    t_star, convention, kind = reading
    z = torch.randn(len(prompts), *frame.latent_shape, generator=torch.Generator().manual_seed(3))
    t = torch.full((len(z),), t_star)
    if kind in FLOWS:
        output = network(z, t, world.text(prompts)).double()
        return z, z - output if kind == "flow_prediction" else z + output
    squared = DDPMScheduler.from_config(world.pipeline.scheduler.config).alphas_cumprod[t_star].double()
    a, s = squared.sqrt(), (1 - squared).sqrt()
    x = (s * z.double()).float() if convention == "sigma" else z
    output, x = network(x, t, world.text(prompts)).double(), x.double()
    return z, {"epsilon": (x - s * output) / a, "sample": output, "v_prediction": a * x - s * output}[kind]


def exported(world, frame, reading, out):
    """The export of a generator with other weights than the teacher's, and the trainer's own network with them."""
    network = load_denoiser(world.folder, "fp32", frame=frame).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    return export_pipeline(frame, network.network.state_dict(), one_step_of(frame, *reading), out), network


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_reading_is_the_formula(worlds, name, reading, tmp_path):
    world = worlds(name)
    frame = world.frame(OBLONG)
    out, network = exported(world, frame, reading, tmp_path / "pipeline")
    z, x0 = by_hand(world, network, frame, reading, PROMPTS)
    error = export_error(out, PROMPTS, z, x0.numpy())
    print(f"{name} {reading}: {error:.1e}")
    assert error < 1e-5
    again = load_denoiser(out, "fp32", frame=frame).network.state_dict()
    bare = load_denoiser(out / frame.network_part, "fp32", frame=frame).network.state_dict()
    for parameter, value in network.network.state_dict().items():
        assert torch.equal(again[parameter], value) and torch.equal(bare[parameter], value), parameter


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reading", [(440, "sigma", "sample"), (440, "sigma", "v_prediction"), *READINGS[-2:]], ids=str)
@pytest.mark.parametrize("name", ["sd15", "pixart"])
def test_an_exported_reading_runs_in_half_precision(worlds, name, reading, dtype, tmp_path):
    """To the images; no further from x0 than the network's own rounding to that precision."""
    world = worlds(name)
    frame = world.frame(SQUARE)
    out, network = exported(world, frame, reading, tmp_path / "pipeline")
    z, x0 = by_hand(world, network, frame, reading, PROMPTS[:1])
    plain = DiffusionPipeline.from_pretrained(out, torch_dtype=dtype, low_cpu_mem_usage=False)
    plain.set_progress_bar_config(disable=True)
    given, arguments = z.to(dtype), call_arguments(read_frame(out))
    latents = plain(PROMPTS[:1], latents=given, output_type="latent", **arguments).images
    assert (latents.double() - x0).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.01) * x0.abs().max()
    assert plain(PROMPTS[:1], latents=given, output_type="pt", **arguments).images.isfinite().all()


def test_a_flow_within_betas_says_what_was_done_to_its_last_layer(worlds, tmp_path):
    world = worlds("sd15")
    out, network = exported(world, world.frame(SQUARE), (1000, "unit", "negative_flow"), tmp_path / "pipeline")
    assert json.loads((out / "one_step.json").read_text()) == {
        "t_star": 1000, "input": "unit", "prediction": "negative_flow", "output_scale": -1024.0, "resolution": [16, 16],
    }  # fmt: skip
    assert FLOW_STEP_SIGMA == 2.0**-10
    plain = DiffusionPipeline.from_pretrained(out, low_cpu_mem_usage=False)
    assert torch.equal(plain.unet.conv_out.weight, -1024 * network.network.conv_out.weight)
    assert plain.scheduler.alphas_cumprod[-1].double().sqrt().item() == pytest.approx(1, abs=6e-7)


def test_an_adapter_alone_cannot_say_what_a_flow_within_betas_needs(worlds, tmp_path):
    given = "model.t_star=null", "model.prediction=negative_flow", "model.resolution=[16, 16]"
    prompts = prompt_file(tmp_path / "p.parquet")
    config = tiny_config(tmp_path, worlds("sd15").folder, prompts, *given, "adapters.generator={rank: 2}")
    with pytest.raises(UserError, match="an adapter alone cannot be exported"):
        check(config)
    check(tiny_config(tmp_path, worlds("sd15").folder, prompts, *given))
