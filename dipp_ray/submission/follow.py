"""A job's log on this terminal until the job has ended, whatever happens to the connection."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from dipp_ray.reporting.waiting import waiting
from dipp_ray.submission.cluster import Jobs, Unreachable

LOOK_S = 2.0  # between two looks at a job whose log is silent


def follow(jobs: Jobs, job: str) -> Any:
    """Print the log as it is written. Returns Ray's JobDetails of the job when it has ended. Raises UnknownJob."""
    with waiting(f"job {job} to start") as detail:
        while (details := jobs.details(job)).status == "PENDING":
            detail((details.message or "").partition("\n")[0])
            time.sleep(LOOK_S / 4)
    log = _Log(job)
    while not (details := jobs.details(job)).status.is_terminal():
        asyncio.run(log.print_from(jobs))
        time.sleep(LOOK_S / 4)
    with suppress(Unreachable):  # the node that the log was on may be gone
        log.print_up_to(jobs.log(job))
    return details


class _Log:
    """How much of a job's log was printed: a new connection begins at the log's beginning."""

    def __init__(self, job: str):
        self.job = job
        self.printed = 0

    def print_up_to(self, whole: str) -> None:
        """Print what is new of the log as far as it goes."""
        print(whole[self.printed :], end="", flush=True)
        self.printed = max(self.printed, len(whole))

    async def print_from(self, jobs: Jobs) -> None:
        """Print what comes until the log ends, the connection breaks, or nothing comes of a job that has ended."""
        import aiohttp

        at = 0
        chunks = jobs.log_as_written(self.job)
        with suppress(aiohttp.ClientError, OSError, RuntimeError, StopAsyncIteration):
            while True:
                chunk = asyncio.ensure_future(anext(chunks))
                while not (await asyncio.wait([chunk], timeout=LOOK_S))[0]:
                    if jobs.details(self.job).status.is_terminal():
                        chunk.cancel()
                        return
                text = chunk.result()
                new = text[max(0, self.printed - at) :]
                at += len(text)
                print(new, end="", flush=True)
                self.printed = max(self.printed, at)
