"""The folder of an unfinished fit, `.OUT.fit` beside its out folder:

configuration.json  lock  train/  held_out/     what is fitted, and the pairs at the model's size
ray/session_000/checkpoint_*/                   Ray Train's checkpoints, one session for each start of the driver
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dipp_ray.preferences.config import FitConfig
from dipp_ray.preferences.dataset import store_pairs
from dipp_ray.preferences.identity import refuse_other, trajectory
from dipp_ray.preferences.listener import Say
from dipp_ray.preferences.reading import Labels
from dipp_ray.preferences.state import latest_state
from dipp_ray.reporting.pace import Ticker
from dipp_ray.storage.aside import made_folder, whole_file
from dipp_ray.storage.locks import alone

CONFIGURATION = "configuration.json"


class WorkFolder:
    """configuration: the hash by which a fit knows its folder."""

    def __init__(self, config: FitConfig, configuration: str):
        self.config, self.configuration = config, configuration
        self.path = config.work_folder
        self.sessions = self.path / "ray"

    @contextmanager
    def held(self) -> Iterator[None]:
        """This fit's alone while the block runs: what another configuration left is gone.

        Raises UserError where another driver holds it, or where a checkpoint of another configuration would be lost.
        """
        made_folder(self.path, "choose another `out`")
        with alone(
            self.path / "lock", f"another program is fitting in {self.path}: wait for it, or choose another `out`"
        ):
            self._take_over()
            yield

    def _take_over(self) -> None:
        note = self.path / CONFIGURATION
        try:
            found = json.loads(note.read_text())
        except (OSError, ValueError):
            found = {}
        if found.get("configuration") == self.configuration:
            return
        if self.latest():
            refuse_other(self.config, found.get("settings", {}), self.path, "an unfinished fit")
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        with whole_file(note) as aside:
            aside.write_text(json.dumps({"configuration": self.configuration, "settings": trajectory(self.config)}))

    def decode(self, name: str, labels: Labels, rows: list[int], size: int, say: Say) -> None:
        """Bring these rows of the pairs to size x size, once; `name`: train or held_out."""
        if not (self.path / name).is_dir():
            ticker = Ticker(say, f"decoding {name.replace('_', '-')} pairs", len(rows))
            store_pairs(self.path / name, labels, rows, self.config.columns, size, ticker.tick)

    def latest(self) -> tuple[Path, dict] | None:
        """The folder of the newest whole checkpoint, and its JSON; or None."""
        return latest_state(self.sessions)

    def next_session(self, resume: Path | None) -> Path:
        """The folder of a new session. Those before go, but for the one in which `resume` lies."""
        before = sorted(self.sessions.glob("session_*"))
        for session in before:
            if resume is None or not resume.is_relative_to(session):
                shutil.rmtree(session)
        number = int(before[-1].name.removeprefix("session_")) + 1 if before else 0
        return self.sessions / f"session_{number:03d}"

    def forget(self) -> None:
        """Drop all checkpoints."""
        shutil.rmtree(self.sessions)
