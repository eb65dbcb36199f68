"""What a person means by a folder: a run's, or a pipeline's."""

from pathlib import Path

from dipp_ray.errors import UserError


def run_of(folder: Path) -> Path | None:
    """The run's folder that `folder` is, or whose pipeline/ it is."""
    candidates = (Path(folder), Path(folder).resolve().parent)
    return next((path for path in candidates if (path / "config.yaml").is_file()), None)


def pipeline_of(folder: Path) -> Path:
    """The pipeline folder that is meant: that of a run, or the folder itself."""
    if not (folder / "config.yaml").is_file():
        return folder
    if not (folder / "pipeline").is_dir():
        raise UserError(f"the run {folder} has no pipeline/ yet: finish it, or export one of its checkpoints")
    return folder / "pipeline"
