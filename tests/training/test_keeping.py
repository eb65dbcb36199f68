"""Where shares of the state are kept, when a kept state is complete, and how many faults in a row are survived."""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from dipp_ray.roles.keeper import Keeper, Sender, ShareKey
from dipp_ray.training.attempts import Attempts
from dipp_ray.training.keeping import complete_steps, keeper_nodes

NODES = ["a", "b", "c", "d"]


@given(
    homes=st.dictionaries(
        st.tuples(st.sampled_from(["generator", "score"]), st.integers(0, 3)), st.sampled_from(NODES), min_size=1
    ),
    others=st.sets(st.sampled_from(NODES)),
)
def test_whichever_node_is_lost_every_share_is_left(homes, others):
    nodes = {*homes.values(), *others}
    places = keeper_nodes(homes, nodes)
    assert places.keys() == homes.keys()
    for worker, kept in places.items():
        assert set(kept) <= nodes and len(set(kept)) == len(kept)
        for lost in nodes if len(nodes) > 1 else ():
            assert set(kept) - {lost} or (homes[worker] != lost and kept == [lost]), (
                "what its keeper's node held is still with its rank"
            )


def test_a_node_without_ranks_keeps_one_copy_and_nodes_with_ranks_keep_two():
    ranks = {("generator", 0): "a", ("generator", 1): "b", ("score", 0): "b"}
    assert set(map(tuple, keeper_nodes(ranks, ["a", "b", "head"]).values())) == {("head",)}
    assert keeper_nodes(ranks, ["a", "b"])["generator", 1] == ["b", "a"]
    assert keeper_nodes({("score", 0): "a"}, ["a"]) == {("score", 0): ["a"]}


def keys(step, *ranks, world=2):
    return [ShareKey(step, group, rank, world) for group, rank in ranks]


WHOLE = [("generator", 0), ("generator", 1), ("score", 0), ("score", 1)]


def test_a_step_is_complete_when_both_groups_have_all_shares_of_one_size():
    kept = [*keys(2, *WHOLE), *keys(4, *WHOLE), *keys(6, *WHOLE[:3]), *keys(8, *WHOLE[:2])]
    assert complete_steps(kept) == [2, 4]
    assert complete_steps([*keys(6, *WHOLE[:3]), ShareKey(6, "score", 0, 1)]) == [6]
    assert complete_steps([*keys(6, *WHOLE[:3]), ShareKey(6, "score", 1, 4)]) == []


def test_a_keeper_owns_what_it_holds_and_forgets_what_is_older_than_complete(monkeypatch):
    monkeypatch.setattr("dipp_ray.roles.keeper.ray.get", lambda reference: reference)
    keeper = Keeper.__ray_metadata__.modified_class()
    sent = np.ones(3, dtype=np.float32)
    for step in (2, 4, 6):
        keeper.hold(ShareKey(step, "score", 0, 1), [{"w": sent}], {"updates": step}, complete=step - 2)
    sent[:] = 0
    assert keeper.have() == [(4, "score", 0, 1), (6, "score", 0, 1)]
    tensors, counters = keeper.share((4, "score", 0, 1))
    assert tensors["w"].tolist() == [1, 1, 1] and counters == {"updates": 4}
    keeper.forget(after=4)
    assert keeper.have() == [(4, "score", 0, 1)]


class RaysCalls:
    """ray's put, get and wait over calls of `KeeperBySight`, whose state says how they end."""

    @staticmethod
    def put(value):
        return value

    @staticmethod
    def wait(calls, timeout):
        ended = [call for call in calls if call.keeper.state != "slow" or call.method != "hold"]
        ended = [call for call in ended if call.keeper.state != "hangs"][:1]
        return ended, [call for call in calls if call not in ended]

    @staticmethod
    def get(calls, timeout=None):
        for call in calls if isinstance(calls, list) else [calls]:
            if call.keeper.state == "lost":
                raise RayActorError
            if call.keeper.state == "hangs":
                raise GetTimeoutError
            if call.keeper.state == "slow":
                call.keeper.state = "well"


class KeeperBySight:
    """state: well, lost, hangs, or slow, which answers after it was asked for a sign of life."""

    def __init__(self, state="well"):
        self.state, self.calls = state, []
        self.hold, self.alive = (SimpleNamespace(remote=partial(self._called, name)) for name in ("hold", "alive"))

    def _called(self, method, *arguments):
        self.calls.append((method, *arguments))
        return SimpleCall(self, method, arguments)


class SimpleCall(NamedTuple):
    keeper: KeeperBySight
    method: str
    arguments: tuple

    def __hash__(self):
        return id(self)


@pytest.fixture
def sender(monkeypatch):
    for name in ("put", "wait", "get"):
        monkeypatch.setattr(f"dipp_ray.roles.keeper.ray.{name}", getattr(RaysCalls, name))
    sender = Sender(patience_s=1.0)
    sender.keepers = [KeeperBySight(), KeeperBySight()]
    return sender


def test_what_was_sent_is_waited_for_and_a_lost_keeper_is_told(sender):
    sender.send(ShareKey(2, "score", 0, 1), {"w": torch.ones(2)}, {"updates": 1}, 0)
    sender.arrived(2)
    for keeper in sender.keepers:
        ((method, key, tensors, counters, complete),) = keeper.calls
        assert (method, key, counters, complete) == ("hold", (2, "score", 0, 1), {"updates": 1}, 0)
        assert tensors[0]["w"].tolist() == [1, 1]
    sender.keepers[1].state = "lost"
    sender.send(ShareKey(4, "score", 0, 1), {}, {}, 2)
    with pytest.raises(RayActorError):
        sender.arrived(4)
    sender.keepers[1].state = "well"
    sender.send(ShareKey(6, "score", 0, 1), {}, {}, 2)  # what was lost before is no reason not to send
    sender.arrived(6)


def test_a_keeper_that_hangs_is_told_and_one_that_is_slow_is_waited_for(sender):
    sender.keepers[0].state = "slow"
    sender.send(ShareKey(2, "score", 0, 1), {}, {}, 0)
    sender.arrived(2)
    assert [method for method, *_ in sender.keepers[0].calls] == ["hold", "alive"]
    sender.keepers[0].state = "hangs"
    sender.send(ShareKey(4, "score", 0, 1), {}, {}, 2)
    with pytest.raises(RayError):
        sender.arrived(4)


def test_faults_in_a_row_without_progress_are_bounded_and_lost_nodes_are_not_counted():
    attempts = Attempts(2)
    attempts.finished(5)
    assert attempts.again(None) and attempts.again(None)
    attempts.finished(4)  # a step that was done before is no progress
    attempts.preempted()
    assert not attempts.again(None)
    attempts.finished(6)
    assert attempts.again(None)
    assert (attempts.failures, attempts.preemptions) == (4, 1)
    assert not Attempts(0).again(None)


def test_memory_that_runs_out_at_the_same_sizes_is_bounded_though_steps_are_finished_between():
    attempts = Attempts(2)
    for done in (3, 6):
        attempts.finished(done)
        assert attempts.again("large")
    attempts.finished(9)
    assert attempts.again("small")
    attempts.finished(12)
    assert not attempts.again("large") and attempts.in_a_row == 1
