"""The `dipp-ray` command: one thin function a verb."""

import argparse
import os
import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from dipp_ray.errors import (
    CallError,
    NonFiniteError,
    RewardUnavailableError,
    RoleFailure,
    RunFolderLost,
    StorageUnavailable,
    UserError,
)
from dipp_ray.import_path import refuse_shadows
from dipp_ray.reporting.output import lasting_output
from dipp_ray.reporting.quiet import quiet_libraries

CONNECT_S = 10.0
AUTH_MODES = ("token", "disabled")


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit status of `guarded`."""
    quiet_libraries()
    given, rest = parser().parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(given, "settings")]
    if not unknown and rest:
        given.settings += rest  # those behind an option

    def run() -> None:
        if unknown:
            raise UserError(as_setting(given.verb, rest))
        given.run(given)

    return guarded(run)


def as_setting(verb: str, unknown: list[str]) -> str:
    """What to write in place of arguments that a verb does not know: settings are no options here."""
    from dipp_ray.config import RunConfig
    from dipp_ray.settings import nearest_keys

    name, _, value = unknown[0].lstrip("-").partition("=")
    value = value or next((word for word in unknown[1:2] if not word.startswith("-")), "VALUE")
    near = nearest_keys(name.replace("-", "_"), RunConfig) if verb in ("train", "check") else []
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
        return _exit_status(work)


def _exit_status(work: Callable[[], None]) -> int:
    try:
        work()
    except (UserError, CallError) as error:
        print(f"dipp-ray: {error}", file=sys.stderr)
        return 2
    except (NonFiniteError, RewardUnavailableError, RoleFailure, RunFolderLost, StorageUnavailable) as error:
        print(f"dipp-ray: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        what = str(interrupt) or "the same command goes on from the last checkpoint"
        print(f"dipp-ray: interrupted; {what}", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="dipp-ray",
        description="Align one-step text-to-image generators with human preferences by Diff-Instruct++.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {version('dipp-ray')}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(function, text: str) -> argparse.ArgumentParser:
        name = function.__name__.removeprefix("run_").replace("_", "-")
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=function)
        return sub

    demo = verb(
        run_demo, "The whole pipeline on the miniature: build, fit the reward, distil, align, evaluate, report."
    )
    demo.add_argument("--out", type=Path, default=Path("runs"), help="where the run folders go (%(default)s)")
    for function, text in (
        (run_train, "Distil or align; finds and resumes its own committed checkpoint."),
        (run_check, "Check all that can fail before a GPU is taken: files, shapes, placement against the cluster."),
        (run_fit_reward, "A reward model from your own preference pairs; goes on from its last checkpoint."),
    ):
        sub = verb(function, text)
        sub.add_argument("config", type=Path, help="YAML configuration")
        sub.add_argument(
            "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
        )
        if function is run_check:
            sub.add_argument(
                "--try", dest="try_rewards", action="store_true",
                help="start Ray, build each reward where it would run, and call it on two images",
            )  # fmt: skip
        if function is not run_fit_reward:
            sub.add_argument("--generator", metavar="RUN", help="begin where this finished run's folder ended")
    sample = verb(run_sample, "One step an image, of an exported generator.")
    sample.add_argument("pipeline", help="pipeline folder, a run's folder, or a hub's id")
    sample.add_argument("--prompt", action="append", default=[], help="several times for several prompts")
    sample.add_argument("--prompts", help="file of prompts, as data.prompts")
    sample.add_argument("--out", type=Path, required=True, help="PNG file; for several images a folder")
    sample.add_argument("--count", type=positive, default=1, help="images of each prompt (%(default)s)")
    sample.add_argument("--batch", type=positive, default=8, help="images at a time (%(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="of the first image's noise, counted up (%(default)s)")
    sample.add_argument("--device", help="cpu, cuda or cuda:1 (default: the first GPU, or the CPU)")
    sample.add_argument("--family", help="package.module:Class, where it was trained as a family of your own")
    evaluate = verb(run_evaluate, "Rewards, judge and diversity of a pipeline: a table, JSON and a side-by-side grid.")
    evaluate.add_argument("pipeline", help="pipeline folder, a run's folder, or a hub's id")
    evaluate.add_argument("--against", help="pipeline to compare with: a folder, or a hub's id")
    evaluate.add_argument("--config", type=Path, help="whose rewards and prompts (default: the run's config.yaml)")
    evaluate.add_argument("--out", type=Path, help="folder of evaluation.json and the grid (default: the run's)")
    export = verb(run_export, "A checkpoint as a diffusers pipeline folder.")
    export.add_argument("checkpoint", help="RUN (its latest), RUN@best, or RUN/checkpoints/step_NNNNNN")
    export.add_argument("out", type=Path)
    export.add_argument("--adapter", action="store_true", help="the LoRA alone, of a run that trained one")
    export.add_argument("--push", metavar="ORG/NAME", help="then upload the folder to this repository of the hub")
    export.add_argument("--private", action="store_true", help="with --push: nobody else sees the repository")
    service = verb(run_serve_rewards, "The reward service: scores and gradients for several trainers, until Ctrl-C.")
    service.add_argument("config", type=Path, help="YAML configuration of a service")
    service.add_argument(
        "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
    )
    service.add_argument("--detach", action="store_true", help="leave it in the cluster of RAY_ADDRESS and return")
    schema = verb(run_schema, "The JSON schema of a configuration, by which an editor completes and checks it.")
    schema.add_argument(
        "configuration", nargs="?", choices=("run", "service", "fit"), default="run", help="(%(default)s)"
    )
    report = verb(run_report, "Write report.html of a run's folder anew.")
    report.add_argument("folder", help="a run's folder, here or s3://")
    return top


def positive(text: str) -> int:
    """An argument that is 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run_demo(given) -> None:
    from dipp_ray.training.folder import require_writable

    require_writable(given.out)  # before Ray is started
    connect()
    from dipp_ray.miniature.demo import demo

    demo(given.out, print)


def settings_of(given) -> list[str]:
    """The settings of the command line, with those of --generator after them."""
    from dipp_ray.config import settings_of_run

    return [*given.settings, *(settings_of_run(given.generator) if given.generator else [])]


def run_train(given) -> None:
    from dipp_ray.config import load_config
    from dipp_ray.training.checks import check
    from dipp_ray.training.pinning import pinned_run

    config = pinned_run(load_config(given.config, settings_of(given)))
    check(config)  # before Ray is started: bad input answers at once
    connect()
    from dipp_ray.reporting.report import write_report
    from dipp_ray.training.home import publish
    from dipp_ray.training.train import train

    folder = train(config, print, evaluates=True)
    report = write_report(folder)
    print(f"report: {publish(config, report)}")


def run_check(given) -> None:
    import rich

    from dipp_ray.config import load_config
    from dipp_ray.training.checks import check, doubt_about_start, sizes_line, start_line
    from dipp_ray.training.pinning import pinned_run

    config = pinned_run(load_config(given.config, settings_of(given)))
    prompts = check(config)
    if doubt := doubt_about_start(config):
        print(doubt)
    require_sane_ray()
    in_cluster = "RAY_ADDRESS" in os.environ
    if in_cluster or given.try_rewards:
        connect()
    from dipp_ray.training.machine import this_machine
    from dipp_ray.training.placement import cluster_nodes
    from dipp_ray.training.plan import best_plan, requests
    from dipp_ray.training.sizes import allowed_sizes

    choices = [requests(config, sizes) for sizes in allowed_sizes(config)]
    planned = best_plan(choices, cluster_nodes() if in_cluster else [this_machine()])
    rich.print(planned.table())
    planned.require()
    print(start_line(config))
    if given.try_rewards:
        from dipp_ray.training.reward_trial import try_rewards

        try_rewards(config, prompts.first(2), print)
    where = "" if in_cluster else "; planned for this machine: RAY_ADDRESS names a cluster"
    print(f"{given.config}: ready. {len(prompts.texts)} prompts; {sizes_line(config)}{where}")


def run_fit_reward(given) -> None:
    from dipp_ray.preferences.command import fit_command

    fit_command(given.config, given.settings, connect)


def run_sample(given) -> None:
    from dipp_ray.data.prompts import read_prompts
    from dipp_ray.evaluation.sample_command import sample

    if not given.prompt and not given.prompts:
        raise UserError("there is nothing to sample: give --prompt TEXT, or --prompts FILE")
    read = read_prompts(given.prompts, "prompt").texts if given.prompts else []
    sample(
        given.pipeline,
        [*given.prompt, *read],
        given.out,
        seed=given.seed,
        count=given.count,
        batch=given.batch,
        device=given.device,
        family=given.family,
    )


def run_evaluate(given) -> None:
    from dipp_ray.evaluation.evaluate import evaluate_command

    evaluate_command(given.pipeline, given.against, given.config, given.out, print, connect)


def run_export(given) -> None:
    from dipp_ray.training.export_command import export_command, push_command

    if given.private and not given.push:
        raise UserError("--private is about the repository of --push: give that too, or leave it out")
    if given.push:
        push_command(given.checkpoint, given.out, given.push, given.private, print, given.adapter)
    else:
        print(export_command(given.checkpoint, given.out, given.adapter))


def run_serve_rewards(given) -> None:
    from dipp_ray.serving.deploy.config import ServiceConfig
    from dipp_ray.serving.deploy.pinning import pinned_service
    from dipp_ray.settings import load_settings

    def read() -> ServiceConfig:
        return pinned_service(load_settings(given.config, given.settings, ServiceConfig))

    config = read()
    from dipp_ray.serving.deploy.check import check_service

    check_service(config)  # before Ray is started: bad input answers at once
    if given.detach and "RAY_ADDRESS" not in os.environ:
        raise UserError("--detach leaves the service in a running cluster: set RAY_ADDRESS to one")
    from dipp_ray.serving.deploy.command import serve_rewards
    from dipp_ray.serving.deploy.listening import require_port

    if "RAY_ADDRESS" not in os.environ:  # in a running cluster Serve may listen there already
        require_port(config.http)
    connect()
    serve_rewards(config, read, given.detach, print)


def run_schema(given) -> None:
    from dipp_ray.schema import json_schema

    print(json_schema(given.configuration), end="")


def run_report(given) -> None:
    from dipp_ray.evaluation.folders import run_in_store
    from dipp_ray.reporting.report import write_report

    remote = run_in_store(given.folder)
    folder = remote.fetch() if remote else Path(given.folder)
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{given.folder} is no run's folder (no metrics.jsonl): give the folder that `train` wrote")
    report = write_report(folder)
    if remote:
        remote.push()
    print(f"{remote.url}/{report.name}" if remote else report)


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (as a Ray job does), or start one on this machine, by Ray's token alone."""
    # Ray listens on every interface even for a cluster of one machine. Unless RAY_AUTH_MODE says otherwise it makes a
    # token for a cluster that it starts (~/.ray/auth_token), without which nobody else can run code here.
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    require_sane_ray()
    address = os.environ.get("RAY_ADDRESS", "local")
    local = address == "local"
    print("starting Ray on this machine" if local else f"joining the Ray cluster at {address}")
    if local:  # Serve's controller would look at every replica ten times a second, for 3% of a core
        os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
    try:
        if not local:
            require_listener(address)
        ray.init(address=address, log_to_driver=False, include_dashboard=False if local else None)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if "AF_UNIX path" in reason:
            raise UserError(
                "the folder of RAY_TMPDIR or TMPDIR is too long for the sockets that Ray puts there: set RAY_TMPDIR to "
                "a short one, such as /tmp/r"
            ) from None
        if local:
            raise UserError(f"Ray did not start: {reason}; its logs are in /tmp/ray/session_latest/logs") from error
        raise UserError(f"RAY_ADDRESS={address}: {reason}: correct it, or start that cluster") from error


def require_sane_ray() -> None:
    """Raise UserError for what would make Ray start otherwise than meant: a RAY_AUTH_MODE that it does not know turns
    authentication off without a word, and files called like modules end its processes."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode not in AUTH_MODES:
        raise UserError(f"RAY_AUTH_MODE={mode}: write {' or '.join(AUTH_MODES)}, or unset it for a token of Ray's own")
    refuse_shadows({os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0]))})


def require_listener(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would try for a minute and more."""
    if not address.strip():
        raise OSError("it is empty, which Ray takes for any cluster that it finds: unset it, or write host:port")
    if address.startswith(("http://", "https://")):
        raise OSError("that is where a dashboard takes jobs: write host:port of the cluster, such as 10.0.0.5:6379")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            pass


if __name__ == "__main__":
    sys.exit(main())
