"""Encoders in actors: each in the room of a run's text role, called as if it were here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import Encoding
from dipp_ray.encoding.encoder import Encoder
from dipp_ray.errors import RoleFailure
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.process import prepare
from dipp_ray.roles.waiting import lost_actor, value_of, wait_all
from dipp_ray.serving.deploy.application import replica_options

GOES_ON = "the same command goes on with the shards that are missing"
RESTARTS = 3  # of an actor whose process is lost: the shard that it was at is encoded again


@ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS)
class EncoderActor:
    """An `Encoder` in a process of its own."""

    def __init__(self, config: RunConfig):
        quiet_libraries()
        self.encoder = Encoder(config, prepare(config.roles.text, config.run.deterministic))

    def layout(self, prompt: str, dtype: str) -> dict[str, Any]:
        return self.encoder.layout(prompt, dtype)

    def write(self, encoding: Encoding, folder: str, name: str, texts: Sequence[str]) -> None:
        self.encoder.write(encoding, folder, name, texts)


class _Placed:
    """The actor with an `Encoder`'s face: each call is waited for."""

    def __init__(self, actor: Any):
        self.actor = actor

    def layout(self, prompt: str, dtype: str) -> dict[str, Any]:
        return _value(self.actor.layout.remote(prompt, dtype))

    def write(self, encoding: Encoding, folder: str, name: str, texts: Sequence[str]) -> None:
        _value(self.actor.write.remote(encoding, folder, name, texts))


@contextmanager
def placed_encoders(config: RunConfig, count: int, say: Callable[[str], None]) -> Iterator[list[_Placed]]:
    """So many encoders, the first of which has loaded its models. Needs a connected Ray."""
    kind: Any = EncoderActor  # as Ray has decorated it
    actors = [kind.options(**replica_options(config.roles.text)).remote(config) for _ in range(count)]
    try:
        wait_all([actors[0].__ray_ready__.remote()], "the text encoders", config.roles.wait_s, say, GOES_ON)
        yield [_Placed(actor) for actor in actors]
    finally:
        for actor in actors:
            ray.kill(actor)


def _value(reference: Any) -> Any:
    try:
        return value_of(reference)
    except RayActorError as error:
        raise RoleFailure(f"encode: a process died ({lost_actor(error)[1]}); {GOES_ON}") from None
