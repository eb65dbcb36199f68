"""What a person is told about a dead process, of what Ray says: one line, without its ids."""

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from dipp_ray.errors import RoleFailure
from dipp_ray.roles import waiting
from dipp_ray.roles.waiting import lost_actor

DEAD = "The actor is dead because its "
RAYS = {
    "killed": (
        f"{DEAD}worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits "
        "with a connection error code 2. End of file. Some common causes include: (1) the process was killed by the "
        "OOM killer due to high memory usage, (2) ray stop --force was called.",
        "its process was killed, from outside or by the system for want of memory",
    ),
    "node": (
        f"{DEAD}node has died. Node Id: 0f5a. The actor's node was terminated expectedly: received SIGTERM",
        "its node was lost",
    ),
    "memory": (
        "Task was killed due to the node running low on memory.\nMemory on the node was 62GB / 64GB (0.96)",
        "its node ran low on memory",
    ),
    "by hand": ("The actor is dead because it was killed by `ray.kill`.", "it was killed by `ray.kill`"),
}


@pytest.mark.parametrize("kind", RAYS)
def test_a_death_is_half_a_sentence(kind):
    text, expected = RAYS[kind]
    error = RayActorError(actor_id="ab12", error_msg=f"The actor died unexpectedly before finishing this task.\n{text}")
    actor, reason = lost_actor(error)
    assert actor == "ab12" and expected in reason and "\n" not in reason and len(reason) < 120


def test_what_a_constructor_raised_is_the_reason():
    cause = RayTaskError(
        "Rank.__init__", "Traceback (most recent call last):\nValueError: no such folder", ValueError("x")
    )
    assert lost_actor(ActorDiedError(cause))[1] == "ValueError: no such folder"


def test_an_actor_that_cannot_be_reached_is_told_as_that():
    error = ActorUnavailableError("RpcError: RPC error: failed to connect to all addresses", b"0" * 16)
    assert lost_actor(error)[1] == "it cannot be reached: its node is lost, or the network to it"


def test_who_is_waited_for_in_vain_or_died_says_how_it_goes_on(monkeypatch):
    monkeypatch.setattr(waiting.ray, "wait", lambda asked, **_: ([], asked))
    with pytest.raises(RoleFailure, match=r"^ranks: 1 of 1 did not answer within 0 s; the same command goes on from"):
        waiting.wait_all(["asked"], "ranks", 0, print)

    def dead(_):
        raise RayActorError(actor_id="ab12", error_msg="its node was terminated")

    monkeypatch.setattr(waiting.ray, "wait", lambda asked, **_: (asked, []))
    monkeypatch.setattr(waiting.ray, "get", dead)
    with pytest.raises(RoleFailure, match=r"^encoders: a process died \(its node was lost\); shards that are missing$"):
        waiting.wait_all(["asked"], "encoders", 0, print, "shards that are missing")
