"""A group's state at another size and stage: each byte read once over all ranks, no rank holding much of it, nothing
damaged taken."""

from pathlib import Path

import pytest
import ray
import torch
from ranks import run, start, together, whole_state

from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.roles.keeper import Keeper
from tiny import pixart_pipeline

pytestmark = pytest.mark.slow  # six ranks; what they read through is in tests/checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixart_pipeline(tmp_path_factory.mktemp("restore") / "pipeline")


@pytest.fixture(scope="module")
def groups(ray_session, folder):
    ranks = {world: start(folder, world) for world in (2, 4)}
    yield ranks
    for rank in (*ranks[2], *ranks[4]):
        ray.kill(rank)


@pytest.fixture(scope="module")
def trained(groups, tmp_path_factory):
    """(URL, state) of two updates at two ranks with ZeRO 2, with the norms of the two after them."""
    ranks, url = groups[2], (tmp_path_factory.mktemp("checkpoints")).as_uri()
    together(ranks, "begin", 2)
    run(ranks, (0, 1))
    state = whole_state(ranks)
    save(ranks, url, 2)
    return url, state, run(ranks, (2, 3))


def save(ranks, url, step):
    files = [file for share in together(ranks, "write_share", url, step) for file in share]
    return CheckpointStore(url).commit(step, {}, files)


def restore(ranks, stage, url, step, *options):
    together(ranks, "begin", stage)
    return together(ranks, "restore", url, step, *options)


def assert_same(state, other):
    (tensors, counters), (others, their) = state, other
    assert counters == their and tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_from_two_ranks_to_four_and_back_at_other_stages(groups, trained):
    url, state, norms = trained
    for step, (world, stage) in enumerate([(4, 3), (2, 1), (4, 0), (2, 3), (4, 2)], start=2):
        assert all(said is None for said, _ in restore(groups[world], stage, url, step))
        assert_same(whole_state(groups[world]), state)
        save(groups[world], url, step + 1)
        assert run(groups[world], (2, 3)) == pytest.approx(norms, rel=1e-4)


def test_each_byte_is_read_once(groups, trained):
    url, _, _ = trained
    files = CheckpointStore(url).require(2).of_group("generator", "safetensors")
    for stage, options in ((3, ()), (0, ()), (3, (True,))):
        read = [size for _, size in restore(groups[4], stage, url, 2, *options)]
        assert sorted(read) == [0, 0, *sorted(file.size for file in files)]


def test_three_ranks_do_not_divide_the_parameters_and_have_them_all_the_same(groups, trained, folder):
    url, state, _ = trained
    assert any(value.numel() % 3 for value in state[0].values())
    ranks = start(folder, 3)
    try:
        for stage in (3, 2):
            assert all(said is None for said, _ in restore(ranks, stage, url, 2))
            assert_same(whole_state(ranks), state)
            together(ranks, "output", True)  # the moving average in place, and the weights back
            assert_same(whole_state(ranks), state)
    finally:
        for rank in ranks:
            ray.kill(rank)


def test_weights_alone_leave_moments_and_average(groups, trained):
    url, (tensors, _), _ = trained
    restore(groups[2], 0, url, 2, True)
    state, counters = whole_state(groups[2])
    for name, value in state.items():
        kind = name.partition("/")[0]
        if kind == "master":
            assert torch.equal(value, tensors[name])
        elif kind == "ema":
            assert not torch.equal(value, tensors[name]), "it is that of the network as it was made"
        else:
            assert not value.any()
    assert counters == {"updates": 0}


@pytest.mark.parametrize("place", ["header", "middle", "end", "cut", "gone"])
def test_a_damaged_share_is_said_in_every_rank(groups, trained, tmp_path, place):
    _, state, _ = trained
    url = tmp_path.as_uri()
    store = CheckpointStore(url)
    names = sorted(state[0])
    shares = [{name: state[0][name] for name in names[share::2]} for share in (0, 1)]
    files = [file for share in (0, 1) for file in store.write_share(1, "generator", share, 2, shares[share], state[1])]
    store.commit(1, {}, files)
    path = Path(store.folder(1), "generator/share_01_of_02.safetensors")
    content = bytearray(path.read_bytes())
    if place == "gone":
        path.unlink()
    else:
        content[{"header": 20, "middle": len(content) // 2, "end": -1, "cut": 0}[place]] ^= place != "cut"
        path.write_bytes(content[:-9] if place == "cut" else content)
    said = [said for said, _ in restore(groups[2], 2, url, 1)]
    word = "is missing" if place == "gone" else "is damaged: its bytes are not those that were committed"
    assert len(said) == 2 and all(word in one and "share_01_of_02" in one for one in said)


def test_another_network_is_one_sentence(groups, trained, tmp_path):
    url = tmp_path.as_uri()
    tensors, counters = trained[1]
    fewer = {name: value for name, value in tensors.items() if name != "exp_avg/proj_out.bias"}
    assert len(fewer) == len(tensors) - 1
    store = CheckpointStore(url)
    store.commit(1, {}, store.write_share(1, "generator", 0, 1, fewer, counters))
    for said, _ in restore(groups[2], 2, url, 1):
        assert said == "the checkpoint lacks exp_avg/proj_out.bias (1 such): it is of another network"


@pytest.fixture(scope="module")
def deep(groups, folder, tmp_path_factory):
    """(state, its URL and step, shares of it with their keeper), of a network whose largest tensor is a small part of a
    rank's; the ranks are of it until the module ends, so its tests come last."""
    base = tmp_path_factory.mktemp("deep")
    pipeline = pixart_pipeline(base / "pipeline", layers=14)
    for world in (2, 4):
        together(groups[world], "look_at", pipeline)
    together(groups[2], "begin", 2)
    run(groups[2], (0,))
    save(groups[2], (base / "checkpoints").as_uri(), 1)
    keeper = Keeper.remote()
    keys = [ray.get(one) for one in [rank.kept_with.remote(keeper, 1) for rank in groups[2]]]
    yield whole_state(groups[2]), ((base / "checkpoints").as_uri(), 1), [(key, keeper) for key in keys]
    ray.kill(keeper)
    for world in (2, 4):
        together(groups[world], "look_at", folder)


@pytest.mark.parametrize("stage", [3, 0])
def test_no_rank_of_four_holds_more_than_it_keeps_and_a_little(groups, deep, stage):
    """All that is alive is counted: weights, moments, average, and what is read of the checkpoint."""
    state, committed, _ = deep
    for most, kept, _ in together(groups[4], "peak", stage, "restore", *committed):
        assert most <= 1.2 * kept
    assert_same(whole_state(groups[4]), state)


@pytest.mark.parametrize("stage", [3, 0])
def test_of_the_state_in_memory_a_rank_holds_one_share_besides(groups, deep, stage):
    state, _, shares = deep
    found = together(groups[4], "peak", stage, "take_up", *shares)
    whole = sum(value.nbytes for value in state[0].values())
    fetched = sorted(size for *_, size in found)
    assert fetched[:2] == [0, 0] and sum(fetched) == whole, "each share by one rank"
    for most, kept, _ in found:
        assert most <= 1.2 * kept + fetched[-1] < kept + whole
    assert_same(whole_state(groups[4]), state)
