"""The roles of a run, started where the placement says, and ended together."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from dipp_ray.config import RunConfig
from dipp_ray.roles.generator import GeneratorRank
from dipp_ray.roles.group import Group
from dipp_ray.roles.reward_client import RewardClientActor
from dipp_ray.roles.score import ScoreRank
from dipp_ray.roles.teacher import Teacher
from dipp_ray.roles.text import Text
from dipp_ray.roles.waiting import wait_all
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.serving.deploy.private import private_config, private_name
from dipp_ray.training.placement import Placement


@dataclass
class Roles:
    generator: Group
    score: Group
    teachers: list
    text: ray.actor.ActorHandle
    null: ray.ObjectRef  # embeddings of the null prompt
    reward: ray.actor.ActorHandle | None
    service: dict | None  # what the reward service said it is: see `ServiceRecord`
    private_application: str | None
    placement: Placement

    def end_trainers(self) -> None:
        """End all roles but the rewards'; the room that was reserved for them stays this run's."""
        self.generator.kill()
        self.score.kill()
        for actor in [*self.teachers, self.text]:
            ray.kill(actor)

    def stop(self) -> None:
        """End what this run started, and nothing else. Actors first: they go even where Serve no longer answers."""
        self.end_trainers()
        if self.reward:
            ray.kill(self.reward)
        self.placement.release()
        if self.private_application:
            stop_rewards(self.private_application)


def start_roles(config: RunConfig, placement: Placement, say: Callable[[str], None]) -> Roles:
    """Start every role of the run, all side by side. What was started is ended again if one of them fails."""
    private, reward, service = None, None, None
    try:
        if not config.reward.shared and config.reward.terms:
            private = private_name(config.path)
            say(f"starting the reward service {private}")
            stop_rewards(private)  # an orphan of an earlier attempt
            deploy_rewards(
                private_config(
                    private,
                    config.reward.terms,
                    config.model.teacher,
                    config.roles.reward,
                    config.reward.replicas,
                    config.run.deterministic,
                    config.micro_batch_size,
                )
            )
        elif config.reward.shared:
            reward, service = call_rewards(None, config, say)
        text = start_actor(Text, placement.options("text", 0), config)
        null, encoded = text.encode.remote([""])
        pool = 0 if config.teacher_in_score else config.roles.teacher.workers
        teachers = [start_actor(Teacher, placement.options("teacher", i), config) for i in range(pool)]
        say("starting generator and score model")

        def options(role: str) -> list[dict]:
            return [placement.options(role, i) for i in range(getattr(config.roles, role).workers)]

        generator = Group(GeneratorRank, config, options("generator"), say)
        score = Group(ScoreRank, config, options("score"), say)
        generator.meet()
        score.meet()
        if private:
            await_rewards(private, config.roles.wait_s, say)
            reward, service = call_rewards(private, config, say)
        wait_all([encoded, *[t.__ray_ready__.remote() for t in teachers]], "teacher and text", config.roles.wait_s, say)
    except BaseException:
        placement.release()  # Ray ends the actors in it
        if private:
            with suppress(Exception):  # what failed first is what a person must read
                stop_rewards(private)
        raise
    return Roles(generator, score, teachers, text, null, reward, service, private, placement)


def start_actor(actor: Any, options: dict, *arguments):
    """An actor of a class that Ray decorated, with arguments of its `.options()`."""
    return actor.options(**options).remote(*arguments)


def call_rewards(application: str | None, config: RunConfig, say: Callable[[str], None]) -> tuple:
    """(the reward-client actor, what the service said it is). application: the run's own; None for a shared one."""
    reward = start_actor(RewardClientActor, {}, application, config.reward, config.run.name)
    asked = reward.check.remote(config.micro_batch_size, config.objective.reward_scale > 0)
    (service,) = wait_all([asked], "the reward service", config.reward.deadline_s + 60, say)
    return reward, service
