"""Where the processes that Ray starts look for modules."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from dipp_ray.errors import UserError

# What Ray's processes import between adding the driver's folders and the first module of ours.
IMPORTED_BY_RAY = frozenset(
    [
        "cloudpickle",
        "cmath",
        "colorsys",
        "configparser",
        "difflib",
        "google",
        "grpc",
        "gzip",
        "numpy",
        "pandas",
        "pkgutil",
        "pyarrow",
        "pydantic",
        "pydoc",
        "socketserver",
        "sysconfig",
        "unittest",
        "zoneinfo",
    ]
)
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


def refuse_shadows(folders: Iterable[str]) -> None:
    """Raise UserError where one of the driver's folders holds a module that Ray's processes would take for another."""
    for folder in folders:
        for name in sorted(IMPORTED_BY_RAY):
            found = next(
                (path for path in (f"{name}.py", f"{name}/__init__.py") if (Path(folder) / path).exists()), None
            )
            if found and "site-packages" not in Path(folder).parts:
                raise UserError(
                    f"{Path(folder) / found} would be taken for Python's or Ray's own {name} by every process that Ray "
                    "starts: rename it, or start in another folder"
                )
