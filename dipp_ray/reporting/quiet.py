"""Keeps the libraries' routine messages out of a run's output. Errors, and warnings about the run itself, stay."""

import logging
import os
import sys
import warnings
from importlib import import_module

# What to give serve.start(logging_config=...) and @serve.deployment(logging_config=...): Ray Serve's level has no
# environment variable.
SERVE_LOGGING = {"log_level": "WARNING", "enable_access_log": False}

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; unset, Ray warns of the change in each worker
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent, so nothing is announced
    # Their levels stay at 'warning': 'weights newly initialised' and 'ignored setting' are said there.
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_NO_ADVISORY_WARNINGS": "1",
    "TQDM_DISABLE": "1",  # the bars of diffusers (loading, each sampling call) and of transformers
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",  # what it warns of and goes on from; what stops it is said in our own sentence
    "TOKENIZERS_PARALLELISM": "false",  # its warning after a fork, and its threads beside torch's
    # What died, and whether it matters, is said in a sentence of our own: Ray's paragraphs on the same are dropped.
    # So is that many processes were started at once, which runs side by side do.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "|".join(
        (
            "killed while executing a task",
            "so the task will be retried",
            "Raylet is terminated",
            "Unhandled error",
            "worker processes have been started on node",
        )
    ),
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of results that nobody asks for any more, once a run has failed
    "RAY_LOGGER_LEVEL": "warning",  # the level that ray.init gives the driver unless it is told another
}

LEVELS = {
    "ray": logging.WARNING,
    "ray.serve": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray.data": logging.WARNING,
    "ray._private.authentication.authentication_token_setup": logging.ERROR,  # 'token authentication is enabled'
    "torch.distributed": logging.WARNING,
    "torch.distributed.distributed_c10d": logging.ERROR,
    "filelock": logging.WARNING,
    "httpx": logging.WARNING,
    "botocore": logging.WARNING,
}


def quiet_libraries() -> None:
    """Call in each process, driver or actor, before Ray, DeepSpeed, diffusers and transformers are imported.

    A variable that the user has set in the environment is left as it is. Calling twice does nothing more.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, drop in FILTERS:
        logging.getLogger(name).addFilter(drop)  # DeepSpeed and Serve reset their logger's level; a filter stays
    for library in ("diffusers", "transformers"):
        if library in sys.modules:  # it has read the variables already
            import_module(f"{library}.utils.logging").disable_progress_bar()
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(ray|deepspeed|diffusers|transformers|torch)\b")


def _deepspeed_routine(record: logging.LogRecord) -> bool:
    """False (drop) for what says only that this is a CPU run."""
    return record.levelno >= logging.ERROR or not record.getMessage().startswith("Setting accelerator to CPU")


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _torchvision_missing(record: logging.LogRecord) -> bool:
    """False (drop) for what says that PIL prepares images in torchvision's place: no image goes into these models."""
    return "requires torchvision" not in str(record.msg)


FILTERS = (
    ("DeepSpeed", _deepspeed_routine),
    ("ray.serve", _below_warning),
    ("transformers.utils.import_utils", _torchvision_missing),
)
