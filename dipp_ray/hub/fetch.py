"""Where the files of a model lie on this machine: in a folder, or in the hub's cache, filled where it lacks them."""

import glob
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Event, Thread

from dipp_ray.errors import UserError
from dipp_ray.hub.ids import HubId
from dipp_ray.hub.revisions import at_commit, named_here, require_answer
from dipp_ray.hub.selection import INDEX, Choice, configurations, whole
from dipp_ray.hub.sentences import Unreachable, in_one_sentence
from dipp_ray.reporting.waiting import waiting
from dipp_ray.storage.cache import is_remote
from dipp_ray.storage.mirror import fetched

# Libraries whose classes a pipeline may name; any other is a file of the repository's own code.
TOLD_EVERY_S = 0.5
KNOWN_LIBRARIES = ("diffusers", "transformers", None)


def local(given: str | Path, choice: Choice = whole, within: bool = False) -> Path:
    """The path of what a person wrote: one that exists here, a hub id's folder or file in the hub's cache, or this
    machine's copy of what lies in a store.

    Of a repository the files of `choice` are there then: those that lack are fetched, at the id's commit, or at that
    of its branch. within: whether a file or folder of a repository may be named.
    What is neither comes back as a path that does not exist, for the caller to say what it wants there.
    Raises UserError where the hub has no such thing or gives it to nobody without a token, where there is neither hub
    nor cache, and for a pipeline that would have its own code run.
    """
    if is_remote(str(given)):
        return _of_store(str(given))
    named = named_here(given, within)
    return Path(given) if named is None else _fetched(at_commit(named), choice)


@cache
def _of_store(url: str) -> Path:
    """Fetched once a process, which then goes on with what it has."""
    return fetched(url)


def _fetched(named: HubId, choice: Choice) -> Path:
    snapshot, names = _snapshot(named), _names(named)
    _present(named, _of_the_whole(named.inner, names))
    if named.inner in names:
        return _present(named, [named.inner]) / named.inner
    start = f"{named.inner}/" if named.inner else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    if not inside:
        raise UserError(f"{named}: the repository {named.repo} holds no {named.inner}: correct the name")
    index = None
    if INDEX in inside:
        index = _index(named, _present(named, [start + INDEX]) / (start + INDEX))
        _refuse_code(named, index, inside)
    _present(named, [start + name for name in choice(inside, index)])
    return snapshot / named.inner


def _of_the_whole(inner: str, names: Collection[str]) -> list[str]:
    """The small files of the pipeline that a file or folder within it is part of: an export says there how its network
    is read."""
    for above in PurePosixPath(inner).parents if inner else ():
        start = "" if above == PurePosixPath() else f"{above}/"
        if start + INDEX in names:
            beside = [name.removeprefix(start) for name in names if name.startswith(start)]
            return [start + name for name in configurations(beside, None)]
    return []


def _index(named: HubId, path: Path) -> Mapping:
    try:
        index = json.loads(path.read_text())
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise UserError(f"{named}: its {INDEX} holds no JSON object: take another repository")
    return index


def _refuse_code(named: HubId, index: Mapping, names: Collection[str]) -> None:
    """Raise UserError where a pipeline's class, or a component's, is code of the repository's own."""
    components = {name: entry for name, entry in index.items() if isinstance(entry, list) and name[:1] != "_"}
    own = [name for name, entry in components.items() if entry and entry[0] not in KNOWN_LIBRARIES]
    own = [name for name in own if f"{name}/{components[name][0]}.py" in names]
    if isinstance(index.get("_class_name"), list) or own:
        raise UserError(
            f"{named} wants Python files of its own to be run ({', '.join(own) or 'its pipeline'}), and code of a "
            "model is never run here: take a repository of diffusers' own classes"
        )


def _names(named: HubId) -> list[str]:
    """The names of all files of a repository at its commit: as the cache knows them, or asked of the hub.

    Where neither can say, those that lie in the cache.
    """
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return _tree(named)
    except CachedRepoTreeNotFoundError:
        pass
    try:
        require_answer(named)
        _download(named, [INDEX])  # with it the library notes the names of all
    except Unreachable:
        snapshot = _snapshot(named)
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
        if not names:
            raise
        return names
    return _tree(named)


def _tree(named: HubId) -> list[str]:
    from huggingface_hub import get_cached_repo_tree

    names = [file.path for file in get_cached_repo_tree(named.repo, revision=named.revision)]
    return [name for name in names if ".." not in name.split("/")]  # nobody's file is looked for out of the cache


def _present(named: HubId, names: Iterable[str]) -> Path:
    """The repository's folder in the cache, once these of its files lie there."""
    snapshot = _snapshot(named)
    lacking = [name for name in names if not (snapshot / name).is_file()]
    if lacking:
        require_answer(named)  # at once; the downloads themselves would try again for minutes
        with waiting(f"{len(lacking)} files of {named.repo} from the hub") as detail, _telling(named, detail):
            _download(named, lacking)
    return snapshot


@contextmanager
def _telling(named: HubId, detail: Callable[[str], None]) -> Iterator[None]:
    """Say every half second how much has come so far, files that are not whole yet among it."""
    blobs, done = _snapshot(named).parents[1] / "blobs", Event()

    def bytes_there() -> int:
        return sum(path.stat().st_size for path in blobs.glob("*") if path.is_file())

    before = bytes_there()

    def tell() -> None:
        while not done.wait(TOLD_EVERY_S):
            with suppress(OSError):  # a file that has just been given its name
                detail(f"{(bytes_there() - before) / 1e9:.2f} GB so far")

    thread = Thread(target=tell, daemon=True, name="telling")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _download(named: HubId, names: Iterable[str]) -> None:
    from huggingface_hub import snapshot_download

    with in_one_sentence(named):
        snapshot_download(named.repo, revision=named.revision, allow_patterns=[glob.escape(name) for name in names])


def _snapshot(named: HubId) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=named.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / folder / "snapshots" / str(named.commit)
