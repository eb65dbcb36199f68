"""A wait that a person sees: what for, how long so far, and an end to it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.live import Live
from rich.text import Text

from dipp_ray.errors import UserError
from dipp_ray.reporting.progress import duration, on_terminal

QUIET = 1.0  # a wait shorter than this is not shown, seconds
PLAIN_EVERY = 10.0  # time between two plain lines of one wait, seconds


@contextmanager
def waiting(what: str, limit_s: float | None = None) -> Iterator[Callable[[str], None]]:
    """Show 'waiting for `what`, 12 s so far (detail)' while the block runs; yields the function that sets the detail.

    with waiting("4 GPUs", limit_s=600) as detail:
        while not ready():
            detail("the cluster has 2")
            time.sleep(0.5)

    The line keeps counting while the block is blocked. Calling the function past `limit_s` seconds raises UserError.
    """
    began = time.monotonic()
    state = {"detail": ""}
    finished = threading.Event()

    def line() -> str:
        text = f"waiting for {what}, {duration(time.monotonic() - began)} so far"
        return f"{text} ({state['detail']})" if state["detail"] else text

    def set_detail(detail: str = "") -> None:
        state["detail"] = detail
        waited = time.monotonic() - began
        if limit_s is not None and waited > limit_s:
            raise UserError(
                f"gave up after {duration(waited)} of waiting for {what}" + (f": {detail}" if detail else "")
            )

    def show() -> None:
        if finished.wait(QUIET):
            return
        if not on_terminal():
            print(line(), flush=True)
            while not finished.wait(PLAIN_EVERY):
                print(line(), flush=True)
            return
        console = rich.get_console()
        with Live(get_renderable=lambda: Text(line(), "dim"), console=console, refresh_per_second=2, transient=True):
            finished.wait()

    thread = threading.Thread(target=show, daemon=True, name="waiting")
    thread.start()
    try:
        yield set_detail
    finally:
        finished.set()
        thread.join()
