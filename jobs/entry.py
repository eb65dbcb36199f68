"""What the entry scripts share: `dipp-ray` by its verb, refused where a job's results would be lost with the job."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dipp_ray import cli
from dipp_ray.arguments import parser as parser_of_verbs
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
        if sentence := refuse(config) or lost_with_the_job("run.folder", config.run.folder):
            raise UserError(sentence)
    except UserError as error:
        return refused(error)
    return cli.main(["train", str(given.config), *settings])


def verb(name: str, results: Callable[[argparse.Namespace], tuple[str, str | Path]], arguments: list[str]) -> int:
    """Run `dipp-ray NAME ARGUMENTS`. Exit status as `dipp-ray`'s.

    results: what says where they go, and where that is, of the verb's parsed arguments.
    """
    given, rest = parser_of_verbs().parse_known_args([name, *arguments])
    given.settings = [*getattr(given, "settings", []), *rest]
    try:
        if sentence := lost_with_the_job(*results(given)):
            raise UserError(sentence)
    except UserError as error:
        return refused(error)
    return cli.main([name, *arguments])


def refused(error: UserError) -> int:
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    return 2


def lost_with_the_job(name: str, folder: str | Path) -> str | None:
    """Ray runs a job in a copy of the working directory, and deletes it afterwards."""
    inside = not is_remote(str(folder)) and Path(folder).resolve().is_relative_to(Path.cwd())
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and inside:
        return (
            f"{name}={folder} lies in the job's copy of the working directory, which is deleted with "
            "it: give s3://, or an absolute path elsewhere, on storage that every node sees"
        )
    return None
