"""What a run remembers: the watch over over-optimisation, and its record."""

import json

import numpy as np
import pytest

from dipp_ray.errors import UserError
from dipp_ray.training.looks import History, Look
from dipp_ray.training.state import RunState

SERVICE = {"models": [{"name": name, "held_out": name != "preference"} for name in ("preference", "gold", "alpha")]}
NOISE = np.random.default_rng(0).normal(0, 3, 16).astype(np.float32)  # what the samples differ by
NOISE -= NOISE.mean()
SMALL = np.random.default_rng(1).normal(0, 0.1, 16).astype(np.float32)  # what two looks differ by
START = RunState(service=SERVICE)


def judged(state, step, **means):
    """A look whose samples differ by NOISE, and at later steps by SMALL from one another."""
    scores = {name: mean + NOISE + (SMALL - SMALL.mean()) * (step // 10 % 3) for name, mean in means.items()}
    return state.judged({name: Look.of(step, values.astype(np.float32)) for name, values in scores.items()})


def best(state):
    return state.best and state.best.step


def test_the_start_competes_and_the_best_is_remembered():
    state = judged(START, 0, gold=1.0)
    assert best(state) == 0
    state = judged(state, 10, alpha=25.0)
    assert best(state) == 0  # another model than the first held-out one is no judge
    state = judged(state, 20, gold=0.9)
    assert best(state) == 0  # the best of the steps, and worse than the start
    state = judged(state, 30, gold=1.2)
    assert best(state) == 30 and state.falls == 0
    state = judged(judged(state, 40, gold=1.1), 50, gold=1.3)
    assert best(state) == 50


def test_only_what_is_worse_beyond_noise_is_a_fall():
    state = judged(START, 0, gold=1.0)
    state = judged(state, 10, gold=0.99)  # within the noise of 16 samples
    assert (best(state), state.falls) == (0, 0)
    state = judged(state, 20, gold=0.5)
    assert state.falls == 1 and not state.gives_up(2)
    state = judged(state, 40, gold=0.4)
    assert state.falls == 2 and state.gives_up(2) and not state.gives_up(3) and not state.gives_up(0)
    assert state.in_words().endswith("at the start, by more than noise in 2 looks in a row")
    assert judged(state, 50, gold=0.98).falls == 0  # no longer in a row
    assert judged(state, 50, gold=2.0).falls == 0
    assert judged(state, 50, alpha=-9.0).falls == 2  # what another model says changes nothing


def test_the_metrics_hold_the_paired_differences():
    state = judged(judged(START, 0, gold=1.0), 10, gold=1.5)
    look = Look.of(20, (1.25 + NOISE).astype(np.float32))
    changes = state.changes({"gold": look})
    assert changes["from_start/gold"] == pytest.approx(0.25, abs=1e-6)
    assert changes["from_start_within/gold"] == pytest.approx(0, abs=1e-6)  # the noise is common to both
    assert changes["from_best/gold"] == pytest.approx(-0.25, abs=1e-6) and changes["from_best_step/gold"] == 10
    assert 0.01 < changes["from_best_within/gold"] < 0.2
    assert START.changes({"gold": look}) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_judges_nothing(value):
    assert Look.of(10, np.array([1.0, value], np.float32)) is None


def test_a_record_reads_back_as_the_state_and_is_small():
    many = Look.of(3, np.random.default_rng(2).normal(size=128).astype(np.float32))
    state = RunState(
        next_step=7, held_out={"gold": History(many, many), "alpha": History(None, many)}, falls=2,
        reward_mean=-1.0, reward_deviation=0.25, service=SERVICE,
    )  # fmt: skip
    for one in (RunState(), state):
        text = json.dumps(one.to_record(), allow_nan=False)
        assert RunState.from_record(json.loads(text)) == one
    assert len(text) < 3 * 128 * 16
    assert json.loads(text)["best"] == [3, many.mean]
    scores = np.float32(state.best.scores)
    assert scores.mean() == np.float32(many.mean)  # nothing is lost to rounding


def test_a_record_from_before_scores_were_kept_goes_on_by_means():
    record = RunState(service=SERVICE).to_record() | {"best": [3, 0.5], "falls": 1}
    del record["held_out"]
    state = RunState.from_record(record)
    assert (state.best, state.falls) == (Look(3, 0.5), 1)
    assert best(judged(state, 10, gold=0.6)) == 10
    assert judged(state, 10, gold=0.49).falls == 2  # as it was counted then
    assert state.changes({"gold": Look.of(10, NOISE)}) == {}


@pytest.mark.parametrize(
    "broken",
    [
        {"falls": "many"}, {"best": [3]}, {"best": ["a", "b"]}, {"data_cursor": None}, {"reward": None},
        {"held_out": {"gold": {"start": None}}}, {"held_out": {"gold": {"start": None, "best": {"step": 1}}}},
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_one_sentence(broken):
    with pytest.raises(UserError, match="record of the run cannot be read"):
        RunState.from_record(RunState().to_record() | broken)
    with pytest.raises(UserError, match="record of the run cannot be read"):
        RunState.from_record({})
