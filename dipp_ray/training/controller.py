"""The controller: lists the tasks of each step and has them run. It passes references on and holds no tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ray

from dipp_ray.alignment.updates import mean_of
from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import Rows
from dipp_ray.data.prompts import Prompts
from dipp_ray.diffusion.noise import BARRIER, SCORE_WARMUP, STANDARDISATION, Draws
from dipp_ray.errors import RewardUnavailableError, UserError
from dipp_ray.roles.group import Group
from dipp_ray.training.actor_protocol import TaskResult
from dipp_ray.training.actors import RayActors
from dipp_ray.training.executor import Executor, Finished
from dipp_ray.training.memory import StateMemory
from dipp_ray.training.roles import Roles
from dipp_ray.training.tasks import GROUPS, Key, Role, StepShape, Task, reward_tasks, step_tasks, warmup_tasks


@dataclass(frozen=True)
class StepResult:
    """A step that has ended. `busy` are the seconds of each role; `last`: it ends its stretch, nothing is in flight."""

    step: int
    metrics: dict[str, float]
    busy: dict[str, float]
    last: bool


class Controller:
    """groups: the ranks of generator and score model. null: embeddings of the null prompt, or where they lie."""

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        groups: Mapping[Role, Group],
        null: ray.ObjectRef | Rows,
        memory: StateMemory,
        prompts: Prompts,
        say: Callable[[str], None],
    ):
        self.memory = memory
        self.config, self.roles, self.null, self.prompts = config, roles, null, prompts
        self.shape = shape_of(config, {role: len(group.ranks) for role, group in groups.items()})
        self.actors = RayActors(
            {
                **{role: dict(enumerate(group.ranks)) for role, group in groups.items()},
                "text": {0: roles.text},
                "reward": {0: roles.reward} if roles.reward else {},
            },
            roles.pool,
        )
        self.executor = Executor(
            self.actors,
            config.roles.step_timeout_s,
            config.roles.heartbeat_s,
            say,
            away_s=config.reward.away_s if config.reward.shared else 0.0,
        )
        self.reward_deviation = 1.0
        self.texts = lru_cache(8 * config.data.micro_batches)(prompts.of)  # asked for by text and by reward

    def say_by(self, say: Callable[[str], None]) -> None:
        """Tell a person by `say` from now on."""
        self.executor.say = say

    def steps(self, first: int, ends_after: Callable[[int], bool]) -> Iterator[StepResult]:
        """Train the steps of one stretch, from step `first` to a barrier; each is returned when it has ended, while the
        next one is under way. `ends_after(done)` says, before step done - 1 is listed, whether the stretch ends there.
        """
        step, ended, last = first, first, False
        tasks: list[Task] = []
        while ended < step or not last:
            if not last:
                last = ends_after(step + 1)
                own, ahead = [step] * (step == first), [step + 1] * (not last)
                tasks = step_tasks(self.shape, step, [*own, *ahead], tasks, self.memory.is_due(step + 1))
                self.executor.add(tasks, self.send)
                step += 1
            if last or step - ended > 1:
                yield self._result(ended, last and ended + 1 == step)
                ended += 1

    def _result(self, step: int, last: bool) -> StepResult:
        finished = self.executor.finish(step)
        trained = reports_of(finished, "train")
        sent_back = reports_of(finished, "backward")
        busy: dict[str, float] = {}
        for done in finished.values():
            busy[done.task.role] = busy.get(done.task.role, 0.0) + done.report.seconds
        asked = [(done.stamps.began, done.stamps.ended) for done in finished.values() if done.task.role == "reward"]
        if asked:  # its one client waits for several at once
            busy["reward"] = covered(asked)
        metrics = mean_of([r.metrics for r in trained]) | mean_of([r.metrics for r in sent_back])
        if kept := reports_of(finished, "keep"):
            metrics["keep_seconds"] = max(report.seconds for report in kept)
        return StepResult(step, metrics, busy, last)

    # -- how a task is asked of its actor ------------------------------------------------------------------------------

    def draws(self, key: Key) -> Draws:
        """What a micro-batch is: consecutive global sample indices of one repeat of a step."""
        size = self.config.micro_batch_size
        start = key.micro_batch * size
        return Draws(self.config.run.seed, key.step, key.repeat, range(start, start + size))

    def rows(self, draws: Draws) -> Rows:
        """Where the embeddings of a micro-batch lie in the run's file."""
        return Rows(tuple(self.prompts.rows(draws)), tuple(self.prompts.rows_ahead(draws)))

    def send(self, task: Task, index: int, answers: dict[Key, TaskResult]) -> TaskResult:
        """Call the actor. Results of other tasks travel as references, resolved where they are used."""
        actor, draws = self.actors.of(task.role, index), self.draws(task.key)
        given = {key.action: answer.reference for key, answer in answers.items()}
        embeds = given.get("encode") if self.shape.encodes else self.rows(draws)
        match task.key.action:
            case "encode":
                return TaskResult(*actor.encode.remote(self.texts(draws)))
            case "sample":
                return TaskResult(*actor.sample.remote(draws, embeds, task.kept))
            case "guide":
                return TaskResult(*actor.guide.remote(draws, given["sample"], embeds, self.null))
            case "reward":
                return TaskResult(
                    *actor.score.remote(given["sample"], self.texts(draws), task.gradient, held_out=False)
                )
            case "predict":
                return TaskResult(*actor.predict.remote(draws, given["sample"], embeds))
            case "train":
                return TaskResult(None, actor.train.remote(draws, given["sample"], embeds, task.updates))
            case "backward":
                psi, ref, reward = given["predict"], given["guide"], given.get("reward")
                return TaskResult(
                    None, actor.backward.remote(draws, psi, ref, reward, self.reward_deviation, task.updates)
                )
            case "keep":
                return TaskResult(None, self._keep(actor, task.key.step + 1))
        raise ValueError(f"no role knows how to {task.key.action}")

    def _keep(self, actor, done: int):
        kept = actor.keep.remote(done, self.memory.look())
        self.memory.sent(done, [actor.kept.remote(done)])
        return kept

    def keep_now(self, done: int) -> None:
        """Between two steps: have the state after `done` steps kept, and wait until it is."""
        for role in GROUPS:
            self.together(role, "keep", done, self.memory.look())
        for role in GROUPS:
            self.together(role, "kept", done)
        self.memory.complete = done

    # -- between steps -------------------------------------------------------------------------------------------------

    def together(self, role: Role, method: str, *arguments) -> list:
        """Call a method on all ranks of a group, or on the one actor of a role; returns what each returned."""
        everyone = range(self.actors.count(role))
        found = self._between(
            [Task(Key(method, BARRIER, 0, index), role, index) for index in everyone], method, lambda _: arguments
        )
        return [done.report for done in found]

    def encoded(self, batches: Sequence[Sequence[int]]) -> list:
        """What a role is given for each batch of the prompts' rows: their embeddings as arrays, or where those lie."""
        if not self.shape.encodes:
            return [Rows(tuple(rows)) for rows in batches]
        return self._of_each("text", "encode", [(self.prompts.at(rows),) for rows in batches])

    def rewards(self, batches: Sequence[tuple[np.ndarray, list[str]]]) -> list[dict]:
        """What the reward service says, without gradients, about each (x0, prompts)."""
        return self._of_each("reward", "score", [(x0, prompts, False, True) for x0, prompts in batches])

    def _of_each(self, role: Role, method: str, batches: list[tuple]) -> list:
        tasks = [Task(Key(method, BARRIER, 0, m), role) for m in range(len(batches))]
        found = self._between(tasks, method, lambda task: batches[task.key.micro_batch])
        return ray.get([done.reference for done in found])

    def _between(self, tasks: list[Task], method: str, arguments: Callable[[Task], tuple]) -> list[Finished]:
        def send(task: Task, index: int, _: dict[Key, TaskResult]) -> TaskResult:
            found = getattr(self.actors.of(task.role, index), method).remote(*arguments(task))
            return TaskResult(*found) if isinstance(found, list) else TaskResult(None, found)

        self.executor.add(tasks, send)
        return list(self.executor.finish(BARRIER).values())

    # -- before the first step -----------------------------------------------------------------------------------------

    def warm_score_up(self) -> None:
        """Score-only updates on the starting generator's samples (`init.score_warmup_steps`)."""
        for i in range(self.config.init.score_warmup_steps):
            self.executor.add(warmup_tasks(self.shape, SCORE_WARMUP, i), self.send)
            self.executor.finish(SCORE_WARMUP)

    def standardise(self) -> dict[str, float]:
        """Mean and deviation of the reward on samples of the starting generator."""
        rewards: list[float] = []
        for i in range(-(-self.config.reward.standardise_samples // self.config.data.batch_size)):
            self.executor.add(reward_tasks(self.shape, STANDARDISATION, i), self.send)
            for done in self.executor.finish(STANDARDISATION).values():
                if done.task.role != "reward":
                    continue
                reply = ray.get(done.reference)
                if reply["failed"]:  # a deviation with and without a term would be neither's
                    raise RewardUnavailableError(f"reward.standardise: {next(iter(reply['failed'].values()))}")
                rewards += reply["reward"][reply["finite"]].tolist()
        mean = sum(rewards) / max(1, len(rewards))
        deviation = (sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards) - 1)) ** 0.5
        if not deviation > 0:
            raise UserError(
                f"reward.standardise: the reward of the starting generator has no deviation over {len(rewards)} finite "
                "samples: check the reward, or set reward.standardise=false"
            )
        return {"reward_mean": mean, "reward_deviation": deviation}


def shape_of(config: RunConfig, ranks: Mapping[Role, int]) -> StepShape:
    """ranks: of each group."""
    return StepShape(
        score_updates=config.objective.score_updates,
        micro_batches=config.data.micro_batches,
        order=config.objective.order,
        rewarded=config.objective.reward_scale > 0,
        generator_ranks=ranks["generator"],
        score_ranks=ranks["score"],
        teacher="score" if config.teacher_in_score else "pool",
        encodes=config.data.embeddings is None,
    )


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans (from, to)."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def reports_of(finished: dict[Key, Finished], action: str) -> list:
    """The reports of one action, in the list's order."""
    return [done.report for key, done in sorted(finished.items()) if key.action == action]
