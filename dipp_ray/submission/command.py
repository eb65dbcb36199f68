"""What `dipp-ray submit` does: start a command as a job, follow it, start it again where it was lost."""

import os
import secrets
import shlex
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from dipp_ray.errors import JobFailed, UserError
from dipp_ray.reporting.waiting import waiting
from dipp_ray.submission.cluster import Jobs, UnknownJob
from dipp_ray.submission.follow import follow

# Beside what git ignores; in gitignore's words.
EXCLUDES = (".git", "/runs", ".venv", ".cache", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache")
HEAD = {"node:__internal_head__": 0.001}  # a resource that Ray gives to the head node alone
BAD_INPUT = 2
STOP_S = 60.0
PAUSE_S = 2.0  # before a job is submitted again

Say = Callable[[str], None]


def run(given: Any, open_jobs: Callable[[], Jobs]) -> None:
    """Do what the parsed arguments ask. `open_jobs` connects, once they are known good."""
    others = {"follow": follow_command, "status": status_command, "stop": stop_command}
    chosen = [(name, getattr(given, name)) for name in others if getattr(given, name) is not None]
    if given.command and (chosen or given.list):
        raise UserError("a command is submitted by itself: leave out --follow, --status, --stop and --list")
    if given.list:
        list_command(open_jobs())
    elif chosen:
        [(name, job)] = chosen
        others[name](open_jobs(), job)
    elif not given.command:
        raise UserError("say what the job runs: dipp-ray submit -- python jobs/align.py CONFIG")
    else:
        env = variables(given.env, dict(os.environ))
        submit(open_jobs, given.command, given.working_dir, env, given.on, given.retries, given.detach)


def submit(
    open_jobs: Callable[[], Jobs],
    command: list[str],
    folder: Path = Path("."),
    env: dict[str, str] | None = None,
    on: str | None = None,
    retries: int = 0,
    detach: bool = False,
    say: Say = print,
) -> None:
    """Run `command` on the cluster in a copy of `folder`, and show its log until it has succeeded.

    env: variables of its environment. on: `head` or `label=value`, where it runs. retries: how often it is submitted
    again when it failed or was lost; with exit status 2, which is bad input, it is not. detach: return at once.
    Raises UserError for bad input, JobFailed for a job that failed or was stopped.
    """
    options = {"runtime_env": runtime_env(folder, env or {}), **placement(on)}
    require_files(command, folder)
    if detach and retries:
        raise UserError("--retries are this command's work: leave out --detach, or --retries")
    jobs = open_jobs()
    name = f"dipp-ray-{secrets.token_hex(4)}"
    for attempt in range(retries + 1):
        job = f"{name}-{attempt + 1}" if attempt else name
        jobs.submit(job, shlex.join(command), **options)
        say(f"job {job} is submitted to {jobs.address}")
        if detach:
            say(f"dipp-ray submit --follow {job} shows its log, --stop {job} ends it")
            return
        reason = outcome(jobs, job)
        if reason is None:
            say(f"job {job} succeeded")
            return
        if attempt < retries:
            say(f"job {job} {reason}; submitted again, {retries - attempt} of {retries} retries left")
            time.sleep(PAUSE_S)
    again = f", like the {retries} before it" if retries else ""
    raise JobFailed(f"job {job} {reason}{again}; submitted again, it goes on from the last checkpoint")


def follow_command(jobs: Jobs, job: str, say: Say = print) -> None:
    """Show a job's log until it has ended. Raises as `submit`."""
    jobs.details(job)  # one that never was is not one that was lost
    if (reason := outcome(jobs, job)) is not None:
        raise JobFailed(f"job {job} {reason}")
    say(f"job {job} succeeded")


def outcome(jobs: Jobs, job: str) -> str | None:
    """Follow a job to its end: None where it succeeded, or how it failed.

    Raises UserError for exit status 2, JobFailed for a job that was stopped.
    """
    try:
        details = follow(jobs, job)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"job {job} goes on, and is not submitted again: --follow {job} shows it, --stop {job} ends it"
        ) from None
    except UnknownJob:
        return "was lost with its cluster's head"
    if details.status == "SUCCEEDED":
        return None
    if details.status == "STOPPED":
        raise JobFailed(f"job {job} was stopped; submitted again, it goes on from the last checkpoint")
    if details.driver_exit_code == BAD_INPUT:
        raise UserError(f"job {job} was refused by its own command (exit status 2): its log says why")
    return f"failed ({how(details)})"


def how(details: Any) -> str:
    """In a few words how a job ended, of Ray's JobDetails."""
    if details.driver_exit_code is not None:
        return f"exit status {details.driver_exit_code}"
    return (details.message or "no reason given").strip().partition("\n")[0].rstrip(".")


def status_command(jobs: Jobs, job: str, say: Say = print) -> None:
    """Say in a line how a job is."""
    details = jobs.details(job)
    say(f"{job}  {details.status}  {how(details)}  {details.entrypoint}")


def stop_command(jobs: Jobs, job: str, say: Say = print) -> None:
    """Stop a job and wait until it has ended."""
    asked = jobs.stop(job)
    with waiting(f"job {job} to end", STOP_S) as detail:
        while not (details := jobs.details(job)).status.is_terminal():
            detail(f"{details.status}")
            time.sleep(PAUSE_S / 4)
    say(f"job {job} is stopped" if asked and details.status == "STOPPED" else f"job {job} had ended: {details.status}")


def list_command(jobs: Jobs, say: Say = print) -> None:
    """A line for each job of the cluster, the oldest first."""
    for details in jobs.all():
        began = datetime.fromtimestamp((details.start_time or 0) / 1000).isoformat(" ", "seconds")
        say(f"{details.submission_id}  {details.status}  {began}  {details.entrypoint}")


def runtime_env(folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """What Ray sends along: the folder without caches and results, and variables."""
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder} is no folder: give the one that the command is to run in a copy of")
    return {"working_dir": str(folder.resolve()), "excludes": list(EXCLUDES), "env_vars": env}


def placement(on: str | None) -> dict[str, Any]:
    """submit_job's options for a driver on the head or on a node with this label; Ray's own choice for None."""
    if on is None:
        return {}
    if on == "head":
        return {"entrypoint_resources": HEAD}
    label, equals, value = on.partition("=")
    if not (label and equals and value):
        raise UserError(f"--on {on}: write head, or label=value of the nodes that the command may run on")
    return {"entrypoint_label_selector": {label: value}}


def require_files(command: list[str], folder: Path) -> None:
    """Raise UserError for a script or configuration that would not come along."""
    for word in command:
        sent = word.endswith((".py", ".yaml", ".yml")) and "=" not in word and not Path(word).is_absolute()
        if sent and not (folder / word).is_file():
            raise UserError(
                f"{word} is not in {folder.resolve()}, in a copy of which the job runs: put it there, or give "
                "--working-dir"
            )


def variables(given: list[str], environment: dict[str, str]) -> dict[str, str]:
    """Of `NAME=VALUE` and `NAME`, the latter with its value of `environment`."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or (not equals and name not in environment):
            raise UserError(f"--env {text}: there is no such variable here; set it, or write NAME=VALUE")
        found[name] = value if equals else environment[name]
    return found
