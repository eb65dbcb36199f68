"""Ray's JobSubmissionClient in memory: jobs that end as they are told to, and faults on the way."""

from dataclasses import dataclass, field

from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus


@dataclass
class Story:
    """One job: its log in pieces, and how it ends."""

    log: list[str] = field(default_factory=list)
    status: str = "SUCCEEDED"
    code: int | None = 0
    message: str = ""
    breaks: list[int] = field(default_factory=list)  # the connection to the log breaks after so many pieces
    hangs: bool = False  # the log's connection stays open, silent, when the job has ended
    vanishes: bool = False  # its cluster forgets it
    pending: int = 0  # looks before it starts


class FakeClient:
    def __init__(self, *stories: Story):
        self.stories = list(stories)
        self.jobs: dict[str, Story] = {}
        self.asked: list[dict] = []
        self.faults: list[Exception] = []  # raised by the next calls, the answer lost where `arrived` says so
        self.stopped: list[str] = []
        self.dying: dict[str, int] = {}  # looks until a stopped job has ended
        self.told: dict[str, int] = {}  # pieces that a log was read up to

    def submit_job(self, **given):
        job = given["submission_id"]
        if job in self.jobs:
            raise RuntimeError(
                "Request failed with status code 500: Traceback\nRuntimeError: Request failed with status code 400: "
                f"Traceback\nValueError: Job with submission_id {job} already exists. Please use another."
            )
        self._fault()
        self.asked.append(given)
        self.jobs[job] = self.stories.pop(0)
        return job

    def get_job_info(self, job):
        self._fault()
        story = self._story(job)
        if story.pending:
            story.pending -= 1
            return details(job, "PENDING", None, "Job has not started yet.")
        if story.vanishes and self.told.get(job):
            del self.jobs[job]
            self._story(job)
        if self.dying.get(job):
            self.dying[job] -= 1
            return details(job, "RUNNING", None, "running")
        ended = job in self.stopped or self.told.get(job, 0) >= len(story.log)
        status = "STOPPED" if job in self.stopped else story.status
        return details(job, *((status, story.code, story.message) if ended else ("RUNNING", None, "running")))

    def get_job_logs(self, job):
        return "".join(self._story(job).log)

    async def tail_job_logs(self, job):
        story = self._story(job)
        for index, piece in enumerate(story.log):
            if story.breaks and index == story.breaks[0]:
                story.breaks.pop(0)
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield piece
            self.told[job] = max(self.told.get(job, 0), index + 1)
        if story.hangs:
            import asyncio

            await asyncio.sleep(1000)

    def stop_job(self, job):
        story = self._story(job)
        running = self.told.get(job, 0) < len(story.log)
        if running:
            self.stopped.append(job)
        return running

    def list_jobs(self):
        return [self.get_job_info(job) for job in self.jobs] + [details(None, "RUNNING", None, "a driver")]

    def _story(self, job):
        if job not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist.")
        return self.jobs[job]

    def _fault(self):
        if self.faults:
            raise self.faults.pop(0)


def details(job, status, code, message):
    return JobDetails(
        type="SUBMISSION" if job else "DRIVER",
        submission_id=job,
        status=JobStatus(status),
        entrypoint="python work.py",
        message=message,
        driver_exit_code=code,
        start_time=1_700_000_000_000,
    )
