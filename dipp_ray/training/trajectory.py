"""What defines a run's trajectory, as data: a checkpoint holds it, and is resumed only by a run that has the same.

Group sizes, placement, ZeRO stage, logging and storage are no part of it, nor is the number of steps, so that a
finished run can be made longer.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from dipp_ray.config import RunConfig

ELSEWHERE = {
    "run": {"name", "folder", "steps"},
    "roles": True,
    "checkpoint": True,
    "log": True,
    "evaluation": True,
    "reward": {"deadline_s", "replicas", "app", "urls", "token"},
}
# Settings that are younger than format 1, whose hash leaves them out where they hold their default.
YOUNGER = {"model": ("family", "resolution", "embedded_guidance")}
ROLES_WITH_DTYPE = ("generator", "score", "teacher", "reward", "text")


def trajectory(config: RunConfig) -> dict[str, Any]:
    """The settings that define the trajectory, nested as in the configuration, and each role's precision."""
    dtypes = {name: getattr(config.roles, name).dtype for name in ROLES_WITH_DTYPE}
    return config.model_dump(mode="json", exclude=ELSEWHERE) | {"dtype": dtypes}


def trajectory_hash(config: RunConfig) -> str:
    """SHA-256 of the trajectory's settings: by it alone checkpoints of format 1 know their run."""
    settings = trajectory(config)
    for section, keys in YOUNGER.items():
        fields = type(getattr(config, section)).model_fields
        for key in keys:
            if settings[section][key] == fields[key].default:
                del settings[section][key]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def difference(record: Mapping, config: RunConfig) -> str | None:
    """The first setting in which the run that wrote a checkpoint's `record` differs from this one, such as
    'objective.guidance_scale was 1.5 and is 3.0'; None where none does.

    A setting that did not exist when the checkpoint was written had its default.
    """
    before, now = record.get("trajectory"), trajectory(config)
    if before is None:
        same = record.get("trajectory_hash") == trajectory_hash(config)
        return None if same else "it was written under other settings (an old format, which does not say which)"
    old, new = _flat(_completed(before)), _flat(now)
    for key in {**new, **old}:
        if old.get(key) != new.get(key):
            return f"{key} was {_shown(old.get(key))} and is {_shown(new.get(key))}"
    return None


def _completed(before: Mapping) -> Mapping:
    """The settings with the defaults of those that are younger than they."""
    settings = {key: value for key, value in before.items() if key != "dtype"}
    roles = {name: {"dtype": dtype} for name, dtype in before.get("dtype", {}).items()}
    try:
        return trajectory(
            RunConfig.model_validate({**settings, "run": {**settings["run"], "steps": 1}, "roles": roles})
        )
    except (ValidationError, KeyError, TypeError):
        return before  # of a version that had other settings: what differs is named as it stands


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {prefix: settings}
    return dict(_items(settings, prefix))


def _items(settings: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
