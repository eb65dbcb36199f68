"""The jobs of a cluster, asked over its dashboard: whatever goes wrong there is one sentence here."""

import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch
from urllib.parse import urlsplit

from dipp_ray.errors import JobFailed, UserError
from dipp_ray.reporting.waiting import waiting

DEFAULT = "http://127.0.0.1:8265"
CONNECT_S = 10.0
LOST_S = 300.0  # longest silence of a dashboard that answered before; a head node may start anew meanwhile
RETRY_S = 2.0

Answer = TypeVar("Answer")


class Unreachable(Exception):
    """Nobody answered, or a server that could not. The same may work in a while."""


class UnknownJob(UserError):
    """The cluster knows no such job."""


def address_of_jobs(given: str | None) -> str:
    """The dashboard's URL: as given, else of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else of this machine."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address and (joined := os.environ.get("RAY_ADDRESS")):
        if not joined.startswith(("http://", "https://")):
            raise UserError(
                f"RAY_ADDRESS={joined} is where a driver joins, and a dashboard takes jobs: give --address "
                f"http://{joined.removeprefix('ray://').partition(':')[0]}:8265"
            )
        address = joined
    address = (address or DEFAULT).rstrip("/")
    return address if "://" in address else f"http://{address}"


def open_jobs(address: str) -> "Jobs":
    """The jobs of the dashboard at this URL. Raises UserError where there is none."""
    try:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise UserError(f"'{address}' is no dashboard's address: write http://HOST:8265") from None
    try:  # at once: without it a machine that drops packets would be waited for for minutes
        socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()
        from ray.job_submission import JobSubmissionClient

        # Ray lets its variables win over the argument, and they may name another cluster.
        with answers(address), patch.dict(os.environ, {"RAY_API_SERVER_ADDRESS": address}):
            return Jobs(address, JobSubmissionClient(address))
    except (OSError, Unreachable) as error:
        raise UserError(
            f"no dashboard at {address} ({error}): start the cluster, forward its port 8265, or give --address"
        ) from None


class Jobs:
    """What `client` (Ray's JobSubmissionClient) does, with faults as sentences; a lost connection is waited for."""

    def __init__(self, address: str, client: Any):
        self.address = address
        self._client = client

    def submit(self, job: str, command: str, **options: Any) -> None:
        """Start `command` as the job of this id, which must be a new one. options: as submit_job's."""
        try:
            self._ask(job, lambda: self._client.submit_job(entrypoint=command, submission_id=job, **options))
        except UserError as error:
            arrived = f"submission_id {job} already exists" in str(error)  # and the answer was lost on its way
            if not arrived:
                raise

    def details(self, job: str) -> Any:
        """Ray's JobDetails. Raises UnknownJob."""
        return self._ask(job, lambda: self._client.get_job_info(job))

    def stop(self, job: str) -> bool:
        """Ask the job to end; False where it had ended. Raises UnknownJob."""
        return self._ask(job, lambda: self._client.stop_job(job))

    def all(self) -> list[Any]:
        """JobDetails of every job that was submitted, the oldest first."""
        found = self._ask(None, self._client.list_jobs)
        return sorted((job for job in found if job.submission_id), key=lambda job: job.start_time or 0)

    def log(self, job: str) -> str:
        """All of the job's log so far. Raises Unreachable where the node that holds it is gone."""
        with answers(self.address):
            return self._client.get_job_logs(job)

    def log_as_written(self, job: str) -> AsyncIterator[str]:
        """The job's log from its beginning, as it is written; what it raises is aiohttp's, or a RuntimeError."""
        return self._client.tail_job_logs(job)

    def _ask(self, job: str | None, call: Callable[[], Answer]) -> Answer:
        """`call()`, again and again for LOST_S while nobody answers."""
        try:
            return self._once(call)
        except Unreachable:
            end = time.monotonic() + LOST_S
        with waiting(f"the dashboard at {self.address} to answer") as detail:
            while True:
                time.sleep(RETRY_S)
                try:
                    return self._once(call)
                except Unreachable as error:
                    detail(str(error))
                    if time.monotonic() > end:
                        follow = f": job {job} may go on; see dipp-ray submit --follow {job}" if job else ""
                        raise JobFailed(
                            f"the dashboard at {self.address} gave no answer for {LOST_S:.0f} s ({error}){follow}"
                        ) from None

    def _once(self, call: Callable[[], Answer]) -> Answer:
        with answers(self.address):
            return call()


@contextmanager
def answers(address: str) -> Iterator[None]:
    """Within, what Ray's client raises becomes Unreachable, UnknownJob or UserError."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError:
        raise UserError(
            f"{address} wants the cluster's token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to it or "
            "RAY_AUTH_TOKEN_PATH to a file of it"
        ) from None
    except (ConnectionError, RequestException) as error:
        raise Unreachable(last_line(error)) from None
    except (RuntimeError, ValueError) as error:
        codes = re.findall(r"status code (\d+)", str(error))  # the dashboard's own, and that of the agent it asked
        if "404" in codes and "does not exist" in str(error):
            raise UnknownJob(f"{last_line(error)} at {address}: dipp-ray submit --list shows those that do") from None
        if codes and "400" not in codes:
            raise Unreachable(last_line(error)) from None
        raise UserError(f"{address} refuses: {last_line(error)}") from None


def last_line(error: Exception) -> str:
    """What an error says at the end, where Ray's servers answer with a whole traceback."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return re.sub(r"^.*status code \d+: |^\w+Error: ", "", line).rstrip(".")
