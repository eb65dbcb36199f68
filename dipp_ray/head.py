"""The head of a Ray cluster, watched: where it is lost a person is told how to go on, before Ray ends the program."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROBE_S, ANSWER_S = 1.0, 2.0
SAY_AFTER_S, SAY_EVERY_S = 5.0, 10.0
# Seconds, after which its library ends the process with a line of its own.
RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
BEFORE_RAY = 5 / 6  # of Ray's patience


def patience_s() -> float:
    """Seconds without the head after which a run is given up: a bit less than Ray waits for one to come back."""
    return BEFORE_RAY * float(os.environ.get(RAYS_PATIENCE) or 60)


@contextmanager
def watched_head(
    say: Callable[[str], None],
    goes_on: str,
    address: str | None = None,
    patience: float | None = None,
    end: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """Within, a head (its GCS, at `host:port`; None: of the connected Ray) that no longer answers is said, and when
    that lasts too long the process ends with status 1 and one sentence, which says `goes_on`. Where a signal comes
    meanwhile that is to end the process, SAY_AFTER_S are long enough.

    Nothing is tidied up then: all that Ray would be asked for goes through the head.
    """
    if address is None:
        import ray

        address = ray.get_runtime_context().gcs_address
    done = threading.Event()
    with _signals() as asked:
        watch = threading.Thread(
            target=_watch,
            args=(address, patience or patience_s(), say, goes_on, end, done, asked),
            daemon=True,
            name="head",
        )
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Within, whether a signal came that is to end the process: also one that its main thread, which waits for Ray and
    for nothing else, has not looked at yet. Python hands signals to no other thread than a program's first."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def asked() -> bool:
        try:
            return any(number in ENDING for number in receiver.recv(4096))
        except BlockingIOError:
            return False

    try:
        yield asked
    finally:
        try:
            signal.set_wakeup_fd(before)
        except (OSError, ValueError):  # whose it was has closed it
            signal.set_wakeup_fd(-1)
        receiver.close()
        sender.close()


def _watch(
    address: str,
    patience: float,
    say: Callable[[str], None],
    goes_on: str,
    end: Callable[[int], None],
    done: threading.Event,
    asked: Callable[[], bool],
) -> None:
    seen = time.monotonic()
    next_said = SAY_AFTER_S
    interrupted = False
    while not done.wait(PROBE_S):
        interrupted = asked() or interrupted
        if _answers(address):  # what a signal asked for is then the program's own affair, and may take its time
            seen, next_said, interrupted = time.monotonic(), SAY_AFTER_S, False
            continue
        lost_s = time.monotonic() - seen
        if lost_s >= (min(SAY_AFTER_S, patience) if interrupted else patience):
            rich.get_console().show_cursor(True)  # a live line may have hidden it
            sys.stdout.flush()
            print(
                f"dipp-ray: the head of the Ray cluster ({address}) has not answered for {lost_s:.0f} s: it was "
                f"killed, or its machine is lost; {goes_on}",
                file=sys.stderr,
                flush=True,
            )
            return end(1)
        if lost_s >= next_said:
            next_said = lost_s + SAY_EVERY_S
            say(f"waiting for the head of the Ray cluster ({address}), {lost_s:.0f} s so far")


def _answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            return True
    except (OSError, ValueError):
        return False
