"""What is said now and then: the first time, the next ones, and nothing between."""

import pytest

from dipp_ray.reporting import pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("first_s", "expected"), [(None, [10, 20, 30]), (2.0, [2, 12, 22, 32]), (0.0, [0, 10, 20, 30])]
)
def test_it_is_due_first_and_then_at_equal_distances(clock, first_s, expected):
    asked, due = pace.Pace(10.0, first_s), []
    for second in range(33):
        clock[0] = 100.0 + second
        if asked.due():
            due.append(asked.elapsed)
    assert due == expected


def test_a_ticker_tells_how_far_and_how_long_still(clock):
    said = []
    ticker = pace.Ticker(said.append, "decoding", 4000)
    for done, second in ((1, 1), (1000, 5), (1001, 6), (2000, 10)):
        clock[0] = 100.0 + second
        ticker.tick(done, "fast")
    assert said == ["decoding 1,000/4,000, 5 s, 12 s left, fast", "decoding 2,000/4,000, 10 s, 9 s left, fast"]


def test_after_a_stall_the_time_left_is_by_the_pace_of_late(clock):
    remaining = pace.Remaining(10)
    assert remaining.seconds(90) is None
    for step in range(11, 21):
        clock[0] += 2
        remaining.at(step)
    assert remaining.seconds(80) == 160
    clock[0] += 3600
    remaining.at(21)
    remaining.at(21)  # said twice
    assert remaining.seconds(79) == 158
    for step in range(22, 122):
        clock[0] += 5
        remaining.at(step)
    assert remaining.seconds(10) == 50, "what is long ago no longer counts"


def test_points_that_lie_too_close_are_left_out(clock):
    remaining = pace.Remaining(apart_s=1.0)
    for done in range(1, 301):
        clock[0] += 0.01
        remaining.at(done)
    assert len(remaining.points) <= 4
    assert remaining.seconds(100) == pytest.approx(1, rel=0.02)
