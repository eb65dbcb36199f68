"""What the hub's library raises, in one sentence that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from dipp_ray.errors import UserError
from dipp_ray.hub.ids import HubId

LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"


class Unreachable(UserError):
    """The hub was not asked, or gave no answer: what is in the cache is all there is."""


@contextmanager
def in_one_sentence(what: HubId) -> Iterator[None]:
    """Raise UserError for whatever reaching the hub for `what` raises; `Unreachable` where it did not answer."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    hub = constants.ENDPOINT
    token = f"your token cannot read it: take one that can ({LOG_IN})" if get_token() else f"it needs a token: {LOG_IN}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{what}: its owner asks for an agreement: accept it at {hub}/{what.repo}; {token}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {what} here, and {hub} shows no repository {what.repo}: correct the name; if it is "
            f"private, {token}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{what}: the repository has no revision {what.revision}: name a branch, a tag or a commit of 40 digits "
            f"that {hub}/{what.repo} shows"
        ) from error
    except DisabledRepoError as error:
        raise UserError(f"{what}: {hub} has disabled the repository: take another") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise _unreachable(what, "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else cause(error)) from error
    except EntryNotFoundError as error:
        raise UserError(f"{what}: the repository has no such file: correct the name ({hub}/{what.repo})") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{what}: {hub} refuses it ({status}); {token}") from error
        raise _unreachable(what, f"{hub} answered {status}") from error
    except HTTPError as error:  # of the transport: no answer at all
        raise _unreachable(what, f"{hub} cannot be reached: {cause(error)}") from error
    except OSError as error:
        raise UserError(
            f"{what} cannot be kept in {constants.HF_HUB_CACHE} ({error.strerror or cause(error)}): free or mend that "
            "disk, or set HF_HOME to a folder on another"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # a page of some network's own, where the hub's JSON should be
        raise _unreachable(what, f"{hub} does not answer as a hub does") from error


def _unreachable(what: HubId, reason: str) -> Unreachable:
    from huggingface_hub import constants

    return Unreachable(
        f"there is no folder {what} here, nor the whole of it in {constants.HF_HUB_CACHE}, and no hub to fetch it from "
        f"({reason}): correct the path; for a model of the hub, fetch it with a network first, or set HF_HOME to a "
        "cache that holds it"
    )


def cause(error: BaseException) -> str:
    """What an error began with, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
