"""What saves memory changes no step: weights cut as they are read, state in the node's memory; and compiling."""

import pytest
import ray
import torch
from ranks import run, start, together, whole_state

from dipp_ray.models.components import find_weights
from tiny import pixart_pipeline

pytestmark = pytest.mark.slow  # ranks of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixart_pipeline(tmp_path_factory.mktemp("memory") / "pipeline")


@pytest.fixture(scope="module")
def ranks(ray_session, folder):
    found = start(folder, 2)
    yield found
    for rank in found:
        ray.kill(rank)


def trained(ranks):
    """Norms of three updates, the state after them, and what the average's weights and then the trained ones give."""
    norms = run(ranks, range(3))
    (state, _), averaged = whole_state(ranks), together(ranks, "output", True)
    return norms, state, averaged, together(ranks, "output")


def assert_same(found, expected):
    assert found[0] == expected[0] and found[2:] == expected[2:]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


def assert_close(found, expected):
    """At ZeRO 3 DeepSpeed adds up the gradient's norm in another order there, and clips by it."""
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert (found[2], found[3]) == (pytest.approx(expected[2], rel=1e-5), pytest.approx(expected[3], rel=1e-5))
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_at_zero_3_each_rank_reads_its_own_part_and_nothing_else(ranks, folder):
    together(ranks, "begin", 3)
    expected = trained(ranks)
    seen = together(ranks, "begin_in_parts")
    header = find_weights(folder / "transformer", "diffusers").header()
    whole = sum(4 * torch.Size(tensor.shape).numel() for tensor in header.values())
    assert sum(size for size, _ in seen) == whole, "each byte once over all ranks"
    assert all(here <= 1.2 * whole / 2 for _, here in seen), "no rank holds more than its own part"
    assert_same(trained(ranks), expected)


def assert_away(ranks, offload):
    for optimiser, weights, moments, devices in together(ranks, "placed"):
        assert optimiser and weights == (offload == "weights") and moments > 0 and devices == {"cpu"}


@pytest.mark.parametrize(("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "weights")])
def test_state_in_the_nodes_memory_is_the_same(ranks, stage, offload):
    together(ranks, "begin", stage)
    expected = trained(ranks)
    assert [away[:2] for away in together(ranks, "placed")] == 2 * [(False, False)]
    middle = whole_state(ranks)
    ranks_of = [rank.begin.remote(stage, offload=offload) for rank in ranks]
    ray.get(ranks_of)
    (assert_same if stage < 3 else assert_close)(trained(ranks), expected)
    assert_away(ranks, offload)
    ray.get([rank.begin.remote(stage, offload=offload) for rank in ranks])
    together(ranks, "load", *middle)
    assert all(torch.equal(value, middle[0][name]) for name, value in whole_state(ranks)[0].items())


def test_weights_that_are_cut_as_they_are_read_may_lie_there_too(ranks):
    together(ranks, "begin", 3)
    expected = trained(ranks)
    ray.get([rank.begin_in_parts.remote(offload="weights") for rank in ranks])
    assert_close(trained(ranks), expected)
    assert_away(ranks, "weights")


def test_a_compiled_network_follows_the_same_trajectory_within_rounding(ranks):
    together(ranks, "begin", 1)
    expected, before = trained(ranks), together(ranks, "compiled")
    assert not any(compiles for compiles, _ in before)
    ray.get([rank.begin.remote(1, compile=True) for rank in ranks])
    norms, _, averaged, output = trained(ranks)
    for (_, frames), (compiles, now) in zip(before, together(ranks, "compiled"), strict=True):
        assert compiles and now > frames, "a frame of it was compiled, not passed over"
    assert norms == pytest.approx(expected[0], rel=1e-4)
    assert (averaged, output) == (pytest.approx(expected[2], rel=1e-5), pytest.approx(expected[3], rel=1e-5))
