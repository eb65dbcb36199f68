"""`dipp-ray fit-reward`: what a person sees of a fit."""

from collections.abc import Callable
from contextlib import ExitStack

import rich

from dipp_ray.preferences.calibration import tables
from dipp_ray.preferences.config import FitConfig
from dipp_ray.preferences.fit import prepared
from dipp_ray.reporting.progress import ProgressLine, duration
from dipp_ray.reporting.waiting import waiting

SHOWN = (("accuracy", "held_out/accuracy"), ("log_loss", "held_out/log loss"))


def fit_command(config: FitConfig, connect: Callable[[], None]) -> None:
    """Fit, and print the figures. `connect` joins Ray, once all input is known good."""
    with prepared(config, print) as fit:
        record = fit.record
        if record is not None:
            print(f"{config.out} holds this fit already: nothing to do (remove it to fit anew)")
        else:
            train, held_out = fit.counts
            print(f"{train:,} pairs to fit, {held_out:,} held out; {config.fit.steps:,} updates")
            connect()
            with Shown(config.fit.steps) as shown:
                record = fit.run(shown)
            print(f"fitted in {duration(record['seconds'])}")
    for table in tables(record):
        rich.print(table)
    print(f"{config.out}: a reward term {{model: pickscore, folder: {config.out}}}")


class Shown:
    """A wait until the workers' first word, then a line of progress."""

    def __init__(self, steps: int):
        self.steps = steps
        self.stack = ExitStack()
        self.line: ProgressLine | None = None

    def __enter__(self) -> "Shown":
        self.stack.enter_context(waiting("the workers to start"))
        return self

    def __exit__(self, *exception) -> None:
        self.stack.close()

    def __call__(self, step: int, message: dict) -> None:
        if self.line is None:
            self.stack.close()  # two live lines at once would write over each other
            self.line = self.stack.enter_context(ProgressLine(self.steps, step, "fit"))
        values = {name: message[key] for key, name in SHOWN if message.get(key) is not None}
        if "pairs_per_second" in message:
            values["images_per_second"] = 2 * message["pairs_per_second"]
        self.line.update(step, values)
