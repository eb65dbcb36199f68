"""The ingress with models in this process: merging, fairness, deadlines, callers who leave, models that fail."""

import asyncio
import contextlib
import pickle
import re

import numpy as np
import pytest
import torch
from local_service import local_service

from dipp_ray.errors import CallError, UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.client.transport import as_client_error
from dipp_ray.serving.contract.calls import Question
from dipp_ray.serving.contract.failures import DeadlineError, Draining, ModelError, NoGradientError, QueueFull
from dipp_ray.serving.core.ingress import RewardIngress
from dipp_ray.serving.core.scoring import Scorer
from dipp_ray.serving.deploy.config import ServiceConfig
from tiny_models import PROMPTS, save_clip, save_pipeline

CHUNK = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "clip": save_clip(tmp_path_factory.mktemp("clip")),
        "vae": save_pipeline(tmp_path_factory.mktemp("pipeline")),
    }


BRIGHT = {"name": "bright", "model": "tiny_models:Brightness", "weight": 5.0}
WATCHED = {"weight": 1.0, "held_out": True}
WATCH = {"name": "watch", "model": "tiny_models:NoGradient", "held_out": True}


def service(models, vae=None, **settings):
    return local_service(ServiceConfig.model_validate({"models": models, "vae": vae, "batch_rows": CHUNK} | settings))


def images(seed=0, count=2):
    return np.random.default_rng(seed).random((count, 3, 8, 8), dtype=np.float32)


def latents(seed=0, count=2):
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8), dtype=np.float32)


def prompts(seed, count=2):
    return [PROMPTS[(seed + i) % len(PROMPTS)] for i in range(count)]


def ask(made, x, texts, space="images", gradient=True, trainer="me", expires_s=60.0, held_out=True):
    return made.answer(x, texts, Question(space, gradient, held_out), trainer, expires_s)


def together(*coroutines):
    async def run():
        return await asyncio.gather(*coroutines, return_exceptions=True)

    return asyncio.run(run())


async def settled(condition):
    """Wait for the condition, not for seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_calls_of_several_trainers_share_batches_and_get_their_own_rows(folders):
    models = [{"name": "clip", "model": "clip", "folder": folders["clip"], "weight": 0.7}, BRIGHT, WATCH]
    made = service(models, folders["vae"])
    local = Scorer(made.reward_terms, LatentDecoder.from_folder(folders["vae"]), CHUNK)
    sizes = [3, 2, 3, 8, 1, 11, 2, 3]
    calls = [(latents(seed, n), prompts(seed, n), seed % 2 == 0) for seed, n in enumerate(sizes)]
    replies = together(*(ask(made, x, p, "latents", g, f"t{i}") for i, (x, p, g) in enumerate(calls)))
    for (x, texts, gradient), reply in zip(calls, replies, strict=True):
        expected = local.score(torch.from_numpy(x), texts, "latents", gradient)
        np.testing.assert_allclose(reply.combined.reward, expected.reward, rtol=1e-6, atol=1e-6)
        assert reply.combined.scores.keys() == {"clip", "bright", "watch"} and reply.held_out == ["watch"]
        assert (reply.combined.gradient is not None) == gradient
        if gradient:
            np.testing.assert_allclose(reply.combined.gradient, expected.gradient, rtol=1e-5, atol=1e-7)
    batches = [rows for rows, _ in made.handles["clip"].calls]
    assert max(batches) <= CHUNK and len(batches) < sum(-(-n // CHUNK) for n in sizes)


def test_models_that_are_held_out_do_no_work_where_nobody_looks(folders):
    made = service([BRIGHT, WATCH], folders["vae"])
    x, texts = latents(0, 3), prompts(0, 3)
    whole, summed = together(ask(made, x, texts, "latents"), ask(made, x, texts, "latents", held_out=False))
    assert whole.combined.scores.keys() == {"bright", "watch"} and whole.held_out == ["watch"]
    assert summed.combined.scores.keys() == {"bright"} and summed.held_out == []
    assert np.array_equal(whole.combined.reward, summed.combined.reward)
    assert np.array_equal(whole.combined.gradient, summed.combined.gradient)
    assert (len(made.handles["bright"].calls), len(made.handles["watch"].calls)) == (2, 1)
    made.reconfigure({"terms": [WATCHED | {"name": name} for name in ("bright", "watch")], "tokens": {}})
    (refused,) = together(ask(made, x, texts, "latents", gradient=False, held_out=False))
    assert isinstance(refused, CallError) and "held out" in str(refused)


def test_deterministic_calls_are_never_merged_and_equal_local_to_the_bit(folders):
    made = service([BRIGHT, WATCH], folders["vae"], deterministic=True)
    local = Scorer(made.reward_terms, LatentDecoder.from_folder(folders["vae"]), CHUNK)
    sizes = [3, 8, 11, 1, 20]
    replies = together(*(ask(made, latents(i, n), prompts(i, n), "latents") for i, n in enumerate(sizes)))
    for i, (n, reply) in enumerate(zip(sizes, replies, strict=True)):
        expected = local.score(torch.from_numpy(latents(i, n)), prompts(i, n), "latents", True)
        assert np.array_equal(reply.combined.reward, expected.reward.numpy())
        assert np.array_equal(reply.combined.gradient, expected.gradient.numpy())
    assert sorted(rows for rows, _ in made.handles["bright"].calls) == sorted([3, 8, 8, 3, 1, 8, 8, 4])


def test_a_call_that_a_model_refuses_fails_alone():
    made = service([{"name": "picky", "model": "tiny_models:Picky"}])
    texts = [["red circle"] * 2, ["red circle", "refuse"], ["blue square"] * 2, ["red square"] * 2]
    replies = together(*(ask(made, images(i), p, trainer=f"t{i}") for i, p in enumerate(texts)))
    assert isinstance(replies[1], ModelError) and replies[1].kind == "refused" and "refuse" in str(replies[1])
    for i in (0, 2, 3):
        np.testing.assert_allclose(replies[i].combined.reward, images(i).mean((1, 2, 3)), rtol=1e-6)


def test_a_score_that_does_not_depend_on_the_images_is_said_with_its_place():
    (error,) = together(ask(service([{"name": "flat", "model": "tiny_models:NoGradient"}]), images(), prompts(0)))
    assert isinstance(error, ModelError) and error.kind == "refused"
    assert re.fullmatch(
        r"reward 'flat': it has no gradient, for its score does not depend on the images .*tiny_models\.py, line \d+\)",
        str(pickle.loads(pickle.dumps(error))),
    )
    assert str(as_client_error(error)) == str(error) and ".py" not in error.public
    raised = pickle.loads(pickle.dumps(NoGradientError("flat", " (mine.py, line 3)")))  # as from a replica
    assert isinstance(raised, CallError) and str(raised).endswith("scores only (mine.py, line 3)")


def test_a_model_that_raises_is_an_error_unless_it_is_not_required():
    broken = {"name": "broken", "model": "tiny_models:Raises"}
    (error,) = together(ask(service([BRIGHT, broken]), images(), prompts(0)))
    assert isinstance(error, ModelError) and error.kind == "failed" and "RuntimeError: out of order" in str(error)
    (reply,) = together(ask(service([BRIGHT, broken | {"required": False}]), images(), prompts(0)))
    np.testing.assert_allclose(reply.combined.reward, 5 * images().mean((1, 2, 3)), rtol=1e-6)
    assert reply.combined.scores.keys() == {"bright"} and reply.failed.keys() == {"broken"}
    (error,) = together(ask(service([broken | {"required": False}]), images(), prompts(0)))
    assert isinstance(error, ModelError)  # an empty sum is no reward


def test_a_nan_stays_or_fails_a_term_that_is_not_required():
    texts = ["red circle", "nan"]
    (reply,) = together(ask(service([BRIGHT]), images(), texts))
    assert np.isnan(reply.combined.reward).tolist() == [False, True]
    optional = {"name": "other", "model": "tiny_models:Brightness", "required": False}
    (reply,) = together(
        ask(service([optional, WATCH | {"held_out": False, "name": "flat"}]), images(), texts, gradient=False)
    )
    assert str(reply.failed["other"]) == "reward 'other': not finite for 1 of 2 samples"
    np.testing.assert_allclose(reply.combined.reward, images().mean((1, 2, 3)), rtol=1e-6)


def test_a_model_that_is_away_and_not_required_is_waited_for_once():
    made = service(
        [BRIGHT, {"name": "away", "model": "tiny_models:Brightness", "required": False}], optional_wait_s=0.05
    )
    made.handles["away"].gate = asyncio.Event()

    async def run():
        return [await ask(made, images(i), prompts(i)) for i in range(5)]

    replies = asyncio.run(run())
    for i, reply in enumerate(replies):
        np.testing.assert_allclose(reply.combined.reward, 5 * images(i).mean((1, 2, 3)), rtol=1e-6)
    assert "no answer within 0.05 s" in str(replies[0].failed["away"])
    assert "no answer lately" in str(replies[1].failed["away"])
    assert len(made.handles["away"].calls) < 5


def test_a_model_that_is_away_and_not_required_leaves_time_to_answer_without_it():
    """Also to a call that has less time than such a model is waited for."""
    made = service([BRIGHT, {"name": "away", "model": "tiny_models:Brightness", "required": False}])
    made.handles["away"].gate = asyncio.Event()
    reply = asyncio.run(ask(made, images(), prompts(0), expires_s=0.5))
    assert "no answer within" in str(reply.failed["away"])
    np.testing.assert_allclose(reply.combined.reward, 5 * images().mean((1, 2, 3)), rtol=1e-6)


def test_a_model_that_is_not_required_and_alone_is_asked_again():
    made = service([{"name": "away", "model": "tiny_models:Brightness", "required": False}], optional_wait_s=1.0)

    async def run():
        gate = made.handles["away"].gate = asyncio.Event()
        with pytest.raises(ModelError, match="no answer within"):
            await ask(made, images(0), prompts(0))
        gate.set()
        return await ask(made, images(1), prompts(1))

    np.testing.assert_allclose(asyncio.run(run()).combined.reward, images(1).mean((1, 2, 3)), rtol=1e-6)


def test_beyond_its_bound_a_trainer_is_told_when_to_come_again_and_the_others_are_served():
    made = service([BRIGHT], limits={"rows": 8}, queue={"rows": 16})
    made.handles["bright"].gate = asyncio.Event()

    async def run():
        calls = [
            asyncio.create_task(ask(made, images(i, 8), prompts(i, 8), trainer="flood")) for i in range(22)
        ]  # 10 times the bound beyond what is taken
        other = asyncio.create_task(ask(made, images(99), prompts(99), trainer="small"))
        await settled(lambda: sum(call.done() for call in calls) == 18)  # 2 batches are with the model, 16 rows wait
        made.handles["bright"].gate.set()
        return await asyncio.gather(other, *calls, return_exceptions=True)

    small, *flood = asyncio.run(run())
    np.testing.assert_allclose(small.combined.reward, 5 * images(99).mean((1, 2, 3)), rtol=1e-6)
    refused = [reply for reply in flood if isinstance(reply, QueueFull)]
    assert len(refused) == 18 and all(error.retry_after_s >= 1 for error in refused)
    assert all(reply.combined.reward.shape == (8,) for reply in flood if not isinstance(reply, QueueFull))
    assert [len(p) for _, p in made.handles["bright"].calls].index(2) <= 3  # not behind all of the flood


def test_work_past_its_deadline_is_not_begun():
    made = service([BRIGHT], deterministic=True)
    made.handles["bright"].gate = asyncio.Event()

    async def run():
        first = [asyncio.create_task(ask(made, images(i), prompts(i))) for i in range(2)]  # fill both places
        await settled(lambda: len(made.handles["bright"].calls) == 2)
        with pytest.raises(DeadlineError):
            await ask(made, images(5), ["too late"] * 2, expires_s=0.02)
        made.handles["bright"].gate.set()
        return await asyncio.gather(*first)

    assert len(asyncio.run(run())) == 2
    assert all("too late" not in texts for _, texts in made.handles["bright"].calls)


def test_a_caller_who_leaves_is_forgotten_before_its_batch_begins():
    made = service([BRIGHT], deterministic=True)
    made.handles["bright"].gate = asyncio.Event()

    async def run():
        first = [asyncio.create_task(ask(made, images(i), prompts(i))) for i in range(2)]
        await settled(lambda: len(made.handles["bright"].calls) == 2)
        gone = asyncio.create_task(ask(made, images(5), ["gone"] * 2))
        await settled(lambda: len(made._scheduler.queue) == 2)
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        assert len(made._scheduler.queue) == 0
        made.handles["bright"].gate.set()
        await asyncio.gather(*first)

    asyncio.run(run())
    assert all("gone" not in texts for _, texts in made.handles["bright"].calls)


def test_one_of_a_merged_batch_may_leave_and_the_others_are_answered():
    made = service([BRIGHT], deterministic=False)
    gate = made.handles["bright"].gate = asyncio.Event()

    async def run():
        first = asyncio.create_task(ask(made, images(0), prompts(0)))
        await settled(lambda: len(made.handles["bright"].calls) == 1)
        pair = [asyncio.create_task(ask(made, images(i, 4), prompts(i, 4), trainer=f"t{i}")) for i in (1, 2)]
        await settled(lambda: len(made.handles["bright"].calls) == 2)  # 8 rows: sent ahead as a full batch
        pair[0].cancel()
        gate.set()
        return await asyncio.gather(first, pair[1])

    replies = asyncio.run(run())
    np.testing.assert_allclose(replies[1].combined.reward, 5 * images(2, 4).mean((1, 2, 3)), rtol=1e-6)
    assert [rows for rows, _ in made.handles["bright"].calls] == [2, 8]


def test_the_sum_changes_while_calls_are_on_their_way():
    made = service([BRIGHT])
    made.handles["bright"].gate = asyncio.Event()

    async def run():
        before = asyncio.create_task(ask(made, images(0), prompts(0)))
        await settled(lambda: made.handles["bright"].calls)
        made.reconfigure({"terms": [{"name": "bright", "weight": 2.0, "cap": 0.1}], "tokens": {}})
        after = asyncio.create_task(ask(made, images(0), prompts(0)))
        made.handles["bright"].gate.set()
        return await before, await after

    before, after = asyncio.run(run())
    np.testing.assert_allclose(before.combined.reward, 5 * images(0).mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(after.combined.reward, [0.2, 0.2], rtol=1e-6)
    assert (after.combined.gradient == 0).all() and made.describe().models[0].cap == 0.1


def test_terms_of_other_models_are_refused_and_the_old_ones_stay(caplog):
    made = service([BRIGHT])
    for term, message in (
        ({"name": "watch"}, r"terms are of \['watch'\], but the deployed models are \['bright'\]"),
        ({"name": "bright", "wieght": 2}, "unknown key 'wieght' in terms\\[0\\]: did you mean terms\\[0\\].weight"),
        ({"name": "bright", "model": "clip"}, "unknown key 'model'"),  # that takes another deployment
    ):
        made.reconfigure({"terms": [term], "tokens": {}})  # Serve would end a replica that raises
        assert re.search(message, caplog.text)
        with pytest.raises(UserError, match=message):
            RewardIngress(made.settings, made.handles, {}).reconfigure({"terms": [term], "tokens": {}})
    for given in (
        {"terms": [{"name": "bright"}]},
        {"terms": None, "tokens": {}},
        {"terms": [{"name": "bright"}], "tokens": None},
        None,
    ):
        made.reconfigure(given)
    assert "tokens: Field required" in caplog.text
    assert [(model.name, model.weight) for model in made.describe().models] == [("bright", 5.0)]


def test_a_service_that_stops_finishes_what_it_took_and_takes_no_more():
    made = service([BRIGHT])
    made.handles["bright"].gate = asyncio.Event()

    async def run():
        taken = asyncio.create_task(ask(made, images(), prompts(0)))
        await settled(lambda: made.handles["bright"].calls)
        draining = asyncio.create_task(made.drain(20.0))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await ask(made, images(), prompts(0))
        assert not (await made.health()).ok
        made.handles["bright"].gate.set()
        return await draining, await taken

    left, reply = asyncio.run(run())
    assert left == 0 and reply.combined.reward.shape == (2,)


def test_a_model_without_gradient_is_refused_only_for_a_gradient():
    made = service([{"name": "size", "model": "jpeg"}])
    (reply,) = together(ask(made, images(), prompts(0), gradient=False))
    assert (reply.combined.reward < 0).all() and not made.describe().models[0].differentiable
    (error,) = together(ask(made, images(), prompts(0)))
    assert isinstance(error, ValueError) and "'size' has no gradient: hold it out" in str(error)
    assert len(made.handles["size"].calls) == 1


@pytest.mark.parametrize(
    ("x", "texts", "space", "message"),
    [
        (images(count=3), prompts(0), "images", "3 images but 2 prompts"),
        (images(), prompts(0), "latents", "no VAE"),
        (255 * images(), prompts(0), "images", "pixels lie in [0, 1]"),
        (images().astype(np.float16), prompts(0), "images", "float16 was sent"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), prompts(0), "images", "not finite"),
        (images(count=9), prompts(0, 9), "images", "9 rows were sent: at most 8"),
        (np.zeros((2, 3, 8, 17), np.float32), prompts(0), "images", "at most 16 a side"),
        (images(), ["x" * 101, "y"], "images", "a prompt of 101 characters"),
    ],
)
def test_a_bad_call_is_refused_before_any_work(x, texts, space, message):
    made = service([BRIGHT], limits={"rows": 8, "image_side": 16, "prompt_chars": 100})
    (error,) = together(ask(made, x, texts, space))
    assert isinstance(error, ValueError) and message in str(error)
    assert made.handles["bright"].calls == []
