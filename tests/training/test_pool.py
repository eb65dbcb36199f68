"""The teacher pool follows the cluster: one more where there is room, one fewer where room is lost, never too few."""

import time

import pytest
import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from dipp_ray.training import pool as pool_module
from dipp_ray.training.placement import reserve
from dipp_ray.training.plan import requests
from dipp_ray.training.pool import Pool
from dipp_ray.training.sizes import Sizes
from settings import tiny_config


@ray.remote(num_cpus=0)
class Named:
    """In a teacher's place."""

    def __init__(self, config):
        self.name = config.run.name

    def who(self):
        return self.name


@pytest.fixture
def pool_of(ray_session, tmp_path, monkeypatch):
    """pool_of(settings, count): a pool that begins with `count` members."""
    monkeypatch.setattr(pool_module, "Teacher", Named)
    monkeypatch.setattr(pool_module, "LOOK_S", 0.0)
    made = []

    def make(teacher, count):
        config = tiny_config(tmp_path, tmp_path, tmp_path, f"roles.teacher={teacher}")
        asked = [request for request in requests(config, Sizes(1, 1, count)) if request.role == "teacher"]
        made.append(Pool(config, reserve([asked], 60, print)))
        made[-1].start()
        return made[-1]

    yield make
    for pool in made:
        pool.end()
        pool.placement.release()


def followed(pool, there, seconds=60):
    """Have it look until `there()`; returns what was said."""
    said, until = [], time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, said
        pool.follow(said.append)
        time.sleep(0.02)
    return said


def test_it_grows_to_the_most_and_no_further(pool_of):
    pool = pool_of("{workers: {min: 1, max: 3}, cpus: 0.25}", 1)
    said = followed(pool, lambda: len(pool.members) == 3)
    assert [text for text in said if text.startswith("the pool")] == [f"the pool has {n} teachers now" for n in (2, 3)]
    assert sorted(pool.members) == [0, 1, 2]
    assert len(set(ray.get([actor.who.remote() for actor in pool.members.values()]))) == 1
    assert sum(amounts["CPU"] for amounts in pool.placement.amounts_by_node().values()) == 0.75
    for _ in range(5):
        pool.follow(said.append)
    assert pool.coming is None and len(pool.members) == 3


def test_a_pool_of_a_fixed_size_asks_for_nothing_and_gives_nobody_up(pool_of, monkeypatch):
    monkeypatch.setattr(pool_module, "GONE_S", 0.0)
    pool = pool_of("{workers: 2, cpus: 0.25}", 2)
    remove_placement_group(pool.placement.held[0][0])
    for _ in range(5):
        pool.follow(pytest.fail)
    assert pool.coming is None and len(pool.members) == 2


def test_who_has_lost_its_room_is_given_up_and_its_place_is_taken_again(pool_of, monkeypatch):
    monkeypatch.setattr(pool_module, "GONE_S", 0.5)
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 2)
    lost, entry = pool.members[0], pool.placement.held[0]
    remove_placement_group(entry[0])
    began = time.monotonic()
    said = followed(pool, lambda: 0 not in pool.members)
    assert time.monotonic() - began >= 0.5 and "the pool goes on with 1" in said[-1]
    assert entry not in pool.placement.held
    followed(pool, lambda: len(pool.members) == 2)
    assert pool.members[0] is not lost and ray.get(pool.members[0].who.remote())


def test_the_fewest_stay_though_their_room_is_lost(pool_of, monkeypatch):
    monkeypatch.setattr(pool_module, "GONE_S", 0.0)
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25, labels: {role: nowhere}}", 0)
    pool.members = {0: pool_module.Teacher.remote(pool.config)}
    followed(pool, lambda: pool.coming is not None)
    for _ in range(20):
        pool.follow(pytest.fail)
    assert list(pool.members) == [0]


def test_what_has_not_come_is_asked_for_no_longer_while_ranks_look_for_room(pool_of):
    pool = pool_of("{workers: {min: 1, max: 1}, cpus: 0.25, labels: {role: nowhere}}", 0)
    pool.fewest = 0
    followed(pool, lambda: pool.coming is not None)
    group = pool.coming.group
    pool.withdraw()
    assert pool.coming is None and placement_group_table(group)["state"] == "REMOVED"
    followed(pool, lambda: pool.coming is not None)  # the next look asks again


def test_who_is_coming_up_keeps_its_room(pool_of):
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 1)
    followed(pool, lambda: pool.coming is not None and pool.coming.actor is not None)
    pool.withdraw()
    followed(pool, lambda: len(pool.members) == 2)
