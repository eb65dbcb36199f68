"""What defines a run's trajectory, as data: a checkpoint holds it, and is resumed only by a run that has the same.

Group sizes, placement, ZeRO stage, logging and storage are no part of it, nor is the number of steps, so that a
finished run can be made longer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dipp_ray.config import RunConfig
from dipp_ray.storage.hashing import hash_of_json
from dipp_ray.training.contents import contents_of, moved

LEFT_OUT_OF_REWARD = ("app", "away_s", "checkpoint_decoder", "deadline_s", "replicas", "token", "urls", "vae")
ELSEWHERE: dict[str, Any] = {
    "run": {"name", "folder", "steps"},
    "roles": True,
    "checkpoint": True,
    "log": True,
    "evaluation": True,
    "reward": dict.fromkeys(LEFT_OUT_OF_REWARD, True) | {"terms": {"__all__": {"server": {"url", "deadline_s"}}}},
}
# Settings that name what can be moved, or hold such names.
MOVABLE = {
    "model.teacher", "model.generator", "init.score_checkpoint", "data.prompts", "data.embeddings", "reward.terms"
}  # fmt: skip
ROLES_WITH_DTYPE = ("generator", "score", "teacher", "reward", "text")

# The keys of the trajectory when checkpoints held its hash alone.
FORMAT_1 = {
    "run": "seed deterministic",
    "model": "teacher generator input t_star",
    "init": "score score_checkpoint score_warmup_steps",
    "data": "prompts column batch_size micro_batches",
    "objective": "reward_scale guidance_scale weight divisor divisor_floor reduction score_updates score_weight "
    "score_timesteps divergence_timesteps order",
    "generator_optim": "lr betas eps weight_decay grad_clip warmup_steps",
    "score_optim": "lr betas eps weight_decay grad_clip warmup_steps",
    "ema": "decay",
    "reward": "terms wire_dtype standardise standardise_samples on_nonfinite",
    "dtype": "generator score teacher reward text",
}
TERM_OF_FORMAT_1 = "name weight held_out mean deviation hinge cap required model folder"


def trajectory(config: RunConfig) -> dict[str, Any]:
    """The settings that define the trajectory, nested as in the configuration, and each role's precision."""
    dtypes = {name: getattr(config.roles, name).dtype for name in ROLES_WITH_DTYPE}
    settings = config.model_dump(mode="json", exclude=ELSEWHERE) | {"dtype": dtypes}
    # A run's is always settled: null is of checkpoints from before the setting, when there was nothing else.
    settings["model"]["prediction"] = settings["model"]["prediction"] or "teacher"
    return settings


def trajectory_hash(config: RunConfig, absolute: bool = False) -> str:
    """The hash by which alone checkpoints of format 1 know their run: SHA-256 of the settings that there were then,
    or, where a younger one has not its default, of all. Paths below the current folder are as they were written then,
    from here; absolute: as a run of another folder, or whoever wrote them out, had them."""
    settings = trajectory(config)
    old = _of_format_1(settings)
    hashed = old if _completed(old) == settings else settings
    return hash_of_json(hashed if absolute else _from_here(hashed))


def _from_here(settings: Any) -> Any:
    """The settings with the paths below the current folder relative to it."""
    match settings:
        case dict():
            return {key: _from_here(value) for key, value in settings.items()}
        case list():
            return [_from_here(value) for value in settings]
        case str():
            return settings.removeprefix(f"{Path.cwd()}/")
        case _:
            return settings


def difference(record: Mapping, config: RunConfig) -> str | None:
    """The first setting in which the run that wrote a checkpoint's `record` differs from this one, such as
    'objective.guidance_scale was 1.5 and is 3.0'; None where none does.

    A setting that did not exist when the checkpoint was written had its default. A model, a prompt file or a reward
    that lies elsewhere now is the same where the same lies there.
    """
    before, now = record.get("trajectory"), trajectory(config)
    if before is None:
        same = record.get("trajectory_hash") in (trajectory_hash(config), trajectory_hash(config, absolute=True))
        return None if same else "it was written under other settings (an old format, which does not say which)"
    settings = _completed(before)
    differing = _differing(settings, now)
    differing = [one for one in differing if one[0] not in MOVABLE] or differing
    if differing and settings is not before and differing[0][0] in MOVABLE:
        contents = contents_of(settings) | _recorded_contents(record)
        differing = _differing(moved(settings, contents, now, contents_of(now)), now)
    return next((f"{key} was {_shown(was)} and is {_shown(value)}" for key, was, value in differing), None)


def _recorded_contents(record: Mapping) -> dict[str, str]:
    """What a record holds of contents; what is no hash in it excuses nothing."""
    found = record.get("contents")
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, Mapping) else {}


def _differing(before: Mapping, now: Mapping) -> list[tuple[str, Any, Any]]:
    """(key, what it was, what it is) of the settings that differ."""
    old, new = _flat(before), _flat(now)
    return [(key, old.get(key), new.get(key)) for key in {**new, **old} if old.get(key) != new.get(key)]


def _completed(before: Mapping) -> Mapping:
    """The settings with the defaults of those that are younger than they, and paths from here made absolute."""
    try:
        settings = {key: value for key, value in before.items() if key != "dtype"}
        roles = {name: {"dtype": dtype} for name, dtype in before.get("dtype", {}).items()}
        # What a run needs and a trajectory leaves out: a number of steps, and where its rewards come from.
        reward = {**settings["reward"], "app": "left out", "terms": _with_urls(settings["reward"].get("terms", []))}
        completed = {"run": {**settings["run"], "steps": 1}, "reward": reward}
        return trajectory(RunConfig.model_validate({**settings, **completed, "roles": roles}))
    except (ValidationError, KeyError, TypeError, AttributeError):
        return before  # of a version that had other settings: what differs is named as it stands


def _with_urls(terms: Sequence[Mapping]) -> list[Mapping]:
    """The terms, with an address for each server that has none."""
    return [
        {**term, "server": {"url": "http://left.out", **term["server"]}} if term.get("server") else term
        for term in terms
    ]


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


def _of_format_1(settings: Mapping) -> dict[str, Any]:
    kept: dict[str, Any] = {name: _only(settings[name], keys) for name, keys in FORMAT_1.items()}
    kept["reward"]["terms"] = [_only(term, TERM_OF_FORMAT_1) for term in kept["reward"]["terms"]]
    return kept


def _only(settings: Mapping, keys: str) -> dict[str, Any]:
    return {key: settings[key] for key in keys.split()}
