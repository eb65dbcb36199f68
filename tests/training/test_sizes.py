"""The sizes that elastic groups may have, in which order, and which is the next larger."""

import pytest

from dipp_ray.errors import UserError
from dipp_ray.training.plan import Node, best_plan, group_requests, requests
from dipp_ray.training.sizes import Sizes, allowed_sizes, next_larger
from settings import tiny_config

ELASTIC = ["data.batch_size=12", "data.micro_batches=12", "roles.generator.workers={min: 2, max: 5}",
           "roles.score.workers={min: 1, max: 3}", "roles.teacher.workers={min: 1, max: 2}"]  # fmt: skip


def config(tmp_path, *overrides):
    return tiny_config(tmp_path, tmp_path, tmp_path, *overrides)


def test_sizes_divide_the_micro_batches_and_the_most_ranks_come_first(tmp_path):
    sizes = allowed_sizes(config(tmp_path, *ELASTIC))
    assert {size.generator for size in sizes} == {2, 3, 4} and {size.score for size in sizes} == {1, 2, 3}
    assert sizes[0] == Sizes(4, 3, 2) and sizes[1] == Sizes(4, 3, 1)
    assert [size.ranks for size in sizes] == sorted((size.ranks for size in sizes), reverse=True)
    assert sizes[-1] == Sizes(2, 1, 1)
    assert allowed_sizes(config(tmp_path)) == [Sizes(1, 1, 1)]


def test_the_next_larger_takes_nothing_from_a_group(tmp_path):
    elastic = config(tmp_path, *ELASTIC)
    assert next_larger(elastic, Sizes(2, 3, 1)) == Sizes(3, 3, 2)
    assert next_larger(elastic, Sizes(4, 3, 1)) is None


def test_a_range_without_a_divisor_is_refused(tmp_path):
    with pytest.raises(UserError, match="workers from 7 to 11 holds no divisor of"):
        config(tmp_path, "roles.generator.workers={min: 7, max: 11}", "data.micro_batches=12", "data.batch_size=12")
    with pytest.raises(UserError, match="min=3 is above max=2"):
        config(tmp_path, "roles.generator.workers={min: 3, max: 2}")


def test_the_largest_that_is_free_now_is_taken_and_a_smaller_one_before_waiting(tmp_path):
    elastic = config(tmp_path, *ELASTIC, "roles.generator.cpus=1", "roles.score.cpus=1")
    choices = [group_requests(elastic, size) for size in allowed_sizes(elastic)]
    assert len(best_plan(choices, [Node("a", "a", {"CPU": 5})]).requests) == 5
    busy = best_plan(choices, [Node("a", "a", {"CPU": 7}, {"CPU": 3})])
    assert len(busy.requests) == 4 and not busy.waits
    full = best_plan(choices, [Node("a", "a", {"CPU": 6}, {"CPU": 5})])
    assert full.waits and len(full.requests) == 6, "the largest that the cluster could hold is waited for"
    assert not best_plan(choices, [Node("a", "a", {"CPU": 2})]).possible


def test_an_elastic_service_is_planned_with_its_fewest_replicas(tmp_path):
    elastic = config(tmp_path, "reward.replicas={min: 2, max: 5}")
    assert len([r for r in requests(elastic, Sizes(1, 1, 1)) if r.role == "reward"]) == 2
