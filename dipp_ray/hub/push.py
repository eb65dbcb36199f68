"""A folder to a repository of the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.hub.ids import HubId, hub_id
from dipp_ray.hub.revisions import ANSWER_S
from dipp_ray.hub.sentences import LOG_IN, cause
from dipp_ray.reporting.waiting import waiting


def repository(given: str) -> HubId:
    """The repository 'org/name' to push to. Raises UserError for anything else."""
    named = hub_id(given)
    if named is None or named.revision:
        raise UserError(f"--push {given} names no repository: write org/name, or your own name before the slash")
    return named


def push_folder(folder: Path, to: HubId, private: bool, message: str) -> str:
    """Upload the files of `folder`, and nothing else, as one commit; the repository is made where there is none.

    private: whether it is made so, and must be. Returns its address. Raises UserError where there is no token, no
    right or no hub; the folder stays as it is.
    """
    from huggingface_hub import HfApi, constants, get_token

    kept = f"{folder} is exported, but not pushed to {to}"
    if get_token() is None:
        raise UserError(f"{kept}: that needs a token that may write: {LOG_IN}")
    api = HfApi()
    with _in_one_sentence(kept), waiting(f"the upload of {folder} to {to}"):
        there = _seen(api, to)
        if there is None:
            api.create_repo(to.repo, private=private or None, exist_ok=True)
        elif private and not there.private:
            raise UserError(f"{kept}: that repository is public already: choose another name")
        api.upload_folder(repo_id=to.repo, folder_path=folder, commit_message=message)
    return f"{constants.ENDPOINT}/{to}"


def _seen(api, to: HubId):
    """What the hub says of the repository, within ANSWER_S seconds; None where it shows none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(to.repo, timeout=ANSWER_S)
    except RepositoryNotFoundError:
        return None


@contextmanager
def _in_one_sentence(kept: str) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    hub = constants.ENDPOINT
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            remedy = f"your token may not write there: take one that may ({LOG_IN}), or another name"
        else:
            remedy = "the same command tries again"
        raise UserError(f"{kept}: {hub} answered {status}: {remedy}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{kept}: HF_HUB_OFFLINE is set: unset it, and give the same command again") from error
    except HTTPError as error:  # of the transport: no answer at all
        raise UserError(f"{kept}: {hub} cannot be reached ({cause(error)}): the same command tries again") from error
    except (RuntimeError, ValueError, OSError) as error:  # a file that did not arrive, or was not accepted
        raise UserError(f"{kept}: the upload failed ({cause(error)}): the same command tries again") from error
