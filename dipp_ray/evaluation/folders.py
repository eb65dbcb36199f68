"""What a person means by a folder: a run's, or a pipeline's, which may be a hub's id."""

from pathlib import Path

from dipp_ray.errors import UserError


def run_of(folder: str | Path) -> Path | None:
    """The run's folder that `folder` is, or whose pipeline/ it is."""
    candidates = (Path(folder), Path(folder).resolve().parent)
    return next((path for path in candidates if (path / "config.yaml").is_file()), None)


def pipeline_of(folder: str | Path) -> str | Path:
    """The pipeline that is meant: that of a run's folder, or what is given itself."""
    run = Path(folder)
    if not (run / "config.yaml").is_file():
        return folder
    if not (run / "pipeline").is_dir():
        raise UserError(f"the run {folder} has no pipeline/ yet: finish it, or export one of its checkpoints")
    return run / "pipeline"
