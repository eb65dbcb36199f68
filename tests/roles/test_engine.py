"""The DeepSpeed engine against plain AdamW, at every stage and at one and two ranks; its state by name."""

import pytest
import ray
import torch
from ranks import OPTIM, SAMPLES, batch, loss_of, run, start, together, whole_state

from dipp_ray.models.pipeline import load_denoiser
from dipp_ray.training.plain import Trained
from tiny import pixart_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixart_pipeline(tmp_path_factory.mktemp("engine") / "pipeline")


@pytest.fixture(scope="module")
def lives(ray_session, folder):
    """Groups of one and of two ranks, and others that train nothing before they load, as after a crash."""
    first, second = ({world: start(folder, world) for world in (1, 2)} for _ in range(2))
    yield first, second
    for ranks in (*first.values(), *second.values()):
        for rank in ranks:
            ray.kill(rank)


@pytest.fixture(scope="module")
def reference(folder):
    """Norms, weights and moving average of five updates with torch alone."""
    trained = Trained(load_denoiser(folder, "fp32"), OPTIM)
    network = trained.network
    average = {name: p.detach().clone() for name, p in network.network.named_parameters()}
    norms = []
    for update in range(5):
        x, t, tokens = batch(update)
        for i in range(SAMPLES):
            rows = slice(i, i + 1)
            (loss_of(network, x[rows], t[rows], tokens[rows]) / SAMPLES).backward()
        norms.append(trained.step())
        for name, p in network.network.named_parameters():
            average[name].lerp_(p.detach(), 0.1)
    with torch.no_grad():
        return norms, loss_of(network, *batch(1000)).item(), average


def resumed(ranks, stage, state):
    """Norms of the updates after the third, by an engine that loaded the state then."""
    together(ranks, "begin", stage)
    together(ranks, "load", *state)
    return run(ranks, (3, 4))


# (stage, world, where the state of the third update is loaded a second time: another stage and size)
@pytest.mark.parametrize(
    ("stage", "world", "other"),
    [(0, 1, (2, 2)), (1, 2, (3, 2)), (2, 2, (0, 1)), (3, 2, (1, 1)), (3, 1, (0, 2)), (1, 1, (3, 1)), (2, 1, (0, 1))],
)
def test_engine_follows_plain_adamw_and_resumes_to_the_bit(lives, reference, stage, world, other):
    norms, loss, average = reference
    first, second = lives
    ranks = first[world]
    together(ranks, "begin", stage)
    seen = run(ranks, range(3))
    middle = whole_state(ranks)
    seen += run(ranks, (3, 4))
    assert seen == pytest.approx(norms, rel=1e-4)
    final = together(ranks, "output")[0]
    assert final == pytest.approx(loss, rel=1e-5)
    assert together(ranks, "output", True)[0] != pytest.approx(final, rel=1e-5)  # the moving average's
    assert together(ranks, "output")[0] == final  # the trained weights came back to the bit
    state, _ = whole_state(ranks)
    assert len(state) == 4 * len(average)
    for name in average:
        torch.testing.assert_close(state[f"ema/{name}"], average[name], rtol=1e-3, atol=2e-4)
    whole = sum(value.numel() for value in average.values())
    weights, moments = together(ranks, "shard_elements")[0]
    assert (weights < 0.6 * whole) == (stage == 3 and world == 2), "weights are sharded at ZeRO 3 alone"
    assert (moments < 0.6 * whole) == (stage >= 1 and world == 2), "moments are sharded from ZeRO 1 on"

    assert resumed(second[world], stage, middle) == seen[3:]
    again, _ = whole_state(second[world])
    assert all(torch.equal(again[name], state[name]) for name in state)

    for factor in (float("nan"), float("inf")):  # on one rank alone, yet no rank steps
        for said, kept, counters in together(second[world], "refuse", factor):
            assert "the gradient of step 3 is not finite" in said
            assert kept and counters == {"updates": 5}, "the weights stay as they were"

    other_stage, other_world = other
    assert resumed(second[other_world], other_stage, middle) == pytest.approx(norms[3:], rel=1e-4)
