"""The roles of a run, started where the placement says, and ended together."""

from collections.abc import Callable
from dataclasses import dataclass

import ray

from dipp_ray.config import RunConfig
from dipp_ray.roles.generator import GeneratorRank
from dipp_ray.roles.group import Group
from dipp_ray.roles.reward import Reward
from dipp_ray.roles.score import ScoreRank
from dipp_ray.roles.teacher import Teacher
from dipp_ray.roles.text import Text
from dipp_ray.roles.waiting import wait_all
from dipp_ray.serving.service import private_name, start_rewards, stop_rewards
from dipp_ray.training.placement import Placement


@dataclass
class Roles:
    generator: Group
    score: Group
    teachers: list
    text: ray.actor.ActorHandle
    reward: ray.actor.ActorHandle | None
    private_application: str | None
    placement: Placement

    def stop(self) -> None:
        """End what this run started, and nothing else."""
        if self.private_application:
            stop_rewards(self.private_application)
        self.generator.kill()
        self.score.kill()
        for actor in [*self.teachers, self.text, *([self.reward] if self.reward else [])]:
            ray.kill(actor)
        self.placement.release()


def start_roles(config: RunConfig, placement: Placement, say: Callable[[str], None]) -> Roles:
    """Start every role of the run. All of them load side by side; the reward service comes first, by Serve."""
    application = config.reward.app
    private = None
    text = Text.options(**placement.options("text", 0)).remote(config)
    null = text.encode.remote([""])
    teachers = [
        Teacher.options(**placement.options("teacher", i)).remote(config, null)
        for i in range(config.roles.teacher.workers)
    ]
    if application is None and config.reward.terms:
        application = private = private_name(config.run.name)
        say(f"starting the reward service {private}")
        start_rewards(
            private,
            config.reward.terms,
            config.model.teacher,
            config.roles.reward,
            config.reward.replicas,
            config.run.deterministic,
            max_batch_images=config.micro_batch_size,
        )
    reward = None
    if application is not None:
        reward = Reward.remote(application, config.reward)

    def options(role: str) -> list[dict]:
        return [placement.options(role, i) for i in range(getattr(config.roles, role).workers)]

    say("starting generator and score model")
    generator = Group.start(
        GeneratorRank, config, options("generator"), config.model.generator or config.model.teacher, say
    )
    score = Group.start(ScoreRank, config, options("score"), config.model.teacher, say)
    wait_all([null, *[t.__ray_ready__.remote() for t in teachers]], "teacher and text", config.roles.wait_s, say)
    return Roles(generator, score, teachers, text, reward, private, placement)
