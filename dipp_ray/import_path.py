"""Where the processes that Ray starts look for modules."""

import os
import sys

RAY_WORKER = "default_worker.py"  # the script that Ray runs in them


def drivers_folders_last() -> None:
    """In a process of Ray's, look into the driver's folders after all others; elsewhere do nothing.

    Ray puts the folder in which a command was started, and the script's, before the standard library, so that rewards
    of one's own are found; but a `random.py` or `types.py` that happens to lie there would end every role.
    """
    if os.path.basename(sys.argv[0]) != RAY_WORKER:
        return
    library = os.path.dirname(os.__file__)
    if library not in sys.path:
        return
    kept = {os.path.dirname(os.path.abspath(sys.argv[0])), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    first = sys.path[: sys.path.index(library)]
    drivers = [folder for folder in first if folder not in kept and not folder.endswith(".zip")]
    sys.path[:] = [folder for folder in sys.path if folder not in drivers] + drivers
