"""One session after the other: in which room, from which state, and what is counted, without Ray."""

from types import SimpleNamespace

import pytest

from dipp_ray.errors import RoleFailure
from dipp_ray.reporting.events import read_events
from dipp_ray.roles.waiting import LOW_ON_MEMORY, UNREACHABLE
from dipp_ray.training import sessions as module
from dipp_ray.training.faults import GOES_ON, MORE_MEMORY
from dipp_ray.training.growth import GROWTH
from dipp_ray.training.sessions import Sessions
from dipp_ray.training.sizes import Sizes
from settings import tiny_config


class Room:
    """Room for ranks on one node."""

    def __init__(self, node="a"):
        self.node, self.released = node, False

    def node_ids(self):
        return {self.node}

    def release(self):
        self.released = True


class World:
    """reserved: the room that was given up each time; fails: whether a session's ranks do not meet."""

    def __init__(self):
        self.reserved, self.fails, self.nodes, self.states = [], False, {"a", "b"}, []
        self.fits = lambda given_up: True  # whether ranks fit into what is free and these placements' room

    def reserve(self, choices, wait_s, say, instead_of):
        self.reserved.append(instead_of)
        return Room("b")

    def open(self, config, roles, room, state, *_):
        self.states.append(state)
        if self.fails:
            raise RoleFailure("a rank was lost while they met")
        return SimpleNamespace(placement=room, sizes=Sizes(1, 1, 1), end_ranks=lambda: None)


class Pool:
    """Three teachers, of whom two may go."""

    def __init__(self):
        self.members, self.did, self.ranks_lack = {0: 1, 1: 1, 2: 1}, [], list

    def withdraw(self):
        self.did.append("withdraw")

    def spare(self):
        return [2, 1]

    def room_of(self, index):
        return f"room of {index}"

    def give_up(self, index):
        self.did.append(index)


@pytest.fixture
def world(monkeypatch):
    world = World()
    nothing = SimpleNamespace(add=lambda *_: None, set=lambda *_: None, close=lambda: None, give_to=lambda _: None)
    monkeypatch.setattr(module, "reserve", world.reserve)
    monkeypatch.setattr(module, "Session", SimpleNamespace(open=world.open))
    monkeypatch.setattr(module, "living_nodes", lambda: world.nodes)
    monkeypatch.setattr(module, "Telemetry", lambda run: nothing)
    monkeypatch.setattr(module, "cluster_nodes", lambda given_up: given_up)
    monkeypatch.setattr(
        module, "best_plan", lambda choices, given_up: SimpleNamespace(possible=world.fits(given_up), waits=False)
    )
    nothing.lacking = lambda: ["a rank"]
    surroundings = SimpleNamespace(demand=nothing, close=lambda: None, reason_to_move=lambda: None, leaving={})
    monkeypatch.setattr(module, "Surroundings", lambda *_, **__: surroundings)
    return world


@pytest.fixture
def sessions(world, tmp_path):
    config = tiny_config(tmp_path, tmp_path, tmp_path, "roles.failures=2")
    config.path.mkdir()
    roles = SimpleNamespace(pool=Pool(), placement=Room(), move=lambda *_: None)
    return Sessions(config, roles, Room("a"), [], SimpleNamespace(url="u"), print)


def test_the_room_of_a_session_is_given_for_the_next_one_though_its_ranks_did_not_meet(world, sessions):
    first = sessions.room
    sessions.open(lambda: None, 0, [])
    assert world.reserved == []
    sessions.survive(RoleFailure("a rank died"), 5)
    world.fails = True
    with pytest.raises(RoleFailure):
        sessions.open(lambda: None, 0, [])
    second = sessions.room
    assert world.reserved == [first] and not second.released
    sessions.survive(RoleFailure("another"), 3)
    world.fails = False
    sessions.open(lambda: None, 0, [])
    assert world.reserved == [first, second], "else the ranks that ended hold it, and the groups would be smaller"
    sessions.close()
    assert sessions.room.released


def test_room_is_looked_for_anew_where_the_very_first_ranks_did_not_meet(world, sessions):
    first, world.fails = sessions.room, True
    with pytest.raises(RoleFailure):
        sessions.open(lambda: None, 0, [])
    sessions.survive(RoleFailure("its node was lost"), 0)
    world.fails = False
    sessions.open(lambda: None, 0, [])
    assert world.reserved == [first] and sessions.current.placement is not first


def test_a_fault_while_the_run_recovers_belongs_to_the_same_recovery(world, sessions):
    sessions.open(lambda: None, 0, [])
    sessions.finished(5)
    sessions.survive(RoleFailure("a rank died"), 5)
    sessions.survive(RoleFailure("another"), 2)  # what the run remembers of its last state
    sessions.open(lambda: None, 0, [])
    sessions.finished(3)
    events = read_events(sessions.config.path)
    assert [(event["event"], event["step"]) for event in events] == [("fault", 5), ("fault", 5), ("recovered", 3)]
    assert events[-1]["steps_lost"] == 3
    sessions.finished(6)
    sessions.survive(RoleFailure("a third"), 6)
    assert sessions.attempts.in_a_row == 1, "there was progress"


@pytest.mark.parametrize(("reason", "event"), [(UNREACHABLE, "lost node"), ("its process was killed", "fault")])
def test_ray_is_given_time_to_say_that_the_node_of_an_unreachable_rank_is_lost(sessions, monkeypatch, reason, event):
    looks = iter([{"a", "b"}, {"a", "b"}, {"b"}])
    monkeypatch.setattr(module, "living_nodes", lambda: next(looks))
    sessions.open(lambda: None, 0, [])
    sessions.survive(RoleFailure(f"score model rank 0 died: {reason}"), 1)
    assert [one["event"] for one in read_events(sessions.config.path)] == [event]


def test_faults_in_a_row_end_the_run_and_lost_nodes_do_not(world, sessions):
    sessions.open(lambda: None, 0, [])
    world.nodes = {"b"}
    for _ in range(4):
        sessions.survive(RoleFailure("its node was lost"), 1)
    world.nodes = {"a", "b"}
    sessions.survive(RoleFailure("one"), 1)
    sessions.survive(RoleFailure("two"), 1)
    with pytest.raises(RoleFailure, match="three"):
        sessions.survive(RoleFailure("three"), 1)
    assert [event["event"] for event in read_events(sessions.config.path)] == ["lost node"] * 4 + ["fault"] * 3


def test_memory_that_runs_out_again_and_again_at_the_same_sizes_ends_the_run_with_the_remedy(world, sessions):
    """Whatever was finished between: the next ranks of that size meet the same."""
    fault = RoleFailure(f"generator rank 0 died in step 5, 'train': {LOW_ON_MEMORY}; {GOES_ON}")
    for done in (5, 10):
        sessions.open(lambda: None, 0, [])
        sessions.finished(done)
        sessions.survive(fault, done)
    sessions.open(lambda: None, 0, [])
    sessions.finished(15)
    with pytest.raises(RoleFailure) as ended:
        sessions.survive(fault, 15)
    assert str(ended.value) == (
        f"generator rank 0 died in step 5, 'train': {LOW_ON_MEMORY}; memory ran out 3 times with 1 generator and "
        f"1 score model ranks: {MORE_MEMORY}; {GOES_ON}"
    )


def test_lost_nodes_and_moves_away_from_them_are_preemptions_and_growth_is_none(world, sessions):
    added = []
    sessions.telemetry = SimpleNamespace(add=lambda name, *_: added.append(name))
    sessions.open(lambda: None, 0, [])
    world.nodes = {"b"}
    sessions.survive(RoleFailure("its node was lost"), 1)
    sessions.surroundings.reason_to_move = lambda: "node b leaves the cluster in 30 s"
    sessions.reason_to_move()
    sessions.moves()
    assert sessions.attempts.preemptions == 2 and added == ["dipp_ray_preemptions"] * 2
    sessions.surroundings.reason_to_move = lambda: GROWTH
    sessions.reason_to_move()
    sessions.moves()
    assert sessions.attempts.preemptions == 2


def test_a_keeper_whose_node_leaves_is_replaced_at_the_next_boundary(world, sessions):
    sessions.open(lambda: None, 0, [])
    sessions.memory.nodes = {"head", "b"}
    sessions.reason_to_move()
    assert not sessions.memory.lost
    sessions.surroundings.leaving = {"head": 0.0}
    sessions.reason_to_move()
    assert sessions.memory.lost


def test_the_pool_asks_for_nothing_while_ranks_look_for_room_and_knows_what_they_lack(world, sessions):
    sessions.open(lambda: None, 0, [])
    assert sessions.roles.pool.did == ["withdraw"]
    assert sessions.roles.pool.ranks_lack() == ["a rank"]


@pytest.mark.parametrize(
    ("fits", "gone"),
    [
        (lambda given_up: True, []),
        (lambda given_up: "room of 2" in given_up, [2]),
        (lambda given_up: "room of 1" in given_up, [2, 1]),
        (lambda given_up: False, []),
    ],
    ids=["there is room", "one makes room", "two do", "nor would two"],
)
def test_teachers_that_the_pool_may_do_without_make_room_for_ranks(world, sessions, fits, gone):
    sessions.open(lambda: None, 0, [])
    sessions.survive(RoleFailure("a rank died"), 5)
    world.fits, sessions.roles.pool.did = fits, []
    sessions.open(lambda: None, 0, [])
    assert sessions.roles.pool.did == ["withdraw", *gone]


@pytest.mark.parametrize(
    ("kept", "saved", "found", "newest"),
    [
        (6, 4, "not asked", 6),
        (4, 4, "not asked", 4),  # as new: no storage is read
        (4, 6, 6, 6),
        (None, 6, 6, 6),
        (4, 6, 2, 4),
        (4, 6, None, 4),  # what was committed is gone
        (None, 0, None, None),
    ],
)
def test_the_newest_state_is_taken_and_storage_is_read_only_where_it_has_that(
    world, sessions, kept, saved, found, newest
):
    def find():
        assert found != "not asked", "a store that is away is in nobody's way"
        return found and SimpleNamespace(step=found)

    sessions.memory.newest = lambda remembered: kept and SimpleNamespace(step=kept)
    state = sessions.open(find, saved, [kept])
    assert (state and state.step) == newest and world.states == [state]
