"""The `dipp-ray` command: its verb is run, and whatever comes of it is said in one sentence."""

import atexit
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable

from dipp_ray.arguments import parser
from dipp_ray.errors import (
    CallError,
    JobFailed,
    NonFiniteError,
    RewardUnavailableError,
    RoleFailure,
    RunFolderLost,
    StorageUnavailable,
    UserError,
)
from dipp_ray.reporting.output import lasting_output
from dipp_ray.reporting.quiet import quiet_libraries


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit status of `guarded`."""
    quiet_libraries()
    # Threads of torch that wait for each other sleep: spinning, they hold up the ones waited for once another program
    # runs. torch's libgomp reads this when it is loaded, and Ray's workers on this machine inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given, rest = parser().parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(given, "settings")]
    if not unknown and rest:
        given.settings += rest  # those behind an option

    def run() -> None:
        if unknown:
            raise UserError(as_setting(given.verb, rest, re.findall("--[a-z-]+", given.usage())))
        given.run(given)

    return guarded(run)


def as_setting(verb: str, unknown: list[str], options: list[str]) -> str:
    """What to write in place of arguments that a verb with these options does not know. Settings are none."""
    from dipp_ray.config import RunConfig
    from dipp_ray.settings import nearest_keys

    if verb == "submit":
        return f"submit does not know {unknown[0]}: write -- before the command that the job runs"
    if meant := difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1, cutoff=0.8):
        return f"{verb} does not know {unknown[0]}: did you mean {meant[0]}?"
    name, _, value = unknown[0].lstrip("-").partition("=")
    value = value or next((word for word in unknown[1:2] if not word.startswith("-")), "VALUE")
    near = nearest_keys(name.replace("-", "_"), RunConfig) if verb in ("train", "check", "evaluate") else []
    if not near:
        return f"{verb} does not know {unknown[0]}: see dipp-ray {verb} --help"
    return f"{verb} does not know {unknown[0]}: settings are written without dashes: {near[0]}={value}"


def guarded(work: Callable[[], None]) -> int:
    """Do `work`; what is meant for a person is one sentence on standard error, never a traceback.

    Exit status: 0 done, 1 a run that failed, 2 bad input, 130 interrupted.
    """
    if os.getcwd() not in sys.path:  # rewards and judges may lie here: Ray's workers look here too
        sys.path.append(os.getcwd())
    with lasting_output():
        status = _exit_status(work)
    # The work is done, or its end is said: Ctrl-C would stop Ray from ending its processes, which is what is left.
    # Handlers are called in the reverse order, so before Ray's.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return status


def _exit_status(work: Callable[[], None]) -> int:
    try:
        work()
    except (UserError, CallError) as error:
        print(f"dipp-ray: {error}", file=sys.stderr)
        return 2
    except (
        JobFailed,
        NonFiniteError,
        RewardUnavailableError,
        RoleFailure,
        RunFolderLost,
        StorageUnavailable,
    ) as error:
        print(f"dipp-ray: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        what = str(interrupt) or "the same command goes on from what was kept"
        print(f"dipp-ray: interrupted; {what}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
