"""The teacher pool follows the cluster: one more where there is room, one fewer where room is lost, never too few."""

import time

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dipp_ray.roles.teacher import Teacher
from dipp_ray.training import pool as pool_module
from dipp_ray.training.actors import RayActors
from dipp_ray.training.faults import ActorLost
from dipp_ray.training.placement import reserve
from dipp_ray.training.plan import Request, requests
from dipp_ray.training.pool import Pool
from dipp_ray.training.sizes import Sizes
from settings import tiny_config


@ray.remote(num_cpus=0)
class Named:
    """In a teacher's place."""

    def __init__(self, config):
        self.name = config.run.name
        if self.name == "broken":
            raise MemoryError("CUDA out of memory")

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
    pool = pool_of("{workers: {min: 1, max: 3}, cpus: 0.25}", 2)
    pool.ranks_lack = lambda: pool.requests  # so that it asks for nobody
    for entry in pool.placement.held:
        remove_placement_group(entry[0])
    followed(pool, lambda: len(pool.members) == 1)
    for _ in range(20):
        pool.follow(pytest.fail)
    assert list(pool.members) == [1] and pool.spare() == []


def test_what_has_not_come_is_asked_for_no_longer_while_ranks_look_for_room(pool_of, monkeypatch):
    monkeypatch.setattr(pool_module, "can_grow", lambda: True)  # an autoscaler may bring such a node
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25, labels: {role: nowhere}}", 0)
    followed(pool, lambda: pool.coming is not None)
    group = pool.coming.group
    pool.withdraw()
    assert pool.coming is None and placement_group_table(group)["state"] == "REMOVED"
    followed(pool, lambda: pool.coming is not None)  # the next look asks again


def test_without_an_autoscaler_it_asks_only_for_room_that_is_there(pool_of):
    """Else the first that comes free is taken from who has just lost it, such as a replica of the reward service."""
    for settings in ("labels: {role: nowhere}", "cpus: 7.5"):
        pool = pool_of(f"{{workers: {{min: 1, max: 2}}, {settings}}}", 0)
        held = placement_group([{"CPU": 1.0}])
        assert held.wait(30)
        for _ in range(20):
            pool.follow(pytest.fail)
        assert pool.coming is None
        remove_placement_group(held)


@pytest.mark.parametrize(("labels", "asks"), [({}, False), ({"role": "elsewhere"}, True)])
def test_ranks_come_first_where_a_teacher_could_take_their_room(pool_of, labels, asks):
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 1)
    pool.ranks_lack = lambda: [Request("score", 1, cpus=0.5, labels=labels)]
    pool.follow(lambda text: None)
    assert (pool.coming is not None) == asks


def test_who_is_coming_up_keeps_its_room(pool_of):
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 1)
    followed(pool, lambda: pool.coming is not None and pool.coming.actor is not None)
    pool.withdraw()
    followed(pool, lambda: len(pool.members) == 2)


def test_one_that_does_not_come_up_is_no_fault_of_the_run(pool_of):
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 1)
    pool.config = pool.config.model_copy(update={"run": pool.config.run.model_copy(update={"name": "broken"})})
    groups = []
    said = followed(pool, lambda: pool.not_before > 0 or groups.append(pool.coming) is not None)
    assert "did not come up" in said[-1] and "CUDA out of memory" in said[-1]
    group = next(coming.group for coming in groups if coming)
    assert list(pool.members) == [0] and placement_group_table(group)["state"] == "REMOVED"
    for _ in range(5):
        pool.follow(pytest.fail)  # not again at once


def test_members_are_waited_for_and_one_without_room_is_given_up_meanwhile(pool_of, monkeypatch):
    monkeypatch.setattr(pool_module, "GONE_S", 0.3)
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 2)
    pool.ranks_lack = lambda: pool.requests
    pool.await_ready(60, print)
    remove_placement_group(pool.placement.held[1][0])
    lost = placement_group([{"CPU": 100.0}])  # where nothing ever starts
    pool.members[1] = Named.options(
        num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(lost, placement_group_bundle_index=0)
    ).remote(pool.config)
    pool.await_ready(60, print)
    assert list(pool.members) == [0]
    remove_placement_group(lost)


def test_a_question_that_is_asked_again_does_not_wait_behind_those_that_wait_for_its_answer(ray_session):
    """As `Teacher` is made: test_executor.py shows the deadlock that it would be else."""
    assert Teacher._default_options["allow_out_of_order_execution"]

    @ray.remote(num_cpus=0, allow_out_of_order_execution=True)
    class Asked:
        def guide(self, x0):
            return x0

    asked = Asked.remote()
    never = ray.remote(num_cpus=100)(lambda: 0).remote()
    behind = asked.guide.remote(never)
    assert ray.get(asked.guide.remote(5), timeout=60) == 5
    ray.cancel(never), ray.cancel(behind)


def asked_on(ask) -> None:
    """Ask again and again: one that is ended may still answer what comes before its end."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ask()


def test_it_ends_with_who_was_coming(pool_of):
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 1)
    followed(pool, lambda: pool.coming is not None and pool.coming.actor is not None)
    coming = pool.coming
    first = pool.members[0]
    pool.end()
    assert placement_group_table(coming.group)["state"] == "REMOVED" and pool.members == {}
    for actor in (coming.actor, first):
        with pytest.raises(RayActorError):
            asked_on(lambda actor=actor: ray.get(actor.who.remote()))


def test_who_came_later_is_known_by_name(pool_of):
    pool = pool_of("{workers: {min: 1, max: 2}, cpus: 0.25}", 1)
    actors = RayActors({"text": {}}, pool)
    followed(pool, lambda: pool.coming is not None and pool.coming.actor is not None)
    until = time.monotonic() + 60
    while actors.count("teacher") < 2:
        assert time.monotonic() < until
        actors.follow(lambda text: None)
    assert actors.indices("teacher") == [0, 1]
    ray.kill(actors.of("teacher", 1))
    with pytest.raises(ActorLost) as lost:
        asked_on(lambda: actors.result(actors.of("teacher", 1).who.remote()))
    assert (lost.value.role, lost.value.index) == ("teacher", 1)
