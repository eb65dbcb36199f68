"""Branches and tags to commits, so that every process of a run, now and later, reads the same files."""

from functools import cache
from pathlib import Path

from dipp_ray.hub.ids import HubId, hub_id
from dipp_ray.hub.sentences import Unreachable, in_one_sentence

ANSWER_S = 10.0  # longest wait for the hub's first word; the library itself would wait as long as the system does


_pinned_alone = False


def take_pinned_alone() -> None:
    """From now on this process takes an id without a commit for a path. For actors: their driver has pinned the ids, so
    such a text is a folder that this node lacks, and not to be looked for among other people's models."""
    global _pinned_alone
    _pinned_alone = True


def named_here(given: str | Path, within: bool = False) -> HubId | None:
    """The id that is meant, as `hub_id`; None for what exists here, and in an actor for an id without a commit."""
    named = None if Path(given).exists() else hub_id(given, within)
    return None if named is not None and _pinned_alone and not named.commit else named


def pinned(given: str, before: str | None = None, within: bool = False) -> str:
    """What a person wrote, a hub's id at a commit; a path, and an id that has one already, as it is.

    before: what an earlier start of the same run recorded. An id without a revision is pinned as it was then, whatever
    its branch has become, and nobody is asked. within: as `hub_id`. Raises UserError where the hub knows no such
    repository or revision, or cannot be asked and the cache does not know.
    """
    named = named_here(given, within)
    if named is None or named.commit:
        return given
    recorded = hub_id(before, within) if before else None
    if named.revision is None and recorded and recorded.commit and recorded.is_same_but_revision(named):
        return str(recorded)
    return str(at_commit(named))


def at_commit(named: HubId) -> HubId:
    """The id at the commit that its revision, the default branch where there is none, stands for. Raises UserError."""
    return named if named.commit else named.at(_commit_of(named.repo, named.revision))


@cache  # one process takes one commit for one id, however often it asks
def _commit_of(repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    named = HubId(repo, revision=revision)
    try:
        require_answer(named)
        with in_one_sentence(named):
            return HfApi().resolve_revision(repo, revision=revision).resolved  # noted in the cache, for times without
    except Unreachable as unreachable:
        try:
            return HfApi().resolve_revision(repo, revision=revision, local_files_only=True).resolved
        except RevisionResolutionError:
            raise unreachable from None


def require_answer(named: HubId) -> None:
    """Raise UserError, after ANSWER_S seconds at most, unless the hub shows the repository at this revision."""
    from huggingface_hub import HfApi

    with in_one_sentence(named):
        HfApi().model_info(named.repo, revision=named.revision, timeout=ANSWER_S)
