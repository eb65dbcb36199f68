"""The front of Serve's HTTP in a cluster: an actor on the head, which stays for as long as Serve does.

Ray starts it anew where its process is lost. It listens at the same port then and passes on to the same one, and what
it knew of trainers it finds in the cluster's own store (the GCS), which holds digests of tokens and no token.
"""

import asyncio
import errno
import json
import resource
import socket
import threading

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put  # there is no public one

from dipp_ray.errors import UserError
from dipp_ray.serving.core.queue import QueueSection
from dipp_ray.serving.deploy.config import HttpSection
from dipp_ray.serving.http.front import MOST_CONNECTIONS, Front

NAME, NAMESPACE = "dipp-ray-front", "dipp-ray"
KNOWN = "front"  # its key in the cluster's store: (tokens, calls) of `know`, as JSON
HEAD = "node:__internal_head__"  # a resource of the head node alone, as Ray names it
ON_HEAD = {"num_cpus": 0, "resources": {HEAD: 0.001}}
LOOPBACK = "127.0.0.1"
FILES = 4 * MOST_CONNECTIONS  # two a call, and what Ray has open
AGAIN_S = 1.0  # between two tries to listen where another program has taken the port of a front that was lost


class FrontActor:
    """A front in a thread of its own. address: host and port to listen on; behind: where Serve's proxy listens."""

    def __init__(self, address: tuple[str, int], behind: tuple[str, int]):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        self._address = address
        self._front = Front(behind)
        if known := _internal_kv_get(KNOWN, namespace=NAMESPACE):
            self._front.know(*json.loads(known))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="front", daemon=True).start()
        self._error: OSError | None = None
        try:
            asyncio.run_coroutine_threadsafe(self._front.listen(*address), self._loop).result()
        except OSError as error:  # said by `places`: Ray tells of what a constructor raises in many lines
            self._error = error
            asyncio.run_coroutine_threadsafe(self._listen_later(), self._loop)

    async def _listen_later(self) -> None:
        """Of a front that is started anew: one that is opened ends where it cannot listen."""
        while self._error is not None:
            await asyncio.sleep(AGAIN_S)
            try:
                await self._front.listen(*self._address)
                self._error = None
            except OSError as error:
                self._error = error

    def place(self) -> tuple[tuple[str, int], OSError | None]:
        """(where it listens, why it does not or None)."""
        return self._address, self._error

    def know(self, tokens: dict[str, str], calls: int) -> None:
        _internal_kv_put(KNOWN, json.dumps((tokens, calls)), namespace=NAMESPACE)
        self._loop.call_soon_threadsafe(self._front.know, tokens, calls)


def open_front(http: HttpSection) -> tuple[str, int]:
    """Let a front listen at `http` on the head, in the place of any before; returns where Serve's proxy has to listen.

    Raises UserError where nothing can listen there.
    """
    close_front()
    # Chosen once, for Serve's proxy is told once.
    behind = (LOOPBACK, ray.get(ray.remote(_free_port).options(**ON_HEAD).remote()))
    made = ray.remote(FrontActor).options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", max_restarts=-1, max_task_retries=-1, **ON_HEAD
    )
    front = made.remote((http.host, http.port), behind)
    _, error = ray.get(front.place.remote())
    if error is not None:
        ray.kill(front)
        raise refused(http, error)
    return behind


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return free.getsockname()[1]


def front_address() -> tuple[str, int] | None:
    """Where the cluster's front listens, None where there is none."""
    front = _there()
    return None if front is None else tuple(ray.get(front.place.remote())[0])


def close_front() -> None:
    front = _there()
    if front is not None:
        ray.kill(front)
    _internal_kv_del(KNOWN, namespace=NAMESPACE)


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
