"""Which fit a folder holds: two configurations are the same when the same weights and figures come out."""

from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.preferences.config import FitConfig
from dipp_ray.preferences.dataset import digest
from dipp_ray.preferences.reading import Labels
from dipp_ray.rewards.clip import clip_files
from dipp_ray.storage.hashing import hash_of_file, hash_of_json


def configuration_hash(config: FitConfig, parts: list[Labels]) -> str:
    """SHA-256 of the base's files, of the pairs (their prompts, labels and sizes) and of the settings of the fit.

    Workers, checkpoints, and where things lie may change.
    """
    body = {"settings": trajectory(config), "pairs": digest(parts), "base": base_digest(config.base)}
    return hash_of_json(body)


def trajectory(config: FitConfig) -> dict:
    """The settings that the result depends on, apart from the files' contents."""
    share = {} if config.held_out else {"held_out_share": config.held_out_share}
    columns = {f"columns.{key}": name for key, name in config.columns.model_dump().items()}
    return config.fit.model_dump(mode="json") | columns | share


def base_digest(folder: str) -> str:
    """SHA-256 of the weights and of the small files beside them."""
    paths = [path for end in ("safetensors", "json", "txt") for path in clip_files(folder).glob(f"*.{end}")]
    return hash_of_json({path.name: hash_of_file(path) for path in paths})


def refuse_other(config: FitConfig, theirs: dict, where: Path, what: str) -> None:
    """Raise UserError: `where` holds a fit of other settings, `theirs`, and `replace` is not set."""
    if config.replace:
        return
    ours = trajectory(config)
    changed = [f"{key} is {theirs.get(key)} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]]
    why = ", ".join(changed[:3]) or "its base or its pairs are others"
    raise UserError(f"{where} holds {what} of another configuration ({why}): choose another `out`, or set replace=true")
