"""What names and small files alone say of a run's settings: the first of its checks, which answers at once.

Neither torch nor the libraries of models are loaded for it; `checks.check` begins with it and loads them then.
"""

from pathlib import Path

from dipp_ray.config import RunConfig
from dipp_ray.data.prompt_files import open_texts
from dipp_ray.errors import UserError
from dipp_ray.evaluation.folders import is_path
from dipp_ray.models.json_files import index_of
from dipp_ray.rewards.loading import require_named


def first_look(config: RunConfig) -> None:
    """Raise UserError where something that is named is not there, or is plainly something else."""
    model, data, start = config.model, config.data, config.init.score_checkpoint
    if is_path(model.teacher):
        index_of(Path(model.teacher))
    if model.generator and is_path(model.generator, within=True) and not Path(model.generator).exists():
        index_of(Path(model.generator))  # which says so
    for term in config.reward.terms if not config.reward.shared else ():  # a shared service has loaded its own
        require_named(term)
    if start and "://" not in start and not Path(start).is_dir():
        raise UserError(no_checkpoint(start))
    if config.evaluation.prompts is not None:  # what is read after training is looked at before it
        open_texts(config.evaluation.prompts, data.column, "evaluation.prompts")
    if data.embeddings is None:  # or they say themselves what they are of
        open_texts(data.prompts, data.column, "data.prompts")


def no_checkpoint(given: str) -> str:
    """The sentence about an init.score_checkpoint that holds none."""
    return f"init.score_checkpoint: {given} holds no committed checkpoint: give the folder of a finished run"
