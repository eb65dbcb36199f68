"""What each family's network is called with, against what its own pipeline gives it, and which half of its output
is the prediction."""

from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel
from torch.overrides import TorchFunctionMode

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.families.pixart import PixArtAlpha
from dipp_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.models.text import TextEncoder
from dipp_ray.models.vae_folder import VaeFolder
from dipp_ray.role_settings import NetworkRoleSection
from dipp_ray.training.checks import check
from settings import tiny_config
from tiny import prompt_file

SIZE = 6  # latents of a side: 48 pixels
B = 3


def pixart(**settings):
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=2, num_layers=1, sample_size=SIZE, patch_size=2,
        cross_attention_dim=24, caption_channels=8, norm_num_groups=8, interpolation_scale=1, **settings,
    )  # fmt: skip


def sdxl():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIZE, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=8, cross_attention_dim=8, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=5 + 6 * 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def denoiser(network):
    """The network behind its family's call, with a VAE of eight pixels a latent."""
    family = PixArtAlpha if isinstance(network, PixArtTransformer2DModel) else StableDiffusionXL
    eighth = VaeFolder(Path(), "AutoencoderKL", {"block_out_channels": [8, 8, 8, 8]})
    return Denoiser(network, family(Path(), {}, {}, {}, eighth), torch.float32)


def inputs(pooled=None):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(B, 2, SIZE, SIZE, generator=generator)
    tokens = torch.randn(B, 4, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    return (
        x_t,
        torch.tensor([3, 500, 999]),
        PromptEmbeds(tokens, None if pooled else mask, pooled and torch.randn(B, pooled)),
    )


def called_with(network, monkeypatch):
    """The keyword arguments of the network's next calls."""
    seen, forward = [], network.forward

    def record(*arguments, **keywords):
        seen.append(keywords)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(network, "forward", record)
    return seen


@torch.no_grad()
def test_of_a_learned_sigma_the_first_half_is_the_prediction():
    network = pixart(out_channels=4, use_additional_conditions=False)
    x_t, t, embeds = inputs()
    output = denoiser(network)(x_t, t, embeds)
    both = network(
        x_t, encoder_hidden_states=embeds.tokens, encoder_attention_mask=embeds.mask, timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # fmt: skip
    epsilon, sigma = both.chunk(2, dim=1)  # as the pipeline splits it, to keep the first
    assert both.shape[1] == 4 and torch.equal(output, epsilon)
    assert not torch.allclose(output, sigma, atol=1e-3)


@torch.no_grad()
def test_pixarts_resolution_is_height_and_width_in_pixels_and_their_ratio(monkeypatch):
    network = pixart(out_channels=2, use_additional_conditions=True)
    seen = called_with(network, monkeypatch)
    denoiser(network)(*inputs())
    conditions = seen[0]["added_cond_kwargs"]
    # The pipeline's: torch.tensor([height, width]).repeat(batch_size, 1) and torch.tensor([height / width])
    assert torch.equal(conditions["resolution"], torch.tensor([[48.0, 48.0]] * B))
    assert torch.equal(conditions["aspect_ratio"], torch.tensor([[1.0]] * B))


@torch.no_grad()
def test_pixart_without_conditions_is_given_none(monkeypatch):
    network = pixart(out_channels=2, use_additional_conditions=False)
    seen = called_with(network, monkeypatch)
    denoiser(network)(*inputs())
    assert seen[0]["added_cond_kwargs"] == {"resolution": None, "aspect_ratio": None}


@torch.no_grad()
def test_sdxls_time_ids_are_those_of_its_pipeline(monkeypatch):
    network = sdxl()
    seen = called_with(network, monkeypatch)
    x_t, t, embeds = inputs(pooled=5)
    denoiser(network)(x_t, t, embeds)

    class Pipeline:  # what the pipeline's method reads of itself
        unet = network

    pixels = (8 * SIZE, 8 * SIZE)
    expected = StableDiffusionXLPipeline._get_add_time_ids(
        Pipeline(), original_size=pixels, crops_coords_top_left=(0, 0), target_size=pixels, dtype=torch.float32,
        text_encoder_projection_dim=5,
    )  # fmt: skip
    conditions = seen[0]["added_cond_kwargs"]
    assert torch.equal(conditions["time_ids"], expected.repeat(B, 1))
    assert conditions["text_embeds"] is not None and torch.equal(conditions["text_embeds"], embeds.pooled)


@pytest.mark.parametrize("position", range(6))
@torch.no_grad()
def test_each_of_sdxls_time_ids_is_felt(position, monkeypatch):
    """So that the comparison above can fail by what matters: each of the six changes the output."""
    network = sdxl()
    x_t, t, embeds = inputs(pooled=5)
    right = denoiser(network)(x_t, t, embeds)
    forward = network.forward

    def moved(*arguments, added_cond_kwargs, **keywords):
        ids = added_cond_kwargs["time_ids"].clone()
        ids[:, position] += 8
        return forward(*arguments, added_cond_kwargs=added_cond_kwargs | {"time_ids": ids}, **keywords)

    monkeypatch.setattr(network, "forward", moved)
    assert not torch.allclose(right, denoiser(network)(x_t, t, embeds), atol=1e-6)


class Attends(TorchFunctionMode):
    """Counts the calls of torch's own attention."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def passed(denoiser, folder, frame):
    x_t = torch.randn(2, *frame.latent_shape, generator=torch.Generator().manual_seed(0))
    embeds = TextEncoder(folder, torch.device("cpu"), frame=frame)(["a red cat", "the table"])
    with torch.no_grad():
        return denoiser(x_t, torch.tensor([300, 700]), embeds)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart", "sd3", "sana", "flux", "qwenimage", "zimage"])
def test_attention_is_torchs_own(name, folders):
    frame = read_frame(folders(name), resolution=(32, 32))
    with Attends() as seen:
        passed(load_denoiser(folders(name), "fp32", frame=frame), folders(name), frame)
    assert seen.calls > 0


def test_channels_may_come_last_and_stay_there(folders):
    folder = folders("sd15")
    frame = read_frame(folder)
    plain, other = (load_denoiser(folder, "fp32", frame=frame) for _ in range(2))
    other.run_as(NetworkRoleSection(channels_last=True)).lay_out(trained=False)
    layouts = []
    other.network.mid_block.resnets[-1].conv1.register_forward_hook(
        lambda module, given, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    out = passed(plain, folder, frame)
    torch.testing.assert_close(passed(other, folder, frame), out, rtol=1e-4, atol=1e-5)
    assert layouts == [True]


def test_channels_come_last_in_unets_alone(folders, tmp_path):
    config = tiny_config(tmp_path, folders("pixart"), prompt_file(tmp_path / "p.parquet"), "model.resolution=[16, 16]",
                         "roles.teacher.channels_last=true")  # fmt: skip
    with pytest.raises(UserError, match=r"roles\.teacher\.channels_last: the PixArtTransformer2DModel .* is no UNet"):
        check(config)
