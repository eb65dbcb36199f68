"""The executor over simulated actors: whatever completes first, every rank is called the same; faults are named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_actors import SimulatedActors

from dipp_ray.errors import NonFiniteError, RoleFailure
from dipp_ray.training.executor import LOST_NODE_S, SILENT_S, Executor
from dipp_ray.training.faults import ActorLost
from dipp_ray.training.pulse import EVERY_S
from dipp_ray.training.tasks import GROUPS, Key, StepShape, Task, step_tasks

STEPS = 3
shapes = st.builds(
    StepShape,
    score_updates=st.sampled_from([1, 2, 5]),
    micro_batches=st.just(4),
    order=st.sampled_from(["strict", "overlapped"]),
    rewarded=st.booleans(),
    generator_ranks=st.sampled_from([1, 2, 4]),
    score_ranks=st.sampled_from([1, 2, 4]),
    teacher=st.sampled_from(["pool", "score"]),
)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


def executor_of(actors, timeout_s=1000.0, said=None, heartbeat_s=10_000.0):
    return Executor(actors, timeout_s, heartbeat_s, (said if said is not None else []).append, actors.clock)


def lists(shape, steps=STEPS):
    found = []
    for step in range(steps):
        samples = [*([0] if step == 0 else []), *([step + 1] if step + 1 < steps else [])]
        found.append(step_tasks(shape, step, samples, found[-1] if found else ()))
    return found


def run(actors, shape, executor=None, steps=STEPS):
    """As training does: the next step is listed before this one is waited for."""
    executor, finished = executor or executor_of(actors), []
    for step, tasks in enumerate(lists(shape, steps)):
        executor.add(tasks, actors.send)
        if step:
            finished.append(executor.finish(step - 1))
    finished.append(executor.finish(steps - 1))
    return finished


@quick
@given(shape=shapes, seed=seeds, teachers=st.integers(1, 3))
def test_every_rank_is_called_in_the_lists_order_whatever_completes_first(shape, seed, teachers):
    actors = SimulatedActors(shape, seed, teachers)
    finished = run(actors, shape)
    listed = [task for tasks in lists(shape) for task in tasks]
    for role in GROUPS:
        for index in range(actors.count(role)):
            assert actors.seen[role, index] == [t for t in listed if (t.role, t.rank) == (role, index)]
    # Backward goes out when all that it needs has come back, and not before.
    for place, (event, key) in enumerate(actors.log):
        if event == "sent" and key.action == "backward":
            task = next(task for task in listed if task.key == key)
            assert all(("ended", need) in actors.log[:place] for need in task.needs)
    assert [set(found) for found in finished] == [
        {task.key for task in listed if task.key.step == step} for step in range(STEPS)
    ]
    assert all(done.report.of == key for found in finished for key, done in found.items())
    assert all(list(found) == sorted(found) for found in finished), "sums over reports do not depend on who was first"


@quick
@given(shape=shapes, seed=seeds)
def test_stamps_say_when_a_task_could_have_begun(shape, seed):
    actors = SimulatedActors(shape, seed)
    finished = {key: done for found in run(actors, shape) for key, done in found.items()}
    for done in finished.values():
        waits = [*done.task.needs, *([done.task.after] if done.task.after else [])]
        assert done.stamps.could_begin <= done.stamps.began <= done.stamps.ended
        if waits:
            assert done.stamps.could_begin >= max(finished[key].stamps.ended for key in waits)
            if done.task.key.step == 0:  # nobody listed it later than it could have begun
                assert done.stamps.could_begin == max(finished[key].stamps.ended for key in waits)


@quick
@given(
    shape=shapes,
    seed=seeds,
    role=st.sampled_from(["generator", "score"]),
    rank=st.integers(0, 3),
    when=st.integers(0, 60),
)
def test_a_rank_that_dies_is_the_one_that_is_named(shape, seed, role, rank, when):
    actors = SimulatedActors(shape, seed)
    victim = (role, rank % actors.count(role))
    original, calls = actors.wait, iter(range(10**6))

    def wait(reports, timeout_s):
        if next(calls) == when:
            actors.kill(*victim)
        return original(reports, timeout_s)

    actors.wait = wait
    name = {"generator": "generator rank", "score": "score model rank"}[role]
    try:
        run(actors, shape)
    except RoleFailure as failure:
        assert str(failure).startswith(f"{name} {victim[1]} died")
        assert "its process was killed; the same command goes on" in str(failure)
    else:
        assert victim not in actors.dead or not actors.queues[victim], "a death in the midst of work goes unseen"
    # Nothing was sent back whose inputs had not come.
    ended = set()
    needs = {task.key: task.needs for tasks in lists(shape) for task in tasks}
    for event, key in actors.log:
        if event == "ended":
            ended.add(key)
        elif key.action == "backward":
            assert ended.issuperset(needs[key])


@pytest.mark.parametrize("seed", range(8))
def test_a_death_that_is_told_by_whom_it_cost_an_argument_is_the_others(seed):
    """Ray may end the teacher's task with the generator's death, and before the generator's own."""
    shape = StepShape(1, 4, "strict", True, 2, 2)
    actors = SimulatedActors(shape, seed)
    actors.kill("generator", 1)
    wait = actors.wait

    def others_first(reports, timeout_s):
        ended = wait(reports, timeout_s)
        return [call for call in ended if (call.role, call.index) != ("generator", 1)] or ended[:1]

    actors.wait = others_first
    with pytest.raises(RoleFailure, match=r"^generator rank 1 died"):
        run(actors, shape)


@quick
@given(shape=shapes, seed=seeds, role=st.sampled_from(["generator", "score"]), rank=st.integers(0, 3))
def test_a_rank_that_dies_while_it_has_nothing_to_do_is_seen_within_a_probe(shape, seed, role, rank):
    actors = SimulatedActors(shape, seed)
    victim, other = (role, rank % actors.count(role)), {"generator": "score", "score": "generator"}[role]
    executor = executor_of(actors)
    actors.kill(*victim)
    actors.hung |= {(other, index) for index in range(actors.count(other))} | {("teacher", i) for i in range(2)}
    # Only tasks of others, which take for ever.
    executor.add([t for t in step_tasks(shape, 0, [0]) if t.key.action == "encode"], actors.send)
    actors.hung.add(("text", 0))
    start = actors.now
    with pytest.raises(RoleFailure, match=rf"rank {victim[1]} died while it had nothing to do"):
        executor.finish(0)
    assert actors.now - start <= 2 * EVERY_S + 1


@quick
@given(shape=shapes, seed=seeds, role=st.sampled_from(["generator", "score"]), rank=st.integers(0, 3))
def test_a_rank_that_hangs_is_named_and_not_those_that_wait_for_it(shape, seed, role, rank):
    said = []
    actors = SimulatedActors(shape, seed)
    victim = (role, rank % actors.count(role))
    actors.hung.add(victim)
    name = {"generator": "generator rank", "score": "score model rank"}[role]
    with pytest.raises(RoleFailure, match=f"^{name} {victim[1]} does not respond"):
        run(actors, shape, executor_of(actors, 50.0, said))
    assert 50 <= actors.now <= 50 + 2 * EVERY_S + 2 * SILENT_S + 1
    assert len(said) in range(3, 9), "told after ten seconds, and every ten"
    assert all("waiting for" in line for line in said)


@quick
@given(shape=shapes, seed=seeds, role=st.sampled_from(["generator", "score"]), rank=st.integers(0, 3))
def test_a_rank_that_gives_no_sign_of_life_is_not_waited_for_as_long_as_a_task_may_take(shape, seed, role, rank):
    actors = SimulatedActors(shape, seed)
    victim = (role, rank % actors.count(role))
    actors.hung.add(victim)
    name = {"generator": "generator rank", "score": "score model rank"}[role]
    with pytest.raises(RoleFailure, match=f"^{name} {victim[1]} does not respond"):
        run(actors, shape, executor_of(actors, 1000.0, heartbeat_s=30.0))
    assert 30 <= actors.now <= 30 + 4 * EVERY_S
    assert not actors.restarted


@quick
@given(shape=shapes, seed=seeds, who=st.sampled_from([("teacher", 1), ("text", 0), ("reward", 0)]))
def test_a_stateless_actor_that_hangs_is_replaced_and_no_step_is_lost(shape, seed, who):
    actors, said = SimulatedActors(shape, seed), []
    actors.hung.add(who)
    finished = run(actors, shape, executor_of(actors, 1000.0, said, heartbeat_s=30.0))
    assert len(finished) == STEPS
    assert actors.restarted in ([who], [])  # a teacher or a reward client that nobody asks may be waited for in vain
    if actors.restarted:
        assert actors.now < 60 and any("another takes its place" in line for line in said)
    else:
        assert actors.now < 30


def test_a_rank_that_works_for_long_gives_signs_of_life_and_is_left_alone():
    shape = StepShape(1, 1, "strict", False, 1, 1)
    actors = SimulatedActors(shape, teachers=1)
    actors.takes["train"] = 400.0
    assert len(run(actors, shape, executor_of(actors, 1000.0, heartbeat_s=30.0))) == STEPS


def test_a_step_as_slow_as_those_before_it_is_not_waited_for_aloud():
    """Seven seconds a guidance: nothing is late, and nothing said; then one that hangs is."""
    shape, said = StepShape(1, 1, "strict", True, 1, 1), []
    actors = SimulatedActors(shape, teachers=1)
    actors.takes["guide"] = 7.0
    executor = executor_of(actors, 300.0, said)
    tasks = []
    for step in range(3):
        tasks = step_tasks(shape, step, [step], tasks)
        executor.add(tasks, actors.send)
        executor.finish(step)
    assert actors.now > 21 and said == []
    actors.hung.add(("teacher", 0))
    began = actors.now
    executor.add(step_tasks(shape, 3, [3], tasks), actors.send)
    with pytest.raises(RoleFailure):
        executor.finish(3)
    assert all(line.startswith("waiting for teacher") for line in said) and len(said) > 10
    first = float(said[0].split(", ")[-1].split()[0])
    assert 3 * 7 <= first <= 3 * 7 + 2 * EVERY_S and actors.now > began + 300


def test_an_actor_that_works_too_long_is_named_with_its_work():
    shape, actors = StepShape(1, 4, "strict", True, 1, 1), SimulatedActors(StepShape(1, 4, "strict", True, 1, 1))
    actors.hung.add(("reward", 0))
    with pytest.raises(RoleFailure, match=r"^reward client did not end step 0, 'reward' of micro-batch 0 within 20 s"):
        run(actors, shape, executor_of(actors, 20.0))


@quick
@given(shape=shapes, seed=seeds, data=st.data())
def test_what_a_role_says_is_what_is_raised(shape, seed, data):
    actors = SimulatedActors(shape, seed)
    step = data.draw(st.integers(0, STEPS - 1))
    key = data.draw(st.sampled_from([t.key for t in lists(shape)[step]]))
    actors.raising[key] = NonFiniteError(f"not finite in {key}")
    with pytest.raises(NonFiniteError, match="not finite in") as raised:
        run(actors, shape)
    assert not hasattr(raised.value, "__notes__"), "it is a cause by itself: no death is looked for"


@quick
@given(shape=shapes, seed=seeds, data=st.data())
def test_a_bug_keeps_its_traceback_and_says_whose_it_is(shape, seed, data):
    actors = SimulatedActors(shape, seed)
    key = data.draw(st.sampled_from([t.key for t in lists(shape)[1]]))
    actors.raising[key] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError) as raised:
        run(actors, shape)
    assert f"'{key.action}' of micro-batch {key.micro_batch}" in raised.value.__notes__[0]
    assert actors.now < 5, "no death is looked for: nothing that happened elsewhere ends a task like this"


def test_a_broken_collective_whose_other_side_is_silent_names_that():
    """As when a machine is gone, and Ray has not noticed: it is waited for, and not the survivor's error told."""
    shape = StepShape(1, 4, "strict", False, 2, 2)
    actors = SimulatedActors(shape)
    actors.hung.add(("generator", 1))
    actors.raising[Key("sample", 0, 0, 0)] = RuntimeError("Connection closed by peer")
    with pytest.raises(RoleFailure, match=r"^generator rank 1 does not respond"):
        run(actors, shape)
    assert LOST_NODE_S <= actors.now < LOST_NODE_S + 5


def test_a_broken_collective_of_living_ranks_is_a_fault_that_is_recovered_from():
    shape = StepShape(1, 4, "strict", False, 2, 2)
    actors = SimulatedActors(shape)
    actors.raising[Key("sample", 0, 0, 0)] = RuntimeError("Connection closed by peer")
    with pytest.raises(RoleFailure, match=r"^generator rank 0 broke off step 0, 'sample' .* no process is lost: Conn"):
        run(actors, shape)


def test_stateless_roles_take_the_least_busy_actor():
    shape = StepShape(1, 4, "strict", False, 1, 1)
    actors = SimulatedActors(shape, seed=1, teachers=3)
    actors.hung.add(("teacher", 0))
    executor = executor_of(actors, timeout_s=5.0)
    guides = [t for t in step_tasks(shape, 0, [0]) if t.key.action in ("encode", "sample", "guide")]
    executor.add(guides, actors.send)
    assert [len(actors.seen["teacher", index]) for index in range(3)] == [2, 1, 1]
    with pytest.raises(RoleFailure, match="teacher 0 did not end"):
        executor.finish(0)
    executor.add([t for t in step_tasks(shape, 1, [1]) if t.key.action in ("encode", "sample", "guide")], actors.send)
    assert len(actors.seen["teacher", 0]) == 2, "two wait at the first; the others are free"


def test_a_fault_of_one_rank_is_told_though_the_other_waits_for_it_in_a_collective():
    """Behind a call whose arguments are not there yet Ray delivers no sign of life: that is no hang."""
    shape = StepShape(1, 4, "strict", True, 2, 2)
    actors = SimulatedActors(shape)
    actors.raising[Key("sample", 0, 0, 0)] = MemoryError("CUDA out of memory")
    with pytest.raises(MemoryError) as raised:
        run(actors, shape)
    assert raised.value.__notes__ == ["raised by generator rank 0 in step 0, 'sample' of micro-batch 0"]


def test_a_text_encoder_that_hangs_is_named_and_not_the_ranks_that_wait_for_it():
    shape = StepShape(1, 4, "strict", False, 2, 2)
    actors = SimulatedActors(shape)
    actors.hung.add(("text", 0))
    with pytest.raises(RoleFailure, match=r"^text encoder did not end step 0, 'encode' of micro-batch 0 within 20 s"):
        run(actors, shape, executor_of(actors, 20.0))


def test_the_time_in_an_actors_queue_is_not_the_tasks_own():
    """Four questions of 40 seconds each to one teacher, where one may take 100."""
    shape = StepShape(1, 4, "overlapped", False, 1, 1)
    actors = SimulatedActors(shape, teachers=1)
    actors.takes["guide"] = 40.0
    finished = run(actors, shape, executor_of(actors, 100.0), steps=1)
    assert actors.now > 160 and len(finished[0]) == len(lists(shape, 1)[0])


@pytest.mark.parametrize("error", [NonFiniteError("no"), ZeroDivisionError("a bug")])
def test_who_goes_on_in_spite_of_a_failure_does_not_meet_it_again(error):
    """As a run does that saves its checkpoint though the reward service could not be asked."""
    shape = StepShape(1, 4, "strict", False, 1, 1)
    actors = SimulatedActors(shape)
    executor = executor_of(actors)
    actors.raising[Key("describe", -4, 0, 0)] = error
    executor.add([Task(Key("describe", -4, 0, 0), "reward", 0)], actors.send)
    with pytest.raises(type(error)):
        executor.finish(-4)
    executor.add([Task(Key("save", -4, 0, 0), "generator", 0)], actors.send)
    assert list(executor.finish(-4)) == [Key("save", -4, 0, 0)]
    assert not executor.listed and not executor.out and set(executor.busy.values()) == {0}


def test_a_process_that_is_none_of_the_runs_is_not_taken_for_the_asker():
    shape = StepShape(1, 4, "strict", True, 1, 1)
    actors = SimulatedActors(shape)
    actors.raising[Key("reward", 0, 0, 1)] = ActorLost(None, 0, "its node was lost")
    with pytest.raises(RoleFailure, match=r"^a process that reward client depends on died .* its node was lost"):
        run(actors, shape)


def test_a_task_whose_needs_nobody_listed_is_a_bug():
    shape = StepShape(1, 4, "strict", False, 1, 1)
    with pytest.raises(ValueError, match="neither listed nor at hand"):
        executor_of(actors := SimulatedActors(shape)).add(step_tasks(shape, 0, []), actors.send)


def test_results_are_forgotten_with_their_step():
    shape = StepShape(2, 4, "overlapped", True, 2, 2)
    actors = SimulatedActors(shape)
    executor = executor_of(actors)
    run(actors, shape, executor)
    assert not executor.listed and not executor.finished and not executor.out
    assert set(executor.busy.values()) == {0}
    assert Key("backward", 2, 1, 3) not in executor.finish(2)


@pytest.mark.parametrize("seed", range(5))
def test_what_a_teacher_owes_that_is_given_up_is_asked_of_another(seed):
    shape = StepShape(1, 6, "overlapped", True, 2, 2)
    actors = SimulatedActors(shape, seed, teachers=2)
    actors.hung.add(("teacher", 0))  # its node is gone, and Ray finds no other
    looks = []

    def follow(say):
        looks.append(1)
        if len(looks) == 40:
            actors.give_up("teacher", 0)

    actors.follow = follow
    finished = run(actors, shape, executor_of(actors), steps=2)
    assert len(looks) > 40
    assert {key for found in finished for key in found} == {task.key for tasks in lists(shape, 2) for task in tasks}
    guided = [task.key for task in actors.seen["teacher", 1] if task.key.action == "guide"]
    assert len(guided) == len(set(guided)) == 12, "each question once, those of the lost one among them"


def test_nobody_ends_the_process_of_a_teacher_that_was_given_up():
    shape = StepShape(1, 6, "overlapped", False, 1, 1)
    actors = SimulatedActors(shape, 1, teachers=2)
    executor = executor_of(actors, heartbeat_s=1.0)
    actors.gone.add(("teacher", 0))
    executor._hangs("teacher", 0)
    assert actors.restarted == []
    executor._hangs("teacher", 1)
    assert actors.restarted == [("teacher", 1)]


def test_a_teacher_that_came_later_is_asked_too():
    shape = StepShape(1, 6, "overlapped", False, 1, 1)
    actors = SimulatedActors(shape, 1, teachers=1)
    actors.follow = lambda say: actors.take_in("teacher") if len(actors.indices("teacher")) == 1 else None
    run(actors, shape, steps=3)
    assert len(actors.seen["teacher", 1]) > 2
