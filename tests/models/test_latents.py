import json

import pytest
import torch

from dipp_ray.errors import UserError
from dipp_ray.models.activations import decoder_passes
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.vae_folder import VaeFolder, find_vae
from tiny_families import FAMILIES
from tiny_models import save_pipeline


@pytest.fixture
def folder(tmp_path):
    return save_pipeline(tmp_path)


def test_decode_is_scaled_shifted_and_clamped(folder):
    decoder = LatentDecoder.from_folder(folder)
    z = torch.randn(2, 1, 8, 8) * 20  # far out, so that some pixels leave the range
    with torch.no_grad():
        raw = (decoder.vae.decode(z / 0.5 + 0.1).sample + 1) / 2
        images = decoder.decode(z)
    assert raw.min() < 0 or raw.max() > 1
    assert torch.equal(images, raw.clamp(0, 1))
    assert images.shape == (2, 3, 16, 16) and decoder.factor == 2


def test_clamp_has_no_gradient_outside_and_the_identitys_inside():
    class Identity(torch.nn.Module):
        config = type("Config", (dict,), {"__getattr__": dict.get})(latent_channels=3, scaling_factor=1.0)
        dtype = torch.float32

        def decode(self, z):
            return type("Output", (), {"sample": z})

    z = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5).clone().requires_grad_()
    LatentDecoder(Identity()).decode(z).sum().backward()
    assert z.grad[0, 0, 0].tolist() == [0.0, 0.5, 0.5, 0.5, 0.0]


def test_encode_is_in_the_scale_that_decode_takes(folder):
    decoder = LatentDecoder.from_folder(folder)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        z = decoder.vae.encode(images * 2 - 1).latent_dist.mode()
        torch.testing.assert_close(decoder.encode(images) / 0.5 + 0.1, z)


@pytest.mark.parametrize(
    "entry", [None, ["diffusers", "AutoencoderNone"], ["diffusers", "DDIMScheduler"], ["mine", "AutoencoderKL"]]
)
def test_a_folder_without_a_known_vae_is_refused(folder, entry):
    index = {} if entry is None else {"vae": entry}
    with open(f"{folder}/model_index.json", "w") as file:
        json.dump(index, file)
    with pytest.raises(UserError, match="VAE"):
        LatentDecoder.from_folder(folder)


def test_a_vaes_own_folder_decodes_as_its_pipelines_does(folder):
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, alone = (LatentDecoder.from_folder(place) for place in (folder, f"{folder}/vae"))
    assert torch.equal(whole.decode(z), alone.decode(z))
    assert find_vae(folder).latent_channels == find_vae(f"{folder}/vae").latent_channels == 1


def test_a_model_that_is_no_vae_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="use one of the Autoencoder classes"):
        LatentDecoder.from_folder(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no diffusers pipeline"):
        LatentDecoder.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_that_recomputes_gives_the_same_images_and_gradients(name, folders):
    """Of every family's VAE, as `check` makes it too; it leaves less for the backward pass."""
    folder = folders(name)
    shape = (2, find_vae(folder).latent_channels, 8, 8)
    z, seen, left = torch.randn(shape, generator=torch.Generator().manual_seed(0)), [], []
    for checkpoint in (False, True):
        given = z.clone().requires_grad_()
        images = LatentDecoder.from_folder(folder, checkpoint=checkpoint).decode(given)
        images.square().sum().backward()
        seen.append((images, given.grad))
        left.append(decoder_passes(LatentDecoder.empty(find_vae(folder), checkpoint), shape[1:], 2, True, False).graph)
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True)) and seen[0][1].any()
    assert left[1] < 0.8 * left[0]


def test_a_decoder_that_cannot_recompute_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="AutoencoderRAE cannot recompute its activations: leave checkpoint_decoder"):
        LatentDecoder.empty(VaeFolder(tmp_path, "AutoencoderRAE", {}), checkpoint=True)
