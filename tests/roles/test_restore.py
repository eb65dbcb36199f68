"""A group's checkpoint at another size and stage: each byte read once over all ranks, nothing damaged taken."""

from pathlib import Path

import pytest
import ray
import torch
from ranks import run, start, together, whole_state

from dipp_ray.checkpoints import CheckpointStore
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
        assert all(said is None for said, *_ in restore(groups[world], stage, url, step))
        assert_same(whole_state(groups[world]), state)
        save(groups[world], url, step + 1)
        assert run(groups[world], (2, 3)) == pytest.approx(norms, rel=1e-4)


def test_each_byte_is_read_once_and_never_much_at_a_time(groups, trained):
    url, state, _ = trained
    files = CheckpointStore(url).require(2).of_group("generator", "safetensors")
    whole, largest = sum(file.size for file in files), max(value.nbytes for value in state[0].values())
    for stage, options in ((3, ()), (0, ()), (3, (True,))):
        restored = restore(groups[4], stage, url, 2, *options)
        read = [size for _, size, _ in restored]
        assert sorted(read) == [0, 0, *sorted(file.size for file in files)] and sum(read) == whole
        assert max(held for *_, held in restored) <= 2 * largest < whole / 8


def test_three_ranks_do_not_divide_the_parameters_and_have_them_all_the_same(groups, trained, folder):
    url, state, _ = trained
    assert any(value.numel() % 3 for value in state[0].values())
    ranks = start(folder, 3)
    try:
        for stage in (3, 2):
            assert all(said is None for said, *_ in restore(ranks, stage, url, 2))
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
    said = [said for said, *_ in restore(groups[2], 2, url, 1)]
    word = "is missing" if place == "gone" else "is damaged: its bytes are not those that were committed"
    assert len(said) == 2 and all(word in one and "share_01_of_02" in one for one in said)


def test_another_network_is_one_sentence(groups, trained, tmp_path):
    url = tmp_path.as_uri()
    tensors, counters = trained[1]
    fewer = {name: value for name, value in tensors.items() if name != "exp_avg/proj_out.bias"}
    assert len(fewer) == len(tensors) - 1
    store = CheckpointStore(url)
    store.commit(1, {}, store.write_share(1, "generator", 0, 1, fewer, counters))
    for said, *_ in restore(groups[2], 2, url, 1):
        assert said == "the checkpoint lacks exp_avg/proj_out.bias (1 such): it is of another network"
