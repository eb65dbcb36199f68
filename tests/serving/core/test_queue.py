"""The queue's bookkeeping: fair, bounded, in order, in batches of one kind."""

import pytest

from dipp_ray.serving.contract.failures import QueueFull
from dipp_ray.serving.core.queue import Chunk, FairQueue


def chunk(trainer, rows=1, kind="k", expires=100.0, alone=False, size=10):
    return Chunk(trainer, (kind,), rows, size, expires, alone)


def queue(*calls, rows=100, size=10**6):
    made = FairQueue(rows, size)
    for call in calls:
        made.put([call], 0.0)
    return made


def names(batch):
    return [c.trainer for c in batch]


def test_a_batch_takes_from_each_trainer_in_turn_and_keeps_each_ones_order():
    calls = [chunk("a") for _ in range(6)] + [chunk("b") for _ in range(2)]
    batch, late = queue(*calls).take(4, 0.0)
    assert names(batch) == ["a", "b", "a", "b"] and late == []
    assert [calls.index(c) for c in batch if c.trainer == "a"] == [0, 1]


def test_one_flood_does_not_starve_the_others():
    made = queue(*[chunk("flood") for _ in range(50)], chunk("small"))
    batch, _ = made.take(2, 0.0)
    assert sorted(names(batch)) == ["flood", "small"]


def test_fairness_is_by_rows_not_by_calls():
    made = queue(*[chunk("big", 8) for _ in range(4)], *[chunk("small", 2) for _ in range(16)])
    served = {"big": 0, "small": 0}
    for _ in range(4):
        for c in made.take(8, 0.0)[0]:
            served[c.trainer] += c.rows
    assert served == {"big": 16, "small": 16}


def test_who_was_idle_has_saved_nothing_up():
    made = queue(*[chunk("a") for _ in range(20)])
    made.take(10, 0.0)
    for _ in range(20):
        made.put([chunk("late")], 0.0)
    batch, _ = made.take(8, 0.0)
    assert names(batch).count("late") in (4, 5)


def test_a_batch_is_of_one_kind_and_of_so_many_rows():
    made = queue(chunk("a", 3), chunk("b", 3, "other"), chunk("c", 4), chunk("d", 2))
    batch, _ = made.take(8, 0.0)
    assert [(c.trainer, c.rows) for c in batch] == [("a", 3), ("c", 4)]
    batch, _ = made.take(8, 0.0)
    assert names(batch) == ["d"] or names(batch) == ["b"]
    assert len(made) + sum(c.rows for c in batch) == 5


def test_what_comes_alone_stays_alone():
    made = queue(chunk("a", alone=True), chunk("b"), chunk("c"))
    assert names(made.take(8, 0.0)[0]) == ["a"]
    assert names(made.take(8, 0.0)[0]) == ["b", "c"]


def test_only_full_batches_where_they_are_asked_for():
    made = queue(chunk("a", 3), chunk("b", 3))
    assert made.take(8, 0.0, only_full=True)[0] == [] and len(made) == 6
    made.put([chunk("c", 3)], 0.0)  # would not fit any more: as full as it gets
    assert [c.rows for c in made.take(8, 0.0, only_full=True)[0]] == [3, 3]
    assert names(queue(chunk("a", 1, alone=True)).take(8, 0.0, only_full=True)[0]) == ["a"]


def test_work_past_its_deadline_is_not_begun():
    made = queue(chunk("a", expires=1.0), chunk("b", expires=3.0))
    batch, late = made.take(8, 2.0)
    assert names(batch) == ["b"] and names(late) == ["a"] and len(made) == 0


def test_a_caller_who_is_gone_is_forgotten():
    gone = chunk("a")
    made = queue(gone, chunk("b"))
    made.discard([gone, chunk("never there")])
    assert names(made.take(8, 0.0)[0]) == ["b"] and made.bytes == 0


def test_the_bound_of_a_trainer_does_not_touch_the_others():
    made = queue(chunk("a", 6), rows=8)
    with pytest.raises(QueueFull, match="trainer 'a' has 6 rows waiting of at most 8") as full:
        made.put([chunk("a", 2), chunk("a", 1)], rows_a_second=2.0)
    assert full.value.retry_after_s == 3 and len(made) == 6  # all chunks of a call or none
    made.put([chunk("b", 8)], 0.0)
    made.put([chunk("a", 2)], 0.0)


def test_the_bytes_of_all_are_bounded():
    made = queue(chunk("a", size=60), size=100)
    with pytest.raises(QueueFull, match="MiB of calls are waiting"):
        made.put([chunk("b", size=50)], 0.0)
    made.take(8, 0.0)
    made.put([chunk("b", size=50)], 0.0)


def test_a_flood_of_large_calls_leaves_room_for_others():
    made = queue(*[chunk("flood", size=10) for _ in range(5)], size=100)
    with pytest.raises(QueueFull, match="of them trainer 'flood'"):
        made.put([chunk("flood", size=10)], 0.0)
    for name, fits in (("b", 30), ("c", 20)):
        made.put([chunk(name, size=fits)], 0.0)
    assert made.bytes == 100


def test_nothing_is_left_of_trainers_who_are_through():
    made = queue(*[chunk(f"t{i}") for i in range(50)])
    while len(made):
        made.take(8, 0.0)
    assert made._waiting == {} and made._served == {} and made.bytes == 0


def test_those_who_are_away_are_remembered_only_so_many():
    made = queue(*[chunk("busy") for _ in range(3000)], rows=10**4)
    for i in range(2500):
        made.put([chunk(f"once-{i}")], 0.0)
        made.take(1, 0.0)
    assert len(made._served) <= 1200


@pytest.mark.parametrize(("trainers", "rows", "most"), [(32, 2, 16), (2, 16, 16), (5, 3, 8)])
def test_trainers_who_call_one_at_a_time_get_the_same_share(trainers, rows, most):
    names_ = [f"t{i:02}" for i in range(trainers)]
    made, served = queue(*(chunk(name, rows) for name in names_)), dict.fromkeys(names_, 0)
    for _ in range(200):
        batch, _ = made.take(most, 0.0)
        for c in batch:
            served[c.trainer] += 1
        for c in batch:  # each calls again as soon as it is answered
            made.put([chunk(c.trainer, rows)], 0.0)
    assert max(served.values()) - min(served.values()) <= 1
