"""A run's models of the hub, each at one commit: on every node, and as long as the run is resumed."""

from collections.abc import Mapping
from contextlib import suppress

import yaml

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.hub.revisions import named_here, pinned


def pinned_run(config: RunConfig) -> RunConfig:
    """The configuration with every hub id at a commit; without such ids, or with them at commits, the same.

    An id without a revision takes the commit that this run has recorded, and nobody is asked; where it has recorded
    none, its branch's commit now. Raises UserError where the hub does not know it, or cannot be asked.
    """
    model, reward = config.model, config.reward
    terms = [] if reward.shared else reward.terms  # a shared service has its own folders
    if not any(map(_is_open, [model.teacher, model.generator, *(term.folder for term in terms)])):
        return config
    before = _recorded(config)
    folders = {term["name"]: term.get("folder") for term in before.get("reward", {}).get("terms", [])}
    models = before.get("model", {})
    generator = model.generator and pinned(model.generator, models.get("generator"), within=True)
    model = model.model_copy(update={"teacher": pinned(model.teacher, models.get("teacher")), "generator": generator})
    if terms:
        of_terms = [term.folder and pinned(term.folder, folders.get(term.name)) for term in terms]
        now = [term.model_copy(update={"folder": folder}) for term, folder in zip(terms, of_terms, strict=True)]
        reward = reward.model_copy(update={"terms": now})
    return config.model_copy(update={"model": model, "reward": reward})


def _is_open(given: str | None) -> bool:
    """Whether a setting is a hub id whose revision may move."""
    named = None if given is None else named_here(given, within=True)
    return named is not None and named.commit is None


def _recorded(config: RunConfig) -> Mapping:
    """The settings that the run was started with: of its newest checkpoint, or of its folder."""
    from dipp_ray.checkpoints.store import CheckpointStore  # with torch: only a run by the hub needs it here

    with suppress(UserError):  # damaged ones: said when the run is resumed
        checkpoint = CheckpointStore(config.checkpoints, lambda _: None).latest()
        if checkpoint is not None and "trajectory" in checkpoint.record:
            return checkpoint.record["trajectory"]
    path = config.path / "config.yaml"
    with suppress(OSError, yaml.YAMLError):
        settings = yaml.safe_load(path.read_text())
        return settings if isinstance(settings, dict) else {}
    return {}
