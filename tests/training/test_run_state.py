"""What a run remembers: the watch over over-optimisation, and its record."""

import json

import pytest

from dipp_ray.errors import UserError
from dipp_ray.training.state import RunState
from dipp_ray.training.watch import held_out_reward

SERVICE = {"models": [{"name": name, "held_out": name != "preference"} for name in ("preference", "gold", "alpha")]}


def judged(state, step, **seen):
    return state.judged(step, held_out_reward({f"held_out/{name}": value for name, value in seen.items()}, SERVICE))


def test_the_best_is_remembered_and_falls_are_counted():
    state = judged(RunState(), 0, gold=9.0)
    assert state.best is None  # the start has no checkpoint that could be kept
    state = judged(state, 10, alpha=25.0)
    assert state == RunState()  # another model than the first held-out one is no judge
    state = judged(state, 10, alpha=25.0, gold=1.0)
    assert state.best == (10, 1.0)
    state = judged(state, 20, gold=0.5)
    assert (state.best, state.falls) == ((10, 1.0), 1) and not state.gives_up(2)
    state = judged(state, 30, gold=2.0)
    assert (state.best, state.falls) == ((30, 2.0), 0)
    state = judged(judged(state, 40, gold=1.9), 50, gold=2.0)  # as good is not better
    assert (state.best, state.falls) == ((30, 2.0), 2)
    assert state.gives_up(2) and not state.gives_up(3) and not state.gives_up(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_judges_nothing(value):
    assert judged(RunState(), 10, gold=value) == RunState()
    assert held_out_reward({}, None) is None


@pytest.mark.parametrize(
    "state",
    [
        RunState(),
        RunState(next_step=7, best=(3, 0.5), falls=2, reward_mean=-1.0, reward_deviation=0.25, service={"models": []}),
    ],
)
def test_a_record_reads_back_as_the_state(state):
    assert RunState.from_record(json.loads(json.dumps(state.to_record()))) == state


@pytest.mark.parametrize(
    "broken", [{"falls": "many"}, {"best": [3]}, {"best": ["a", "b"]}, {"data_cursor": None}, {"reward": None}]
)
def test_a_record_that_cannot_be_read_is_one_sentence(broken):
    with pytest.raises(UserError, match="record of the run cannot be read"):
        RunState.from_record(RunState().to_record() | broken)
    with pytest.raises(UserError, match="record of the run cannot be read"):
        RunState.from_record({})
