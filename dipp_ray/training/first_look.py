"""What names and small files alone say of a run's settings: the first of its checks, which answers at once.

Neither torch nor the libraries of models are loaded for it; `checks.check` begins with it and loads them then.
"""

from pathlib import Path

from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts, read_prompts
from dipp_ray.errors import UserError
from dipp_ray.hub.revisions import named_here
from dipp_ray.models.folder_json import index_of
from dipp_ray.rewards.loading import require_named


def first_look(config: RunConfig) -> Prompts:
    """The prompts, after what is named was found to be there. Raises UserError otherwise."""
    model, start = config.model, config.init.score_checkpoint
    if named_here(model.teacher) is None:
        index_of(Path(model.teacher))
    if model.generator and named_here(model.generator, within=True) is None and not Path(model.generator).exists():
        index_of(Path(model.generator))  # which says so
    for term in config.reward.terms if not config.reward.shared else ():  # a shared service has loaded its own
        require_named(term)
    if start and "://" not in start and not Path(start).is_dir():
        raise UserError(no_checkpoint(start))
    if config.evaluation.prompts is not None:  # what is read after training is looked at before it
        read_prompts(config.evaluation.prompts, config.data.column, "evaluation.prompts")
    return read_prompts(config.data.prompts, config.data.column)


def no_checkpoint(given: str) -> str:
    """The sentence about an init.score_checkpoint that holds none."""
    return f"init.score_checkpoint: {given} holds no committed checkpoint: give the folder of a finished run"
