"""Keepers that are lost or hang are replaced while the run goes on, and ranks that do not meet are a fault."""

from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from dipp_ray.errors import RoleFailure
from dipp_ray.roles.keeper import ShareKey
from dipp_ray.training import memory as module
from dipp_ray.training import session as session_module
from dipp_ray.training.memory import StateMemory
from dipp_ray.training.session import Session
from settings import tiny_config

SHARES = [ShareKey(4, group, 0, 1) for group in ("generator", "score")]


class Keeper:
    """state: well, lost or hangs."""

    def __init__(self, state="well", shares=()):
        self.state, self.have = state, SimpleNamespace(remote=lambda: (self, list(shares)))


class Ray:
    def __init__(self):
        self.killed = []

    def wait(self, calls, num_returns, timeout):
        return calls, []

    def get(self, call, timeout=None):
        keeper, value = call
        if keeper.state != "well":
            raise {"lost": RayActorError, "hangs": GetTimeoutError}[keeper.state]
        return value

    def kill(self, keeper):
        self.killed.append(keeper)


class Actors:
    """One rank a group, on nodes a and b; `told` are the keepers that each was given."""

    def __init__(self):
        self.told = {}

    def count(self, role):
        return 1

    def of(self, role, rank):
        node = {"generator": "a", "score": "b"}[role]
        return SimpleNamespace(
            node_id=SimpleNamespace(remote=lambda: node),
            keep_with=SimpleNamespace(remote=lambda keepers: self.told.update({role: keepers})),
        )


@pytest.fixture
def memory(tmp_path, monkeypatch):
    started = []

    def start(node):
        started.append(Keeper())
        return started[-1]

    options = lambda scheduling_strategy: SimpleNamespace(remote=lambda: start(scheduling_strategy))  # noqa: E731
    monkeypatch.setattr(module, "ray", Ray())
    monkeypatch.setattr(module, "Keeper", SimpleNamespace(options=options))
    monkeypatch.setattr(module, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
    monkeypatch.setattr(module, "living_nodes", lambda: {"a", "b", "head"})
    monkeypatch.setattr(module, "wait_all", lambda asked, *_: asked)
    return StateMemory(tiny_config(tmp_path, tmp_path, tmp_path, "checkpoint.memory_every=2"))


@pytest.mark.parametrize("state", ["lost", "hangs"])
def test_a_keeper_that_does_not_answer_is_ended_and_replaced(memory, state):
    gone, stays = Keeper(state), Keeper()
    memory.keepers = {"head": gone, "b": stays}
    memory.lost = True
    actors = Actors()
    memory.attach(actors, print)
    assert module.ray.killed == [gone] and not memory.lost
    assert memory.keepers["head"] is not gone and memory.keepers["b"] is stays
    assert actors.told == {"generator": [memory.keepers["head"]], "score": [memory.keepers["head"]]}


def test_the_newest_state_is_that_of_the_keepers_that_answer(memory):
    memory.keepers = {"a": Keeper("hangs", [ShareKey(6, "score", 0, 1)]), "b": Keeper("well", SHARES)}
    assert memory.newest([4, 6]).step == 4
    assert memory.lost and set(memory.keepers) == {"b"}
    assert memory.newest([2]) is None


@pytest.mark.parametrize("words", ["Connection closed by peer", "something else"])
def test_ranks_that_do_not_meet_because_one_was_lost_are_a_fault_that_is_recovered_from(tmp_path, monkeypatch, words):
    ended, released = [], []

    class Group:
        def __init__(self, *_):
            pass

        def meet(self):
            raise RayTaskError("meet", f"traceback: {words}", RuntimeError(words)).as_instanceof_cause()

        def kill(self):
            ended.append(self)

    monkeypatch.setattr(session_module, "Group", Group)
    placement = SimpleNamespace(plan=SimpleNamespace(requests=[], where={}), release=lambda: released.append(True))
    error = RoleFailure if "peer" in words else RayTaskError
    with pytest.raises(error, match=words):
        Session.open(tiny_config(tmp_path, tmp_path, tmp_path), None, placement, None, None, None, None, print)
    assert len(ended) == 2 and not released, "it is given for the next session's, and must not be lost to others"
