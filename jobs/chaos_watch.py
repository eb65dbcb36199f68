"""What a thread beside a run of this process sees of it: its phases by the executor's stamps, and what it says when."""

import re
import threading
import time

import ray

from dipp_ray.training import train as training


class Watched:
    """While entered, the run that is trained here is `run`, and `told` is what it said, each text after its time in
    seconds since the epoch. `watch` runs in a thread of its own; what it raises is `fault`.
    """

    def __init__(self):
        self.run = None
        self.told: list[tuple[float, str]] = []
        self.fault: BaseException | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def watch(self) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        try:
            self.watch()
        except BaseException as error:
            self.fault = error

    def __enter__(self):
        outer, self.plain = self, (training.Run, training.ProgressLine)

        class Seen(training.Run):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                outer.run = self

        class Telling(training.ProgressLine):
            def say(self, text: str) -> None:
                outer.told.append((time.time(), text))
                super().say(text)

        training.Run, training.ProgressLine = Seen, Telling
        self.thread.start()
        return self

    def __exit__(self, *exception):
        training.Run, training.ProgressLine = self.plain
        self.ended.set()
        self.thread.join()

    def until(self, there, seconds: float, every: float = 0.01):
        """What `there()` gives as soon as it is true; None where the run ends before, or the time is over."""
        over = time.monotonic() + seconds
        while not self.ended.is_set() and time.monotonic() < over:
            if found := there():
                return found
            time.sleep(every)
        return None

    # -- the run -------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """Steps that have been finished so far, done again or not."""
        return self.run.sessions.attempts.furthest if self.run else -1

    @property
    def recovering(self) -> bool:
        return self.run.sessions.broke is not None

    def under_way(self, phase: str, step: int) -> int | None:
        """The step, from `step` on, of which a task of the phase is at its actor now; None where there is none.

        upload: shares of a checkpoint are being written, beside whatever else is under way.
        """
        if phase == "upload":
            begun = self.run.saver.begun if self.run else None
            return begun.step if begun and begun.step >= step else None
        try:
            listed = list(self.run.controller.executor.listed.values())
        except (AttributeError, AssertionError, RuntimeError):  # no session is open, or the list changed meanwhile
            return None
        for entry in listed:
            key = entry.task.key
            at = key.step if key.step >= 0 else self.done
            if key.action == phase and entry.answer and entry.could_begin is not None and at >= step:
                return at
        return None

    def said(self, words: str, since: float) -> float | None:
        """When it first said something that begins so, after `since`."""
        return next((when for when, text in self.told if when >= since and text.startswith(words)), None)

    # -- the cluster ---------------------------------------------------------------------------------------------------

    def actors(self, kind: str = "") -> list[dict]:
        """Living actors whose class and name begin so (a regular expression), as Ray's table has them."""
        table = ray._private.state.actors().values()
        found = [a for a in table if a["State"] == "ALIVE" and re.match(kind, f"{a['ActorClassName']}:{a['Name']}")]
        return sorted(found, key=lambda actor: actor["ActorID"])

    def ranks(self) -> dict[str, str]:
        """The ranks of the session in hand: role by the actor's id."""
        names = self.run.controller.actors.names
        return {actor: role for actor, (role, _) in names.items() if role in ("generator", "score")}
