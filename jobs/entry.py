"""What the entry scripts share: a configuration that fits the script, then `dipp-ray train`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dipp_ray import cli
from dipp_ray.config import RunConfig, load_config, settings_of_run
from dipp_ray.errors import UserError
from dipp_ray.storage.cache import is_remote


def main(text: str, refuse: Callable[[RunConfig], str | None], arguments: list[str] | None = None) -> int:
    """Train as CONFIG says, unless `refuse` has a sentence against it. Exit status as `dipp-ray`'s."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML configuration")
    parser.add_argument(
        "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
    )
    parser.add_argument("--generator", metavar="RUN", help="folder of a finished run: its generator and score model")
    given = parser.parse_intermixed_args(arguments)
    settings = given.settings
    if given.generator:
        settings = [*settings, *settings_of_run(given.generator)]
    try:
        config = load_config(given.config, settings)
        if sentence := refuse(config) or lost_with_the_job(config):
            raise UserError(sentence)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    return cli.main(["train", str(given.config), *settings])


def lost_with_the_job(config: RunConfig) -> str | None:
    """Ray runs a job in a copy of the working directory, and deletes it afterwards."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (
        is_remote(config.run.folder) or Path(config.run.folder).is_absolute()
    ):
        return (
            f"run.folder={config.run.folder} lies in the job's copy of the working directory, which is deleted with "
            "it: give s3://, or an absolute path on storage that every node sees"
        )
    return None
