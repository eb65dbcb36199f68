"""Room for a larger session is asked of Ray, seen when it has come, and given to the session for which it came."""

import time

import pytest
from ray.util.placement_group import placement_group_table

from dipp_ray.training.growth import Demand
from dipp_ray.training.placement import cluster_nodes, reserve
from dipp_ray.training.plan import group_requests
from dipp_ray.training.sizes import Sizes, allowed_sizes
from settings import tiny_config


@pytest.fixture
def config(tmp_path):
    workers = "{workers: {min: 1, max: 2}, cpus: 0.5}"
    return tiny_config(tmp_path, tmp_path, tmp_path, f"roles.generator={workers}", f"roles.score={workers}")


def test_room_that_has_come_is_given_up_with_the_sessions_own(ray_session, config):
    room = reserve([group_requests(config, Sizes(1, 1, 1))], 60, print)
    demand = Demand(config, Sizes(1, 1, 1))
    until = time.monotonic() + 60
    while not demand.met:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert all(demand.met for _ in range(50)), "what has come is there each time that one looks"
    group = demand.group
    demand.give_to(room)
    assert sum(amounts["CPU"] for amounts in room.amounts_by_node().values()) == 1.5
    used = sum(node.used.get("CPU", 0.0) for node in cluster_nodes([room]))
    larger = reserve([group_requests(config, size) for size in allowed_sizes(config)], 60, print, instead_of=room)
    assert len(larger.plan.requests) == 4 and used < 0.5
    assert placement_group_table(group)["state"] == "REMOVED"
    larger.release()


def test_room_that_has_not_come_is_asked_for_no_longer(ray_session, config):
    roles = config.roles.model_copy(
        update={"generator": config.roles.generator.model_copy(update={"labels": {"role": "nowhere"}})}
    )
    config = config.model_copy(update={"roles": roles})
    demand = Demand(config, Sizes(1, 1, 1))
    time.sleep(0.2)
    assert not demand.met
    group, room = demand.group, reserve([[]], 60, print)
    demand.give_to(room)
    assert room.held == [] and demand.group is None
    assert placement_group_table(group)["state"] == "REMOVED"
    demand.close()
