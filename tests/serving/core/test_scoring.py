import pytest
import torch

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.core.scoring import Scorer
from tiny_models import PROMPTS, save_clip, save_pipeline


@pytest.fixture(scope="module")
def terms(tmp_path_factory):
    return [
        RewardTerm(name="clip", model="clip", folder=save_clip(tmp_path_factory.mktemp("clip")), weight=0.7),
        RewardTerm(name="bright", model="tiny_models:Brightness", weight=5.0),
        RewardTerm(name="watch", model="tiny_models:NoGradient", held_out=True),
    ]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


CHUNK = 64


def made(terms, vae, chunk_size=CHUNK, **settings):
    return Scorer(terms, LatentDecoder.from_folder(vae), chunk_size, **settings)


def latents(count=4, dtype=torch.float32):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype)


def test_gradient_equals_finite_differences(terms, vae):
    scorer = made(terms, vae)
    scorer.decoder.double()
    scorer.models["clip"].model.double()
    x = latents(2, torch.float64)
    reply = scorer.score(x, PROMPTS[:2], "latents", True)
    assert reply.gradient.dtype == torch.float64
    generator = torch.Generator().manual_seed(4)
    step = 1e-6
    for _ in range(5):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        plus = scorer.score(x + step * direction, PROMPTS[:2], "latents", False).reward
        minus = scorer.score(x - step * direction, PROMPTS[:2], "latents", False).reward
        slope = (reply.gradient * direction).sum((1, 2, 3))  # by row: no row may feel another
        torch.testing.assert_close(slope, (plus - minus) / (2 * step), rtol=1e-6, atol=1e-8)
    assert reply.gradient.abs().amin((1, 2, 3)).shape == (2,) and reply.gradient.abs().max() > 1e-3


def test_chunks_are_rows_of_one_call_in_order(terms, vae):
    scorer = made(terms, vae, chunk_size=3)
    x = latents(4)
    whole = scorer.score(x, PROMPTS, "latents", True)
    first, rest = scorer.score(x[:3], PROMPTS[:3], "latents", True), scorer.score(x[3:], PROMPTS[3:], "latents", True)
    assert torch.equal(whole.reward, torch.cat([first.reward, rest.reward]))
    assert torch.equal(whole.gradient, torch.cat([first.gradient, rest.gradient]))
    assert torch.equal(whole.scores["watch"], torch.cat([first.scores["watch"], rest.scores["watch"]]))


def test_bf16_is_near_fp32(terms, vae):
    exact = made(terms, vae).score(latents(), PROMPTS, "latents", True)
    rough = made(terms, vae, autocast=torch.bfloat16).score(latents(), PROMPTS, "latents", True)
    assert rough.gradient.dtype == torch.float32
    assert not torch.equal(rough.gradient, exact.gradient)
    cosine = torch.nn.functional.cosine_similarity(rough.gradient.flatten(), exact.gradient.flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize(
    ("shape", "prompts", "space", "message"),
    [
        ((4, 2, 8, 8), 4, "latents", r"expected \[B, 1, height, width\]"),
        ((4, 1, 8, 8), 3, "latents", "4 latents but 3 prompts"),
        ((4, 1, 8, 8), 4, "images", r"expected \[B, 3, height, width\]"),
        ((0, 1, 8, 8), 0, "latents", "expected"),
        ((4, 1, 8, 8), 4, "pixels", "give latents or images"),
    ],
)
def test_a_bad_call_is_refused(terms, vae, shape, prompts, space, message):
    with pytest.raises(ValueError, match=message):
        made(terms, vae).score(torch.zeros(shape), PROMPTS[:prompts], space, True)


def test_a_reward_without_gradient_is_refused_only_for_a_gradient():
    scorer = Scorer([RewardTerm(name="flat", model="tiny_models:NoGradient")], None, CHUNK)
    images = torch.rand(4, 3, 8, 8)
    assert scorer.score(images, PROMPTS, "images", gradient=False).gradient is None
    with pytest.raises(ValueError, match=r"'flat': it has no gradient, for its score .*tiny_models\.py, line"):
        scorer.score(images, PROMPTS, "images", True)


def test_a_reward_of_another_shape_is_refused():
    scorer = Scorer([RewardTerm(name="odd", model="tiny_models:WrongShape")], None, CHUNK)
    with pytest.raises(RuntimeError, match=r"'odd' returned shape \[4, 3\]"):
        scorer.score(torch.rand(4, 3, 8, 8), PROMPTS, "images", gradient=False)


def test_recomputing_the_decoder_changes_no_bit(terms, vae):
    plain = made(terms, vae).score(latents(), PROMPTS, "latents", True)
    checkpointed = Scorer(terms, LatentDecoder.from_folder(vae, checkpoint=True), CHUNK)
    again = checkpointed.score(latents(), PROMPTS, "latents", True)
    assert torch.equal(plain.gradient, again.gradient) and torch.equal(plain.reward, again.reward)


def test_latents_without_a_vae_are_refused():
    scorer = Scorer([RewardTerm(name="bright", model="tiny_models:Brightness")], None, CHUNK)
    with pytest.raises(ValueError, match="no VAE"):
        scorer.score(latents(), PROMPTS, "latents", True)
