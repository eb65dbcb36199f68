"""The stateless roles of a run, which outlive its sessions: text, teachers, rewards. Started side by side, ended once.

Ray starts a lost one anew, elsewhere where its node is gone, and asks it again what the lost one owes.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.roles.reward_client import RewardClientActor
from dipp_ray.roles.text import Text
from dipp_ray.roles.waiting import wait_all
from dipp_ray.serving.deploy.application import vae_record
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.serving.deploy.private import private_config, private_name
from dipp_ray.training.draining import draining_nodes
from dipp_ray.training.placement import Placement, reserve
from dipp_ray.training.pool import Pool


@dataclass
class Roles:
    pool: Pool
    text: ray.actor.ActorHandle
    reward: ray.actor.ActorHandle | None
    service: dict | None  # what the reward service said it is: see `ServiceRecord`
    private_application: str | None
    placement: Placement

    def await_ready(self, config: RunConfig, say: Callable[[str], None]) -> None:
        """Wait until they answer, the private reward service among them. Once or often."""
        if self.private_application and self.reward is None:
            await_rewards(self.private_application, config.roles.wait_s, say)
            self.reward, self.service = call_rewards(self.private_application, config, say)
        self.pool.await_ready(config.roles.wait_s, say)
        wait_all([self.text.__ray_ready__.remote()], "text", config.roles.wait_s, say)

    def move(self, config: RunConfig, say: Callable[[str], None]) -> None:
        """Start those anew elsewhere whose node is about to leave; nothing is asked of them now. A teacher for whom
        there is no room is given up where the pool may do without."""
        leaving = draining_nodes().keys()
        for entry in [entry for entry in self.placement.held if self.placement.only(entry).node_ids() & leaving]:
            (request,) = entry[1]
            say(f"{request.role} {request.index} moves to another node")
            ray.kill(self.text if request.role == "text" else self.pool.members[request.index])
            self.placement.held.remove(entry)
            self.placement.only(entry).release()
            may_go = request.role == "teacher" and len(self.pool.members) > self.pool.fewest
            try:
                room = reserve([[request]], 0.0 if may_go else config.roles.wait_s, say)
            except UserError:
                if not may_go:
                    raise
                say(f"there is no room for teacher {request.index}: the pool goes on without it")
                del self.pool.members[request.index]
                continue
            self.placement.held += room.held
            if request.role == "text":
                self.text = start_actor(Text, room.options("text", 0), config)
            else:
                self.pool.move(request.index, room)

    def end_models(self) -> None:
        """End all of them but the rewards."""
        self.pool.end()
        ray.kill(self.text)

    def stop(self) -> None:
        """End them. Actors first: they go even where Serve no longer answers."""
        self.end_models()
        if self.reward:
            ray.kill(self.reward)
        self.placement.release()
        if self.private_application:
            stop_rewards(self.private_application)


def start_roles(config: RunConfig, placement: Placement, say: Callable[[str], None]) -> Roles:
    """Start them without waiting for them. What was started is ended again if one of them fails."""
    private, reward, service = None, None, None
    try:
        if not config.reward.shared and config.reward.terms:
            private = private_name(config.path)
            say(f"starting the reward service {private}")
            stop_rewards(private)  # an orphan of an earlier attempt
            deploy_rewards(
                private_config(
                    private,
                    config.reward,
                    config.model.teacher,
                    config.roles.reward,
                    config.run.deterministic,
                    config.micro_batch_size,
                )
            )
        elif config.reward.shared:
            reward, service = call_rewards(None, config, say)
        text = start_actor(Text, placement.options("text", 0), config)
        pool = Pool(config, placement)
        pool.start()
    except BaseException:
        placement.release()  # Ray ends the actors in it
        if private:
            with suppress(Exception):  # what failed first is what a person must read
                stop_rewards(private)
        raise
    return Roles(pool, text, reward, service, private, placement)


def start_actor(actor: Any, options: dict, *arguments):
    """An actor of a class that Ray decorated, with arguments of its `.options()`."""
    return actor.options(**options).remote(*arguments)


def call_rewards(application: str | None, config: RunConfig, say: Callable[[str], None]) -> tuple:
    """(the reward-client actor, what the service said it is). application: the run's own; None for a shared one."""
    reward = start_actor(RewardClientActor, {}, application, config.reward, config.run.name)
    own = vae_record(config.model.teacher) if application is None else None  # its own decodes by the same folder
    asked = reward.check.remote(config.micro_batch_size, config.objective.reward_scale > 0, own)
    (service,) = wait_all([asked], "the reward service", config.reward.deadline_s + 60, say)
    return reward, service
