"""A shared reward service that is away: its trainer pauses, says so, and loses no step."""

import pytest
from simulated_actors import SimulatedActors
from test_executor import run

from dipp_ray.errors import RewardAwayError, RewardUnavailableError
from dipp_ray.training.executor import Executor
from dipp_ray.training.tasks import StepShape

SHAPE = StepShape(
    score_updates=2,
    micro_batches=4,
    order="overlapped",
    rewarded=True,
    generator_ranks=2,
    score_ranks=2,
    teacher="pool",
)
DEADLINE_S = 120.0
TOLD = "reward service: no answer for 3 samples within 120 s and 31 attempts (connection refused)"


class Leaving(SimulatedActors):
    """The reward service gives no answer from one time to another; whoever asks is told so after a deadline."""

    def __init__(self, *args, away=(0.0, 0.0), error=None):
        super().__init__(SHAPE, *args)
        self.away, self.error = away, error or RewardAwayError(TOLD)

    def _advance(self, timeout_s):
        begin, end = self.away
        self.takes["reward"] = DEADLINE_S if begin <= self.now < end else 0.01
        super()._advance(timeout_s)

    def result(self, call):
        if call.task and call.task.role == "reward" and self.away[0] <= self.now - self.takes["reward"] < self.away[1]:
            raise self.error
        return super().result(call)


def executor_of(actors, said, away_s, timeout_s=1000.0):
    return Executor(actors, timeout_s, 10_000.0, said.append, actors.clock, away_s=away_s)


@pytest.mark.parametrize("seed", range(20))
def test_ten_minutes_away_cost_time_and_no_step(seed):
    said = []
    actors = Leaving(seed, away=(0.03, 600.0))
    finished = run(actors, SHAPE, executor_of(actors, said, away_s=900.0))
    undisturbed = run(SimulatedActors(SHAPE, seed), SHAPE)
    assert [list(found) for found in finished] == [list(found) for found in undisturbed]
    assert actors.now > 600 > 0.03
    for rank in range(2):
        given = [task.key for task in actors.seen["generator", rank]]
        assert len(set(given)) == len(given), "no rank does its work twice"
    paused = [line for line in said if "pauses until it does, up to 900 s (reward.away_s)" in line]
    assert paused and "connection refused" in paused[0] and len(paused) < 15
    assert sum("answers again, after" in line and "no step is lost" in line for line in said) == 1
    assert said.index(paused[0]) < next(i for i, line in enumerate(said) if "answers again" in line)


def test_longer_than_it_is_told_to_it_does_not_wait():
    said = []
    actors = Leaving(0, away=(0.0, 1e9))
    with pytest.raises(RewardAwayError, match="connection refused"):
        run(actors, SHAPE, executor_of(actors, said, away_s=600.0))
    assert any(line.endswith("as long as reward.away_s allows") for line in said)
    assert 600 <= actors.now < 600 + 4 * DEADLINE_S


def test_two_absences_are_counted_apart():
    said = []
    actors = Leaving(0, away=(0.0, 500.0))
    executor = executor_of(actors, said, away_s=650.0)
    run(actors, SHAPE, executor)
    assert executor.away.since is None
    actors.away = (actors.now, actors.now + 500.0)
    run(actors, SHAPE, executor)
    assert sum("answers again" in line for line in said) == 2


@pytest.mark.parametrize(
    ("away_s", "error"),
    [(0.0, RewardAwayError(TOLD)), (900.0, RewardUnavailableError("reward service: 3 attempts at 3 samples failed"))],
)
def test_a_model_that_fails_and_a_service_of_ones_own_are_not_waited_for(away_s, error):
    said = []
    actors = Leaving(0, away=(0.0, 600.0), error=error)
    with pytest.raises(RewardUnavailableError, match=str(error).split("(")[0]):
        run(actors, SHAPE, executor_of(actors, said, away_s))
    assert not any("pauses" in line for line in said)


def test_a_pause_is_no_task_that_is_overdue():
    """Here one call's deadline passes after the other's, so that two of them are longer than any task may take."""
    actors = Leaving(0, away=(0.0, 9000.0))
    run(actors, SHAPE, executor_of(actors, [], away_s=20_000.0, timeout_s=2000.0))
