"""The signals of a service in the foreground."""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager

from dipp_ray.head import ENDING


def ending() -> list[int]:
    """The signals that end the program: not those that were ignored when it was started, as `nohup` does."""
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def ending_by_exception():
    """What would end the process at once raises KeyboardInterrupt instead, so that nothing is left behind."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    too_early_or_late = {signal.SIGUSR1: lambda *_: None}  # to read anew, and by itself it would end the process
    with _handling(dict.fromkeys(ending(), interrupt) | too_early_or_late):
        yield


def until_ended(reload: Callable[[], None], finish: Callable[[], None]) -> None:
    """Call `reload` at every SIGUSR1, and `finish` when a signal ends the service. Another one ends that too, at once,
    by KeyboardInterrupt."""
    wake, ended, asked = threading.Event(), threading.Event(), threading.Event()

    def handler(number, frame):
        if number in ENDING and ended.is_set():
            raise KeyboardInterrupt
        (asked if number == signal.SIGUSR1 else ended).set()
        wake.set()

    with _handling(dict.fromkeys((*ending(), signal.SIGUSR1), handler)):
        while not ended.is_set():
            wake.wait()
            wake.clear()
            if asked.is_set():
                asked.clear()
                reload()
        finish()


@contextmanager
def _handling(handlers: dict[int, Callable]):
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
