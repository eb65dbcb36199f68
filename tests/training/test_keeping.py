"""Where shares of the state are kept, when a kept state is complete, and how many faults in a row are survived."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_keeper_owns_what_it_holds_and_forgets_what_is_older_than_complete():
    keeper = Keeper.__ray_metadata__.modified_class()
    sent = np.ones(3, dtype=np.float32)
    for step in (2, 4, 6):
        keeper.hold(ShareKey(step, "score", 0, 1), {"w": sent}, {"updates": step}, complete=step - 2)
    sent[:] = 0
    assert keeper.have() == [(4, "score", 0, 1), (6, "score", 0, 1)]
    tensors, counters = keeper.share((4, "score", 0, 1))
    assert tensors["w"].tolist() == [1, 1, 1] and counters == {"updates": 4}
    keeper.forget(after=4)
    assert keeper.have() == [(4, "score", 0, 1)]


def test_what_was_sent_is_waited_for_and_a_lost_keeper_is_told(monkeypatch):
    held = []

    class Held:
        class hold:
            @staticmethod
            def remote(*arguments):
                held.append(arguments)
                return arguments

    monkeypatch.setattr("dipp_ray.roles.keeper.ray.put", lambda value: value)
    monkeypatch.setattr("dipp_ray.roles.keeper.ray.get", lambda references: None)
    sender = Sender()
    sender.keepers = [Held, Held]
    sender.send(ShareKey(2, "score", 0, 1), {"w": torch.ones(2)}, {"updates": 1}, 0)
    sender.arrived(2)
    assert [key for key, *_ in held] == [(2, "score", 0, 1)] * 2 and held[0][1]["w"].tolist() == [1, 1]

    def lost(references):
        raise ConnectionError("the keeper is gone")

    monkeypatch.setattr("dipp_ray.roles.keeper.ray.get", lost)
    sender.send(ShareKey(4, "score", 0, 1), {}, {}, 2)
    with pytest.raises(ConnectionError):
        sender.arrived(4)
    monkeypatch.setattr("dipp_ray.roles.keeper.ray.get", lambda references: None)
    sender.send(ShareKey(6, "score", 0, 1), {}, {}, 2)  # what was lost before is no reason not to send
    sender.arrived(6)


def test_faults_in_a_row_without_progress_are_bounded_and_lost_nodes_are_not_counted():
    attempts = Attempts(2)
    attempts.finished(5)
    assert attempts.again(lost_node=False) and attempts.again(lost_node=False)
    attempts.finished(4)  # a step that was done before is no progress
    assert attempts.again(lost_node=True)
    assert not attempts.again(lost_node=False)
    attempts.finished(6)
    assert attempts.again(lost_node=False)
    assert (attempts.failures, attempts.preemptions) == (4, 1)
    assert not Attempts(0).again(lost_node=False)
