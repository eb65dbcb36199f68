"""One replica without Ray: what it takes for its health."""

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dipp_ray.config import RoleSection
from dipp_ray.errors import UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.contract.failures import DeadlineError
from dipp_ray.serving.core.decoder_replica import DecoderReplica
from dipp_ray.serving.core.replica import ModelReplica
from tiny_models import save_pipeline

IMAGES = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
LATENTS = np.random.default_rng(0).standard_normal((2, 1, 8, 8), dtype=np.float32)
LATENTS.flags.writeable = False  # as arguments of a handle are


def replica(model):
    return ModelReplica(
        {"name": "it", "model": f"tiny_models:{model}", "folder": None}, None, False, RoleSection(), False, 600
    )


def ask(made, prompts):
    return made.answer(IMAGES, prompts, "images", True, 60.0)


def test_one_that_has_never_answered_and_failed_is_ill():
    async def run():
        made = replica("Raises")
        await made.check_health()  # nothing is known yet
        with pytest.raises(RuntimeError, match="out of order"):
            await ask(made, ["a", "b"])
        with pytest.raises(RuntimeError, match="has answered nothing yet: out of order"):
            await made.check_health()

    asyncio.run(run())


def test_a_call_that_it_refuses_does_not_make_it_ill():
    async def run():
        made = replica("Picky")
        with pytest.raises(ValueError, match="refuse is no prompt"):
            await ask(made, ["a", "refuse"])
        await made.check_health()
        await ask(made, ["a", "b"])
        await made.check_health()

    asyncio.run(run())


class Unmade:
    """Raises when it is made."""

    def __init__(self):
        raise ValueError("two\n  lines")

    def reward(self, images, prompts): ...


class Unwilling(Unmade):
    def __init__(self):
        raise UserError("there is no such file: correct it")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("Unmade", r"^reward 'it': test_replica:Unmade cannot be made \(ValueError: two lines\): correct it$"),
        ("Unwilling", "^reward 'it': there is no such file: correct it$"),
    ],
)
def test_a_class_that_raises_when_it_is_made_names_its_model(made, message):
    with pytest.raises(UserError, match=message):
        ModelReplica(
            {"name": "it", "model": f"test_replica:{made}", "folder": None}, None, False, RoleSection(), False, 600
        )


class Elsewhere:
    """Computed by somebody else, who is asked once a call and not for this replica's health."""

    differentiable, elsewhere, asked = False, True, 0

    def reward(self, images, prompts):
        Elsewhere.asked += 1
        return images.mean((1, 2, 3))


def test_what_is_computed_elsewhere_is_not_asked_again_for_its_health():
    async def run():
        made = ModelReplica(
            {"name": "it", "model": "test_replica:Elsewhere", "folder": None}, None, False, RoleSection(), False, 600
        )
        await made.answer(IMAGES, ["a", "b"], "images", False, 60.0)
        await made.check_health()
        return type(made._scorer.model).asked

    assert asyncio.run(run()) == 1


def test_a_decoder_decodes_and_goes_back_without_keeping_anything(tmp_path):
    async def run():
        replicas = [DecoderReplica("it", folder, False, RoleSection(), True, 600) for _ in range(2)]
        images = await replicas[0].decode(LATENTS, True, 60.0)
        slopes = np.random.default_rng(1).standard_normal(images.shape, dtype=np.float32)
        back = await replicas[1].pull_back(LATENTS, slopes, 60.0)  # another one
        for replica in replicas:
            await replica.check_health()
        with pytest.raises(DeadlineError, match="VAE 'it': the deadline passed before the work began"):
            await replicas[0].decode(LATENTS, True, 0.0)
        replicas[0]._since = -1e9
        with pytest.raises(TimeoutError, match="VAE 'it': one batch has lasted longer than 600 s"):
            await replicas[0].check_health()
        return images, slopes, back

    folder = save_pipeline(tmp_path)
    images, slopes, back = asyncio.run(run())
    x = torch.from_numpy(LATENTS.copy()).requires_grad_()
    expected = LatentDecoder.from_folder(folder).decode(x)
    assert np.array_equal(images, expected.detach().numpy())
    (slope,) = torch.autograd.grad((expected * torch.from_numpy(slopes)).sum(), x)
    np.testing.assert_allclose(back, slope.numpy(), rtol=1e-5, atol=1e-6)


def test_a_decoder_whose_weights_are_not_finite_is_refused(tmp_path):
    folder = save_pipeline(tmp_path)
    weights = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"][0] = torch.nan
    save_file(weights, tmp_path / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"VAE 'it': weight vae\.decoder\.conv_out\.bias is not finite"):
        DecoderReplica("it", folder, False, RoleSection(), True, 600)
