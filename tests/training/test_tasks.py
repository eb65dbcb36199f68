"""The step as data: what each role sees, what waits for what, and that the list is Algorithm 1."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from dipp_ray.alignment.updates import mean_of
from dipp_ray.data.prompts import read_prompts
from dipp_ray.training.controller import shape_of
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.tasks import GROUPS, Key, StepShape, reward_tasks, step_tasks, warmup_tasks
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

M = 4
SHAPES = [
    StepShape(k, M, order, rewarded, generators, scores, teacher)
    for k, order, rewarded, (generators, scores), teacher in product(
        (1, 2, 5), ("strict", "overlapped"), (True, False), ((1, 1), (2, 4), (4, 1)), ("pool", "score")
    )
]
SHAPES += [replace(shape, encodes=False) for shape in SHAPES if (shape.generator_ranks, shape.rewarded) == (2, True)]


def stretch(shape, steps):
    """The lists of several steps, each sampled ahead by the one before."""
    lists, before = [], []
    for step in range(steps):
        samples = [*([0] if step == 0 else []), *([step + 1] if step + 1 < steps else [])]
        before = step_tasks(shape, step, samples, before)
        lists.append(before)
    return [task for tasks in lists for task in tasks]


def by_rank(tasks):
    seen = defaultdict(list)
    for task in tasks:
        if task.rank is not None:
            seen[task.role, task.rank].append(task)
    return seen


def keys(action, step, repeats, micro_batches):
    return [Key(action, step, k, m) for k in repeats for m in micro_batches]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_order_that_each_role_sees(shape):
    """Written out by hand: what a rank of each group is called with, over three steps."""
    tasks, last = stretch(shape, 3), shape.score_updates - 1
    repeats = range(shape.score_updates)
    seen = {rank: [task.key for task in found] for rank, found in by_rank(tasks).items()}
    assert seen.keys() == {
        *(("generator", rank) for rank in range(shape.generator_ranks)),
        *(("score", rank) for rank in range(shape.score_ranks)),
    }
    for rank in range(shape.generator_ranks):
        own = range(rank, M, shape.generator_ranks)
        expected = keys("sample", 0, repeats, own)
        for step in range(3):
            expected += keys("backward", step, [last], own)
            expected += keys("sample", step + 1, repeats, own) if step < 2 else []
        assert seen["generator", rank] == expected
    for rank in range(shape.score_ranks):
        own, expected = range(rank, M, shape.score_ranks), []
        for step in range(3):
            expected += keys("guide", step, [last], own) if shape.teacher == "score" else []
            train, predict = keys("train", step, repeats, own), keys("predict", step, [last], own)
            expected += train + predict if shape.order == "strict" else predict + train
        assert seen["score", rank] == expected
    encoded = [task.key for task in tasks if task.role == "text"]
    assert encoded == (
        [key for step in range(3) for key in keys("encode", step, repeats, range(M))] if shape.encodes else []
    )
    asked = [task.key for task in tasks if task.role == "reward"]
    assert asked == (
        [key for step in range(3) for key in keys("reward", step, [last], range(M))] if shape.rewarded else []
    )
    if shape.teacher == "pool":
        taught = [task for task in tasks if task.role == "teacher"]
        assert [task.key for task in taught] == [
            key for step in range(3) for key in keys("guide", step, [last], range(M))
        ]
        assert all(task.rank is None and task.after is None for task in taught)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dependency(shape):
    tasks, last = stretch(shape, 3), shape.score_updates - 1
    listed, encoded = {}, ["encode"] * shape.encodes
    for task in tasks:
        action, step, repeat, m = task.key
        assert task.key not in listed
        listed[task.key] = task
        needs = {
            "encode": [],
            "sample": encoded,
            "guide": ["sample", *encoded],
            "predict": ["sample", *encoded],
            "train": ["sample", *encoded],
            "reward": ["sample"],
            "backward": ["sample", "predict", "guide", *(["reward"] if shape.rewarded else [])],
        }[action]
        assert sorted(task.needs) == sorted(Key(need, step, repeat, m) for need in needs)
        assert all(need in listed for need in task.needs), "a task stands behind all that it needs"
        assert task.gated == (action == "backward")
        assert task.kept == (action == "sample" and repeat == last)
        assert task.gradient == (action == "reward")
    for found in by_rank(tasks).values():
        assert found[0].after is None
        assert all(task.after == before.key for before, task in pairwise(found))
    assert all(task.after is None for task in tasks if task.rank is None)
    assert all((task.rank is None) == (task.role not in GROUPS) for task in tasks)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_optimiser_steps_once_an_update_on_every_rank_after_its_last_micro_batch(shape):
    for (role, rank), found in by_rank(stretch(shape, 3)).items():
        action = "train" if role == "score" else "backward"
        updates = defaultdict(list)
        for task in found:
            if task.key.action == action:
                updates[task.key.step, task.key.repeat].append(task.updates)
            else:
                assert not task.updates
        size = shape.score_ranks if role == "score" else shape.generator_ranks
        assert len(updates) == 3 * (shape.score_updates if role == "score" else 1)
        assert all(steps == [False] * (M // size - 1) + [True] for steps in updates.values()), (role, rank)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_both_orders_are_one_list_with_two_sets_of_edges(k):
    strict, overlapped = (
        {task.key: task for task in stretch(StepShape(k, M, order, True, 2, 2), 3)}
        for order in ("strict", "overlapped")
    )
    assert strict.keys() == overlapped.keys()
    assert all(strict[key].needs == overlapped[key].needs for key in strict)
    assert any(strict[key].after != overlapped[key].after for key in strict)
    assert all(strict[key].after == overlapped[key].after for key in strict if strict[key].role == "generator")


@pytest.mark.parametrize("shape", SHAPES[:12], ids=str)
def test_ranks_of_a_group_do_the_same_at_the_same_place(shape):
    """They meet in collectives: place by place the same action of the same repeat, and the same update."""
    seen = by_rank(stretch(shape, 3))
    for role, size in (("generator", shape.generator_ranks), ("score", shape.score_ranks)):
        places = [[(t.key[:3], t.updates, t.kept) for t in seen[role, rank]] for rank in range(size)]
        assert all(found == places[0] for found in places)


def test_what_is_sampled_ahead_is_an_argument():
    shape = StepShape(2, M, "strict", True, 1, 1)
    alone = step_tasks(shape, 5, [5])
    assert {task.key.step for task in alone} == {5}
    both = step_tasks(shape, 5, [5, 6])
    assert both[: len(alone)] == alone
    assert {(t.key.action, t.key.step) for t in both[len(alone) :]} == {("encode", 6), ("sample", 6)}
    assert both[len(alone) + 1].after == Key("backward", 5, 1, M - 1)
    later = step_tasks(shape, 6, [], both)
    assert not [task for task in later if task.key.action in ("encode", "sample")]
    first = next(task for task in later if task.role == "score")
    assert first.after == Key("predict", 5, 1, M - 1)


def test_before_the_first_step():
    shape = StepShape(5, M, "overlapped", True, 2, 2)
    warm = warmup_tasks(shape, -3, 7)
    assert [task.key for task in warm if task.role == "score"] == keys("train", -3, [7], range(M))
    assert [task.updates for task in warm if task.role == "score"] == [False, False, True, True]
    asked = reward_tasks(shape, -2, 1)
    assert [task.key for task in asked if task.role == "reward"] == keys("reward", -2, [1], range(M))
    assert not any(task.kept or task.gradient or task.gated for task in warm + asked)
    assert {task.role for task in warm} == {"text", "generator", "score"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


class Interpreter:
    """Does a list one task after the other, with the plain loop's own networks and functions."""

    def __init__(self, loop):
        self.loop, self.results, self.reports, self.held = loop, {}, defaultdict(list), []

    def run(self, tasks):
        for task in tasks:
            self.results[task.key] = getattr(self, task.key.action)(task, *task.key[1:])

    def draws(self, step, repeat, m):
        return self.loop.micro_batches(step, repeat)[m]

    def encode(self, task, step, repeat, m):
        return None  # the plain loop encodes where it samples

    def sample(self, task, step, repeat, m):
        return self.loop.sample(self.draws(step, repeat, m), graph=task.kept)

    def guide(self, task, step, repeat, m):
        return None  # asked where the generator is trained

    reward = guide

    def train(self, task, step, repeat, m):
        self.held.append(self.results[Key("sample", step, repeat, m)])
        if task.updates:
            self.reports[step, "train"].append(self.loop.train_score(self.held))
            self.held = []

    def predict(self, task, step, repeat, m):
        return self.loop.ask_score(*self.results[Key("sample", step, repeat, m)])

    def backward(self, task, step, repeat, m):
        if task.updates:
            batch = [self.results[Key("sample", step, repeat, i)] for i in range(M)]
            answers = [self.results[Key("predict", step, repeat, i)] for i in range(M)]
            self.reports[step, "backward"].append(self.loop.train_generator(batch, answers))

    def measured(self, step):
        return mean_of(self.reports[step, "train"]) | mean_of(self.reports[step, "backward"])


@pytest.mark.parametrize(("order", "k"), [("strict", 1), ("strict", 2), ("overlapped", 1), ("overlapped", 5)])
def test_the_list_done_in_its_order_is_the_plain_loop_to_the_bit(world, order, k):
    config = tiny_config(*world, f"objective.order={order}", f"objective.score_updates={k}")
    prompts = read_prompts(config.data.prompts, config.data.column)
    plain, listed = plain_loop(config, prompts), Interpreter(plain_loop(config, prompts))
    listed.run(stretch(shape_of(config, {"generator": 1, "score": 1}), 4))
    for step in range(4):
        assert listed.measured(step) == plain.step(step)
    for name, value in plain.average.items():
        assert torch.equal(value, listed.loop.average[name])
