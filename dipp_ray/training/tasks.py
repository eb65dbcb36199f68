"""A training step as data: the list of its tasks, who does each, and what each waits for. No Ray here.

    encode, sample       prompts -> embeddings -> x0                 generator, every repeat k of K_TA; no encode where
                                                                     each role reads embeddings from a file
    guide, reward        x0 -> x0_ref; x0 -> r, dr/dx0               beside everything else, as soon as x0 is there
    train, predict       strict: psi learns, then x0_psi is asked    overlapped: x0_psi is asked, then psi learns
    backward             x0_psi, x0_ref, r -> g, backward, update    generator
    keep                 each rank's share of the state after the step goes to its keepers, where that is due

A task needs the results of others (`needs`) and follows the one before it on its own rank (`after`): accumulation
order decides bits, and ranks of a group must meet in the same collectives, so every rank is given its tasks in the
list's order. Both orders hold the same tasks with the same needs; what differs is which follows which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Role = Literal["text", "generator", "score", "teacher", "reward"]
Action = Literal["encode", "sample", "guide", "reward", "train", "predict", "backward", "keep"]
Order = Literal["strict", "overlapped"]
# Ranks of one torch.distributed world each; any actor of the other roles may take any of its tasks.
GROUPS: tuple[Role, ...] = ("generator", "score")


class Key(NamedTuple):
    """What a task is: its action, on which micro-batch of which repeat of which step."""

    action: str  # an Action, or the name of a call that belongs to no step
    step: int
    repeat: int
    micro_batch: int


@dataclass(frozen=True)
class Task:
    key: Key
    role: Role
    rank: int | None = None  # of a group; None: whichever actor of the role is least busy
    needs: tuple[Key, ...] = ()  # tasks whose results it is given
    after: Key | None = None  # the task before it on its rank
    gated: bool = False  # it goes out only when all that it needs is known to be good
    kept: bool = False  # sample: remembered, with its graph where graphs are kept, until its backward
    gradient: bool = False  # reward: dr/dx0 is asked as well
    updates: bool = False  # train, backward: the optimiser steps, for it is its rank's last one of an update


@dataclass(frozen=True)
class StepShape:
    """What decides a step's list, whichever step it is. Group sizes divide `micro_batches`."""

    score_updates: int  # K_TA
    micro_batches: int  # M
    order: Order
    rewarded: bool  # whether a reward is asked
    generator_ranks: int
    score_ranks: int
    teacher: Literal["pool", "score"] = "pool"  # who answers the teacher's question: a pool of any size, or the ranks
    # of the score model, whose network is the teacher's when its adapter is off
    encodes: bool = True  # whether prompts are encoded in the step; otherwise each role reads embeddings from a file

    @property
    def about_x0(self) -> "tuple[Action, ...]":
        """What is needed to ask about x0 under its prompt: predictions of both models, and score matching."""
        return ("sample", "encode") if self.encodes else ("sample",)

    def rank_of(self, role: Role, micro_batch: int) -> int | None:
        """The rank that holds a micro-batch in every step; neighbours lie on different ranks."""
        sizes = {"generator": self.generator_ranks, "score": self.score_ranks}
        return micro_batch % sizes[role] if role in sizes else None

    def is_last_of_rank(self, role: Role, micro_batch: int) -> bool:
        size = {"generator": self.generator_ranks, "score": self.score_ranks}[role]
        return micro_batch >= self.micro_batches - size


def step_tasks(
    shape: StepShape, step: int, samples: Sequence[int], previous: Sequence[Task] = (), keeps: bool = False
) -> list[Task]:
    """The list of one step, each task after all that it waits for.

    `samples` are the steps whose sampling this list holds: its own unless that was sampled ahead, and the next one
    where it is to be sampled ahead, behind this step's backward. `previous` is the list before, whose last tasks on
    each rank this one's first follow. `keeps`: the state after the step is kept in memory.
    """
    last = shape.score_updates - 1
    train = [task for k in range(last + 1) for task in _train(shape, step, k)]
    predict = _each(shape, "predict", "score", step, last, shape.about_x0)
    found = _sampling(shape, step) if step in samples else []
    found += _each(shape, "guide", "teacher" if shape.teacher == "pool" else "score", step, last, shape.about_x0)
    if shape.rewarded:
        found += [replace(task, gradient=True) for task in _each(shape, "reward", "reward", step, last, ("sample",))]
    found += train + predict if shape.order == "strict" else predict + train
    found += _backward(shape, step, last)
    for ahead in samples:
        found += _sampling(shape, ahead) if ahead != step else []
    # Behind what was sampled ahead, which others wait for; it changes no state.
    return _chained(found + (_keep(shape, step) if keeps else []), previous)


def warmup_tasks(shape: StepShape, step: int, update: int) -> list[Task]:
    """One score-only update on samples of the generator as it is, with the draws of (`step`, repeat `update`)."""
    sampled = [task for m in range(shape.micro_batches) for task in _sample(shape, step, update, m, kept=False)]
    return _chained(sampled + _train(shape, step, update), ())


def reward_tasks(shape: StepShape, step: int, repeat: int) -> list[Task]:
    """The rewards, without gradient, of one batch of the generator's samples."""
    sampled = [task for m in range(shape.micro_batches) for task in _sample(shape, step, repeat, m, kept=False)]
    return _chained(sampled + _each(shape, "reward", "reward", step, repeat, ("sample",)), ())


def _sampling(shape: StepShape, step: int) -> list[Task]:
    last = shape.score_updates - 1
    return [
        task
        for k in range(last + 1)
        for m in range(shape.micro_batches)
        for task in _sample(shape, step, k, m, kept=k == last)
    ]


def _sample(shape: StepShape, step: int, repeat: int, m: int, kept: bool) -> list[Task]:
    encode, sample = Key("encode", step, repeat, m), Key("sample", step, repeat, m)
    rank = shape.rank_of("generator", m)
    if not shape.encodes:
        return [Task(sample, "generator", rank, kept=kept)]
    return [Task(encode, "text"), Task(sample, "generator", rank, (encode,), kept=kept)]


def _train(shape: StepShape, step: int, repeat: int) -> list[Task]:
    tasks = _each(shape, "train", "score", step, repeat, shape.about_x0)
    return [replace(task, updates=shape.is_last_of_rank("score", task.key.micro_batch)) for task in tasks]


def _backward(shape: StepShape, step: int, repeat: int) -> list[Task]:
    needs: tuple[Action, ...] = ("sample", "predict", "guide", *(("reward",) if shape.rewarded else ()))
    return [
        replace(task, gated=True, updates=shape.is_last_of_rank("generator", task.key.micro_batch))
        for task in _each(shape, "backward", "generator", step, repeat, needs)
    ]


def _keep(shape: StepShape, step: int) -> list[Task]:
    sizes: dict[Role, int] = {"generator": shape.generator_ranks, "score": shape.score_ranks}
    return [
        Task(Key("keep", step, index, rank), role, rank)
        for index, role in enumerate(GROUPS)
        for rank in range(sizes[role])
    ]


def _each(
    shape: StepShape, action: Action, role: Role, step: int, repeat: int, needs: tuple[Action, ...]
) -> list[Task]:
    """One task a micro-batch, each of which needs results about the same micro-batch."""
    return [
        Task(
            Key(action, step, repeat, m),
            role,
            shape.rank_of(role, m),
            tuple(Key(need, step, repeat, m) for need in needs),
        )
        for m in range(shape.micro_batches)
    ]


def _chained(tasks: list[Task], previous: Sequence[Task]) -> list[Task]:
    """The list with `after` set: each rank's tasks one behind the other, in the list's order."""
    latest: dict[tuple[Role, int | None], Key] = {}
    latest |= {(task.role, task.rank): task.key for task in previous if task.rank is not None}
    chained = []
    for task in tasks:
        if task.rank is not None:
            task = replace(task, after=latest.get((task.role, task.rank)))
            latest[task.role, task.rank] = task.key
        chained.append(task)
    return chained
