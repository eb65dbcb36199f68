"""What makes one run of a tracker's out of a run that was resumed: its id, kept in the run's folder."""

from pathlib import Path

import yaml

from dipp_ray.storage.aside import whole_file


def id_of(folder: Path, name: str, first_step: int | None) -> str | None:
    """The id that the tracker `name` gave this run; None where it does not know it, or the run begins anew."""
    path = _file(folder, name)
    return path.read_text().strip() or None if first_step != 0 and path.is_file() else None


def keep_id(folder: Path, name: str, number: str) -> None:
    with whole_file(_file(folder, name)) as aside:
        aside.write_text(number + "\n")


def configuration_of(folder: Path) -> dict:
    """The settings that the run's folder holds; {} without them."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text()) or {} if path.is_file() else {}


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.id"
