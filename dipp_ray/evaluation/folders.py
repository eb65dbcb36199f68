"""What a person means by a folder: a run's, or a pipeline's, which may be a hub's id or lie in a store."""

from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.hub.revisions import named_here
from dipp_ray.models.json_files import index_of
from dipp_ray.storage.cache import is_remote
from dipp_ray.storage.mirror import Mirror
from dipp_ray.storage.remote import asked, file_system

CHECKPOINTS = ("checkpoints",)  # of a run in a store, they are read where they lie


def home_of(folder: str | Path) -> str | None:
    """The path or URL of the run that `folder` is, or whose pipeline/ it is."""
    given = str(folder).rstrip("/")
    if is_remote(given):
        with asked(given):
            fs, path = file_system(given)
            found = [up for up in (0, 1) if fs.exists(f"{path.rsplit('/', up)[0]}/config.yaml")]
        return given.rsplit("/", found[0])[0] if found else None
    candidates = (Path(folder), Path(folder).resolve().parent)
    return next((str(path) for path in candidates if (path / "config.yaml").is_file()), None)


def run_in_store(folder: str | Path) -> Mirror | None:
    """The run that `folder` names, where it lies in a store."""
    return Mirror(str(folder), without=CHECKPOINTS) if is_remote(str(folder)) else None


def run_of(folder: str | Path) -> Path | None:
    """The run's folder that `folder` is, or whose pipeline/ it is; of one in a store, this machine's copy."""
    home = home_of(folder)
    if home is None:
        return None
    remote = run_in_store(home)
    return remote.fetch() if remote else Path(home)


def recorded_here(folder: str | Path) -> Path | None:
    """The configuration of the run that `folder` is of, where it lies on this machine's disk."""
    home = None if is_remote(str(folder)) else home_of(folder)
    return Path(home, "config.yaml") if home else None


def pipeline_of(folder: str | Path) -> str | Path:
    """The pipeline that is meant: that of a run's folder, or what is given itself."""
    if is_remote(str(folder)):
        home = home_of(folder)
        if home != str(folder).rstrip("/"):
            return folder
        run = Mirror(home, without=CHECKPOINTS).fetch()
    else:
        run = Path(folder)
    if not (run / "config.yaml").is_file():
        return folder
    if not (run / "pipeline").is_dir():
        raise UserError(f"the run {folder} has no pipeline/ yet: finish it, or export one of its checkpoints")
    return run / "pipeline"


def require_pipeline(folder: str | Path) -> None:
    """Raise UserError where that which is meant lies on this machine's disk, and is no pipeline: the hub and stores are
    asked later. No library of models is loaded for it."""
    pipeline = folder if is_remote(str(folder)) else pipeline_of(folder)
    if is_path(str(pipeline)):
        index_of(Path(pipeline))


def is_path(given: str, within: bool = False) -> bool:
    """Whether it is of this machine's disk, and not of the hub or a store. within: it may be a part of a repository."""
    return not is_remote(given) and named_here(given, within) is None
