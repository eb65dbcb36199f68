"""What happened to a run beside its steps: faults, recoveries, moves. One JSON object a line in events.jsonl."""

import json
import time
from pathlib import Path

FILE = "events.jsonl"


def record_event(folder: Path, event: str, step: int, reason: str, **figures: float) -> None:
    """Append one event. It never ends the run: a folder that cannot be written is seen by who writes its metrics."""
    record = {"time": round(time.time(), 3), "event": event, "step": step, "reason": reason, **figures}
    try:
        with (Path(folder) / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError:
        pass


def read_events(folder: Path) -> list[dict]:
    """All whole events in order; [] without the file."""
    path = Path(folder) / FILE
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    return [json.loads(line) for line in whole]
