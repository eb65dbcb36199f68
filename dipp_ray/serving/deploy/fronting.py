"""The front of Serve's HTTP in a cluster: an actor on the head, which stays for as long as Serve does."""

import asyncio
import errno
import resource
import socket
import threading

import ray

from dipp_ray.errors import UserError
from dipp_ray.serving.core.queue import QueueSection
from dipp_ray.serving.deploy.config import HttpSection
from dipp_ray.serving.http.front import MOST_CONNECTIONS, Front

NAME, NAMESPACE = "dipp-ray-front", "dipp-ray"
HEAD = "node:__internal_head__"  # a resource of the head node alone, as Ray names it
LOOPBACK = "127.0.0.1"
FILES = 4 * MOST_CONNECTIONS  # two a call, and what Ray has open


class FrontActor:
    """A front in a thread of its own. address: host and port to listen on."""

    def __init__(self, address: tuple[str, int]):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        self._address = address
        with socket.socket() as free:  # where Serve's proxy is going to listen
            free.bind((LOOPBACK, 0))
            self._behind = (LOOPBACK, free.getsockname()[1])
        self._front = Front(self._behind)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="front", daemon=True).start()
        self._error: OSError | None = None
        try:
            asyncio.run_coroutine_threadsafe(self._front.listen(*address), self._loop).result()
        except OSError as error:  # said by `places`: Ray tells of what a constructor raises in many lines
            self._error = error

    def places(self) -> tuple[tuple[str, int], tuple[str, int], OSError | None]:
        """(where it listens, where Serve's proxy does, why it does not listen or None)."""
        return self._address, self._behind, self._error

    def know(self, tokens: dict[str, str], calls: int) -> None:
        self._loop.call_soon_threadsafe(self._front.know, tokens, calls)


def open_front(http: HttpSection) -> tuple[str, int]:
    """Let a front listen at `http` on the head, in the place of any before; returns where Serve's proxy has to listen.

    Raises UserError where nothing can listen there.
    """
    close_front()
    made = ray.remote(FrontActor).options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", num_cpus=0, resources={HEAD: 0.001}, max_restarts=-1
    )
    front = made.remote((http.host, http.port))
    _, behind, error = ray.get(front.places.remote())
    if error is not None:
        ray.kill(front)
        raise refused(http, error)
    return behind


def front_address() -> tuple[str, int] | None:
    """Where the cluster's front listens, None where there is none."""
    front = _there()
    return None if front is None else tuple(ray.get(front.places.remote())[0])


def close_front() -> None:
    front = _there()
    if front is not None:
        ray.kill(front)


def tell_front(tokens: dict[str, str], queue: QueueSection) -> None:
    """Whose tokens are which (digest to trainer), and the bounds of each; nothing where there is no front."""
    front = _there()
    if front is not None:
        ray.get(front.know.remote(tokens, queue.calls))


def refused(http: HttpSection, error: OSError) -> UserError:
    """Why nothing can listen at `http`."""
    taken = error.errno == errno.EADDRINUSE
    reason = "is taken already" if taken else f"cannot be listened on ({error.strerror})"
    return UserError(f"{http.host}:{http.port} {reason}: set http.port{'' if taken else ' or http.host'}")


def _there() -> "ray.actor.ActorHandle | None":
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None
