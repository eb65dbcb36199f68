"""One decode for all models: the same scores and gradients as with a decoder in front of each."""

import asyncio

import numpy as np
import pytest
import torch
from local_service import local_service

from dipp_ray.errors import CallError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.contract.calls import Question
from dipp_ray.serving.contract.failures import DeadlineError, ModelError
from dipp_ray.serving.core.scoring import Scorer
from dipp_ray.serving.deploy.config import ServiceConfig
from tiny_families import vae as family_vae
from tiny_models import PROMPTS, save_clip, save_pipeline

CHUNK = 8
BRIGHT = {"name": "bright", "model": "tiny_models:Brightness", "weight": 5.0}
WATCH = {"name": "watch", "model": "tiny_models:NoGradient", "held_out": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`small` has latents of 1 channel, `wide` of 4."""
    torch.manual_seed(0)
    wide = tmp_path_factory.mktemp("wide")
    family_vae().save_pretrained(wide)
    return {
        "clip": save_clip(tmp_path_factory.mktemp("clip"), image_size=16),
        "small": save_pipeline(tmp_path_factory.mktemp("small")),
        "wide": str(wide),
    }


@pytest.fixture(scope="module")
def clips(folders):
    clip = {"model": "clip", "folder": folders["clip"]}
    return [{"name": "clip", "weight": 0.7} | clip, {"name": "bent", "weight": 0.3, "mean": 1.0, "cap": 0.9} | clip]


def service(models, vaes, **settings):
    named = [{"name": name, "folder": folder} for name, folder in vaes.items()]
    config = {"models": models, "vaes": named, "batch_rows": CHUNK} | settings
    return local_service(ServiceConfig.model_validate(config))


def local(made, folder):
    return Scorer(made.reward_terms, LatentDecoder.from_folder(folder), CHUNK)


def latents(seed=0, count=3, channels=1, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((count, channels, 8, 8)).astype(dtype)


def prompts(count=3):
    return [PROMPTS[i % len(PROMPTS)] for i in range(count)]


def ask(made, x, vae=None, texts=None, gradient=True, held_out=True, trainer="me", space="latents"):
    question = Question(space, gradient, held_out, vae)
    return made.answer(x, texts or prompts(len(x)), question, trainer, 60.0)


def together(*coroutines):
    async def run():
        return await asyncio.gather(*coroutines, return_exceptions=True)

    return asyncio.run(run())


def test_with_one_trained_model_every_bit_is_that_of_its_own_decoder(folders, clips):
    for model in (clips[0], clips[1], BRIGHT):
        made = service([model, WATCH], {"small": folders["small"]}, deterministic=True)
        x = latents(count=11)
        (reply,) = together(ask(made, x))
        expected = local(made, folders["small"]).score(torch.from_numpy(x), prompts(11), "latents", True)
        assert np.array_equal(reply.combined.gradient, expected.gradient.numpy())
        assert np.array_equal(reply.combined.reward, expected.reward.numpy())
        assert all(np.array_equal(reply.combined.scores[name], score) for name, score in expected.scores.items())


def test_a_batch_is_decoded_once_and_goes_back_once_whatever_the_number_of_models(folders, clips):
    made = service([*clips, BRIGHT, WATCH], {"small": folders["small"]})
    together(ask(made, latents()))
    assert made.decoders["small"].calls == [("decode", 3), ("pull_back", 3)]
    together(ask(made, latents(), gradient=False))
    assert made.decoders["small"].calls[2:] == [("decode", 3)]
    together(ask(made, np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32), space="images"))
    assert len(made.decoders["small"].calls) == 3


def test_the_sum_of_several_models_is_that_of_their_own_decoders_in_fp64(folders, clips):
    models = [*clips, BRIGHT | {"hinge": 1.0}, WATCH]
    made = service(models, {"small": folders["small"]})
    made.decoders["small"].decoding.decoder.double()
    for name in ("clip", "bent"):
        made.handles[name].scorer.model.double()
    exact = local(made, folders["small"])
    exact.decoder.double()
    for name in ("clip", "bent"):
        exact.models[name].model.double()
    x = latents(count=11, dtype=np.float64)
    (reply,) = together(ask(made, x))
    expected = exact.score(torch.from_numpy(x), prompts(11), "latents", True)
    slope = reply.combined.gradient
    assert slope.dtype == np.float64 and np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(slope, expected.gradient.numpy(), rtol=0, atol=1e-14 * np.abs(slope).max())
    np.testing.assert_allclose(reply.combined.reward, expected.reward.numpy(), rtol=1e-13)


def test_in_fp32_the_sum_differs_by_rounding_alone(folders, clips):
    made = service([*clips, BRIGHT], {"small": folders["small"]})
    x = latents(count=5)
    (reply,) = together(ask(made, x))
    expected = local(made, folders["small"]).score(torch.from_numpy(x), prompts(5), "latents", True)
    largest = expected.gradient.abs().max().item()
    np.testing.assert_allclose(reply.combined.gradient, expected.gradient.numpy(), rtol=0, atol=1e-6 * largest)
    assert np.array_equal(reply.combined.reward, expected.reward.numpy())


def test_the_gradient_is_that_of_finite_differences(folders, clips):
    made = service([*clips, BRIGHT], {"small": folders["small"]})
    made.decoders["small"].decoding.decoder.double()
    for name in ("clip", "bent"):
        made.handles[name].scorer.model.double()
    x = latents(count=2, dtype=np.float64)
    direction, step = np.random.default_rng(1).standard_normal(x.shape), 1e-6
    reply, plus, minus = together(
        ask(made, x), *(ask(made, x + sign * step * direction, gradient=False) for sign in (1, -1))
    )
    slope = (reply.combined.gradient * direction).sum((1, 2, 3))
    np.testing.assert_allclose(slope, (plus.combined.reward - minus.combined.reward) / (2 * step), rtol=1e-6)


def test_calls_of_several_trainers_share_a_batch_and_get_their_own_rows(folders, clips):
    made = service([*clips, BRIGHT], {"small": folders["small"]})
    sizes = [3, 2, 3, 8, 1, 11, 2, 3]
    replies = together(*(ask(made, latents(i, n), trainer=f"t{i}") for i, n in enumerate(sizes)))
    scorer = local(made, folders["small"])
    for i, (n, reply) in enumerate(zip(sizes, replies, strict=True)):
        expected = scorer.score(torch.from_numpy(latents(i, n)), prompts(n), "latents", True)
        np.testing.assert_allclose(reply.combined.gradient, expected.gradient, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(reply.combined.reward, expected.reward, rtol=1e-5, atol=1e-6)
    decoded = [rows for method, rows in made.decoders["small"].calls if method == "decode"]
    assert sum(decoded) == sum(sizes) and len(decoded) < sum(-(-n // CHUNK) for n in sizes)


def test_two_families_share_one_service_to_the_bit_what_each_gets_alone(folders, clips):
    """Two trainers at once; a batch is of one VAE alone even where calls are merged."""
    models = [*clips, BRIGHT, WATCH]
    vaes = {name: folders[name] for name in ("small", "wide")}
    calls = [("small", latents(0, 11)), ("wide", latents(1, 5, channels=4))]
    for deterministic in (True, False):
        made = service(models, vaes, deterministic=deterministic)
        replies = together(*(ask(made, x, name, trainer=name) for name, x in calls))
        for (name, x), reply in zip(calls, replies, strict=True):
            alone = service(models, {name: folders[name]}, deterministic=deterministic)
            (expected,) = together(ask(alone, x, name))
            assert np.array_equal(reply.combined.gradient, expected.combined.gradient)
            assert np.array_equal(reply.combined.reward, expected.combined.reward)
        assert made.decoders["wide"].calls == [("decode", 5), ("pull_back", 5)]


def test_latents_of_equal_shape_go_to_the_vae_that_they_name(folders, tmp_path):
    torch.manual_seed(7)
    family_vae().save_pretrained(tmp_path)
    made = service([BRIGHT], {"wide": folders["wide"], "other": str(tmp_path)})
    x = latents(0, 3, channels=4)
    replies = together(ask(made, x, "wide"), ask(made, x, "other"))
    for reply, folder in zip(replies, (folders["wide"], str(tmp_path)), strict=True):
        expected = local(made, folder).score(torch.from_numpy(x), prompts(), "latents", True)
        assert np.array_equal(reply.combined.gradient, expected.gradient.numpy())
    assert not np.allclose(replies[0].combined.reward, replies[1].combined.reward, rtol=1e-3)
    # More than are begun at once, so that those of one VAE are merged, and those of two are not.
    many = together(*(ask(made, x, name, trainer=f"t{i}") for i, name in enumerate(["wide", "other"] * 4)))
    for i, reply in enumerate(many):
        np.testing.assert_allclose(reply.combined.reward, replies[i % 2].combined.reward, rtol=1e-5)
    assert len([rows for method, rows in made.decoders["wide"].calls if method == "decode"]) < 5


@pytest.mark.parametrize(
    ("x", "vae", "space", "message"),
    [
        (
            latents(),
            None,
            "latents",
            "the service has the VAEs small, wide: say by vae which of them made these latents",
        ),
        (latents(), "sdxl", "latents", "vae is 'sdxl', but the service has small, wide: name the one"),
        (latents(), "wide", "latents", r"latents of shape \[3, 1, 8, 8\] were sent: expected \[B, 4, .*of VAE 'wide'"),
        (np.zeros((3, 64, 64), np.float32), "small", "latents", r"of shape \[3, 64, 64\] were sent: .* of VAE 'small'"),
        (np.zeros((3, 3, 8, 8), np.float32), "small", "images", "vae is 'small', but images were sent: leave it out"),
    ],
)
def test_latents_of_another_are_refused_by_name_before_any_work(folders, x, vae, space, message):
    made = service([BRIGHT], {"small": folders["small"], "wide": folders["wide"]})
    (error,) = together(ask(made, x, vae, space=space))
    with pytest.raises(CallError, match=message):
        raise error
    assert made.decoders["small"].calls == made.decoders["wide"].calls == []


def test_a_vae_without_a_name_goes_on_as_ever(folders):
    made = local_service(ServiceConfig.model_validate({"models": [BRIGHT], "vae": folders["small"]}))
    reply, error = together(ask(made, latents()), ask(made, latents(), "small"))
    assert reply.combined.gradient.shape == (3, 1, 8, 8)
    assert isinstance(error, CallError) and "no VAE of this service has a name: leave it out" in str(error)
    assert "vaes" not in asyncio.run(made.models())  # which callers of before would refuse
    with pytest.raises(ValueError, match="keep one of both"):
        service([BRIGHT], {"small": folders["small"]}, vae=folders["small"])


OPTIONAL = {"name": "picky", "model": "tiny_models:Picky", "weight": 2.0, "required": False}


def test_a_model_that_is_not_required_leaves_the_whole_call_where_it_fails_at_a_part(folders):
    """Its gradient is in no row then, also not in those of the chunks that it did answer."""
    made = service([BRIGHT, OPTIONAL], {"small": folders["small"]}, deterministic=True)
    x, texts = latents(count=11), [*prompts(10), "refuse"]
    alone = service([BRIGHT], {"small": folders["small"]}, deterministic=True)
    (reply,), (expected,) = together(ask(made, x, texts=texts)), together(ask(alone, x, texts=texts))
    assert reply.failed.keys() == {"picky"} and reply.combined.scores.keys() == {"bright"}
    assert np.array_equal(reply.combined.gradient, expected.combined.gradient)
    assert np.array_equal(reply.combined.reward, expected.combined.reward)
    (whole,) = together(ask(made, x))
    slope = expected.combined.gradient * 7 / 5
    np.testing.assert_allclose(whole.combined.gradient, slope, rtol=0, atol=1e-6 * np.abs(slope).max())


def test_a_call_that_a_model_refuses_fails_alone(folders):
    picky = {"name": "picky", "model": "tiny_models:Picky"}
    made = service([picky, BRIGHT], {"small": folders["small"]})
    texts = [prompts(2), ["red circle", "refuse"], prompts(2), prompts(2)]
    replies = together(*(ask(made, latents(i, 2), texts=t, trainer=f"t{i}") for i, t in enumerate(texts)))
    assert isinstance(replies[1], ModelError) and replies[1].kind == "refused"
    scorer = local(made, folders["small"])
    for i in (0, 2, 3):
        expected = scorer.score(torch.from_numpy(latents(i, 2)), prompts(2), "latents", True)
        np.testing.assert_allclose(replies[i].combined.gradient, expected.gradient, rtol=1e-4, atol=1e-8)


def test_a_nan_stays_in_its_row(folders, clips):
    made = service([BRIGHT, clips[0]], {"small": folders["small"]})
    (reply,) = together(ask(made, latents(), texts=["red circle", "nan", "red circle"]))
    assert np.isnan(reply.combined.reward).tolist() == [False, True, False]
    assert np.isfinite(reply.combined.gradient).all((1, 2, 3)).tolist() == [True, False, True]


def test_a_nan_of_a_model_that_is_not_required_reaches_no_sum(folders, clips):
    made = service([clips[0], BRIGHT | {"required": False}], {"small": folders["small"]})
    alone = service([clips[0]], {"small": folders["small"]})
    texts = ["red circle", "nan", "red circle"]
    (reply,), (expected,) = together(ask(made, latents(), texts=texts)), together(ask(alone, latents(), texts=texts))
    assert "not finite for 1 of 3" in str(reply.failed["bright"])
    assert np.array_equal(reply.combined.gradient, expected.combined.gradient)


def test_a_slope_that_is_not_finite_of_a_model_that_is_not_required_reaches_no_sum(folders, clips):
    steep = {"name": "steep", "model": "tiny_models:Steep", "required": False}
    made, alone = (service([clips[0], *more], {"small": folders["small"]}) for more in ([steep], []))
    (reply,), (expected,) = together(ask(made, latents())), together(ask(alone, latents()))
    assert "not finite for 3 of 3" in str(reply.failed["steep"])
    assert np.array_equal(reply.combined.gradient, expected.combined.gradient)
    assert np.array_equal(reply.combined.reward, expected.combined.reward)


@pytest.mark.parametrize("method", ["decode", "pull_back"])
@pytest.mark.parametrize("required", [True, False])
def test_a_decoder_that_fails_fails_the_call(folders, method, required):
    made = service([BRIGHT | {"required": required}], {"small": folders["small"]})
    made.decoders["small"].failing[method] = RuntimeError("out of memory in /secret/path")
    (error,) = together(ask(made, latents()))
    assert isinstance(error, ModelError) and error.kind == "failed"
    assert str(error) == "VAE 'small': RuntimeError: out of memory in /secret/path"
    assert error.public == "VAE 'small': RuntimeError"
    made.decoders["small"].failing[method] = DeadlineError("late")
    (error,) = together(ask(made, latents()))
    assert isinstance(error, (DeadlineError, ModelError)) and "VAE 'small' did not decode in time" in str(error)
    made.decoders["small"].failing.clear()
    (reply,) = together(ask(made, latents()))
    assert np.isfinite(reply.combined.gradient).all()


def test_a_service_is_ill_with_its_decoder(folders):
    made = service([BRIGHT], {"small": folders["small"]})
    assert asyncio.run(made.health()).models == {"bright": "ok", "VAE small": "ok"}

    class Dead:
        def remote(self):
            from local_service import LocalResponse
            from ray.exceptions import RayActorError

            async def raises():
                raise RayActorError

            return LocalResponse(raises())

    made._health = None
    made.decoders["small"].check_health = Dead()
    assert not asyncio.run(made.health()).ok
