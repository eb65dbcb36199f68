"""Which prompt a sample has: written down for replacement, once an epoch for epoch, whatever asks for it."""

from collections import Counter

import numpy as np
import pytest

from dipp_ray.data.order import Order
from dipp_ray.diffusion.noise import EVALUATION, STANDARDISATION, Draws

COUNTS = (5, 0, 7, 1, 11)  # 24 rows
EPOCH = [7, 10, 5, 12, 9, 11, 8, 6, 14, 3, 0, 2, 1, 13, 4, 15, 17, 23, 16, 19, 20, 18, 22, 21]  # of seed 3


def order(**changes):
    return Order(COUNTS, **{"name": "epoch", "batch_size": 6, "repeats": 2, "window": 8} | changes)


def positions(found, epochs, seed=3, size=3):
    """The rows in the order of their positions: steps of two repeats of six samples, in micro-batches of `size`."""
    rows = []
    for repeat in range(epochs * sum(COUNTS) // 6):
        for start in range(0, 6, size):
            rows += found.rows(Draws(seed, repeat // 2, repeat % 2, range(start, start + size)))
    return rows


def test_replacement_is_as_it_always_was():
    draws = Draws(7, 3, 1, range(4))
    assert Order([5]).rows(draws) == draws.integers("prompt", 0, 5).tolist() == [3, 3, 3, 1]
    assert Order(COUNTS).rows(draws) == draws.integers("prompt", 0, 24).tolist()


def test_each_row_once_an_epoch_and_another_order_in_each():
    rows = positions(order(), 3)
    epochs = [rows[i : i + 24] for i in range(0, 72, 24)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert positions(order(), 1, seed=4) != epochs[0]


def test_an_epoch_written_down():
    assert positions(order(), 1) == EPOCH


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_division_of_a_batch_changes_nothing(size):
    assert positions(order(), 2, size=size) == positions(order(), 2)


def test_a_batch_goes_over_the_end_of_an_epoch():
    found = order(batch_size=10, repeats=1)
    rows = [row for step in range(12) for row in found.rows(Draws(3, step, 0, range(10)))]
    assert rows == [*positions(order(), 5)]
    assert Counter(rows[:24]) == Counter(range(24))


def test_a_window_takes_whole_groups_but_for_the_two_at_its_ends():
    """So an epoch reads a group once, or once more where a window ends in it."""
    counts = (4,) * 50
    found = Order(counts, "epoch", batch_size=200, repeats=1, window=16)
    rows = found.rows(Draws(0, 0, 0, range(200)))
    groups = [[row // 4 for row in rows[i : i + 16]] for i in range(0, 200, 16)]
    assert all(set(Counter(window).values()) == {4} for window in groups)
    inside = [row % 4 for row in rows]
    assert inside != [0, 1, 2, 3] * 50 and any(window != sorted(window) for window in groups)
    assert sorted(g for window in groups for g in set(window)) == list(range(50))
    firsts = [window[0] for window in groups]
    assert firsts != sorted(firsts)


def test_rows_are_spread_through_the_window():
    rows = np.array(Order((10_000,), "epoch", 10_000).rows(Draws(1, 0, 0, range(10_000))))
    assert abs(np.corrcoef(rows, np.arange(10_000))[0, 1]) < 0.05


@pytest.mark.parametrize("step", [EVALUATION, STANDARDISATION])
def test_draws_outside_the_steps_are_with_replacement(step):
    draws = Draws(3, step, 9, range(6))
    assert order().rows(draws) == Order(COUNTS).rows(draws)


def test_what_follows_is_the_same_place_of_the_next_repeat():
    found = order()
    first = Draws(3, 4, 0, range(3, 6))
    second = found.following(first)
    assert (second.seed, second.step, second.repeat, second.indices) == (3, 4, 1, range(3, 6))
    third = found.following(second)
    assert (third.step, third.repeat) == (5, 0)
    assert (found.following(Draws(3, -3, 7, range(3))).step, found.following(Draws(3, -3, 7, range(3))).repeat) == (
        -3,
        8,
    )
