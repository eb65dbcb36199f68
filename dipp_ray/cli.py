"""The `dipp-ray` command: one thin function a verb."""

import argparse
import atexit
import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from dipp_ray.connecting import connect, require_sane_ray
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
            raise UserError(as_setting(given.verb, rest))
        given.run(given)

    return guarded(run)


def as_setting(verb: str, unknown: list[str]) -> str:
    """What to write in place of arguments that a verb does not know: settings are no options here."""
    from dipp_ray.config import RunConfig
    from dipp_ray.settings import nearest_keys

    if verb == "submit":
        return f"submit does not know {unknown[0]}: write -- before the command that the job runs"
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
    encode = verb(run_encode, "The prompts' embeddings, once and for all: parquet that training reads by row.")
    encode.add_argument("config", type=Path, help="YAML configuration of a run: its teacher, prompts and roles.text")
    encode.add_argument("out", help="folder of the embeddings, local or s3://; goes on with what is missing there")
    encode.add_argument(
        "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
    )
    encode.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="as stored (%(default)s)")
    encode.add_argument("--actors", type=positive, default=1, help="encoders side by side (%(default)s)")
    encode.add_argument("--rows", type=positive, default=512, help="prompts of a shard (%(default)s)")
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
    evaluate.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that override the run's")
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
    job = verb(run_submit, "A command as a job on a cluster: its log is shown until it ends.")
    job.add_argument("command", nargs="*", help="behind --, as in: -- python jobs/align.py CONFIG")
    job.add_argument("--address", help="the dashboard's URL (default: RAY_API_SERVER_ADDRESS, or this machine's)")
    job.add_argument("--working-dir", type=Path, default=Path("."), help="folder that the job runs in a copy of")
    job.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="variable of the job's")
    job.add_argument("--on", metavar="head|LABEL=VALUE", help="node that the command runs on")
    job.add_argument("--retries", type=count, default=0, help="submit it again so often when it fails (%(default)s)")
    job.add_argument("--detach", action="store_true", help="return when it is submitted")
    instead = job.add_mutually_exclusive_group()
    instead.add_argument("--follow", metavar="JOB", help="show the log of a job until it ends")
    instead.add_argument("--status", metavar="JOB", help="say how a job is")
    instead.add_argument("--stop", metavar="JOB", help="end a job; submitted again, training goes on")
    instead.add_argument("--list", action="store_true", help="every job of the cluster")
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


def count(text: str) -> int:
    """An argument that is 0 or more."""
    return 0 if text == "0" else positive(text)


def run_demo(given) -> None:
    from dipp_ray.training.folder import require_writable

    require_writable(given.out)  # before anything is started
    require_sane_ray()
    from dipp_ray.miniature.demo import demo

    demo(given.out, print, connect)


def settings_of(given) -> list[str]:
    """The settings of the command line, with those of --generator after them."""
    from dipp_ray.config import settings_of_run

    return [*given.settings, *(settings_of_run(given.generator) if given.generator else [])]


def looked_at(given):
    """The configuration of a run, its models at commits of the hub, after a first look: what is wrong in it is said
    before the libraries of models are loaded, which takes seconds."""
    from dipp_ray.config import load_config
    from dipp_ray.training.first_look import first_look
    from dipp_ray.training.pinning import pinned_run

    config = pinned_run(load_config(given.config, settings_of(given)))
    first_look(config)
    return config


def run_train(given) -> None:
    config = looked_at(given)
    from dipp_ray.training.checks import check

    check(config)  # before Ray is started: bad input answers at once
    connect()
    from dipp_ray.reporting.report import write_report
    from dipp_ray.training.home import publish
    from dipp_ray.training.train import train

    folder = train(config, print, evaluates=True)
    report = write_report(folder)
    print(f"report: {publish(config, report)}")


def run_check(given) -> None:
    config = looked_at(given)
    import rich

    from dipp_ray.models.pipeline import frame_of
    from dipp_ray.training.checks import check, doubt_about_start, embeddings_line, sizes_line, start_line

    prompts = check(config)
    if doubt := doubt_about_start(config):
        print(doubt)
    require_sane_ray()
    in_cluster = "RAY_ADDRESS" in os.environ
    if in_cluster or given.try_rewards:
        connect()
    from dipp_ray.training.footprint import footprint_lines
    from dipp_ray.training.machine import this_machine
    from dipp_ray.training.placement import cluster_nodes
    from dipp_ray.training.plan import best_plan, requests
    from dipp_ray.training.sizes import Sizes, allowed_sizes

    choices = [requests(config, sizes) for sizes in allowed_sizes(config)]
    planned = best_plan(choices, cluster_nodes() if in_cluster else [this_machine()])
    rich.print(planned.table())
    planned.require()
    print(start_line(config))
    for line in footprint_lines(config, frame_of(config.model), Sizes.of(planned.requests)):
        print(line)
    print(embeddings_line(config))
    if given.try_rewards:
        from dipp_ray.training.reward_trial import try_rewards

        try_rewards(config, prompts.first(2), print)
    where = "" if in_cluster else "; planned for this machine: RAY_ADDRESS names a cluster"
    print(f"{given.config}: ready. {len(prompts):,} prompts; {sizes_line(config)}{where}")


def run_fit_reward(given) -> None:
    from dipp_ray.preferences.config import load_fit_config

    config = load_fit_config(given.config, given.settings)  # said before the libraries are loaded
    from dipp_ray.preferences.command import fit_command

    fit_command(config, connect)


def run_encode(given) -> None:
    from dipp_ray.config import load_config
    from dipp_ray.training.pinning import pinned_run

    config = pinned_run(load_config(given.config, given.settings))
    from dipp_ray.encoding.command import encode

    def encoders(config):
        connect()  # once all has been looked at
        from dipp_ray.encoding.placed import placed_encoders

        return placed_encoders(config, given.actors, print)

    encode(config, given.out, encoders, print, given.dtype, given.rows)


def run_sample(given) -> None:
    if not given.prompt and not given.prompts:
        raise UserError("there is nothing to sample: give --prompt TEXT, or --prompts FILE")
    from dipp_ray.data.prompts import read_prompts

    read = list(read_prompts(given.prompts, "prompt")) if given.prompts else []
    from dipp_ray.evaluation.sample_command import sample

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

    def placed(config, say):
        from dipp_ray.training.evaluation import evaluators

        return evaluators(config, say)

    evaluate_command(given.pipeline, given.against, given.config, given.out, given.settings, print, connect, placed)


def run_export(given) -> None:
    if given.private and not given.push:
        raise UserError("--private is about the repository of --push: give that too, or leave it out")
    from dipp_ray.training.export_command import export_command, push_command

    if given.push:
        push_command(given.checkpoint, given.out, given.push, given.private, print, given.adapter)
    else:
        export_command(given.checkpoint, given.out, print, given.adapter)


def run_serve_rewards(given) -> None:
    # Too early to read the configuration anew, and by itself it would end the process.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    from dipp_ray.serving.deploy.config import ServiceConfig
    from dipp_ray.serving.deploy.pinning import pinned_service
    from dipp_ray.settings import load_settings

    config = pinned_service(load_settings(given.config, given.settings, ServiceConfig))
    from dipp_ray.serving.deploy.check import check_service

    check_service(config)  # before Ray is started: bad input answers at once
    if given.detach and "RAY_ADDRESS" not in os.environ:
        raise UserError("--detach leaves the service in a running cluster: set RAY_ADDRESS to one")
    from dipp_ray.serving.deploy.command import serve_rewards
    from dipp_ray.serving.deploy.listening import require_port

    if "RAY_ADDRESS" not in os.environ:  # in a running cluster Serve may listen there already
        require_port(config.http)
    connect()
    from dipp_ray.training.service_room import require_room

    def read() -> ServiceConfig:
        """The configuration anew: what the cluster cannot hold is refused, at the start as at each reading."""
        new = pinned_service(load_settings(given.config, given.settings, ServiceConfig))
        require_room(new)
        return new

    require_room(config)
    serve_rewards(config, read, given.detach, print)


def run_submit(given) -> None:
    from dipp_ray.submission.cluster import address_of_jobs, open_jobs
    from dipp_ray.submission.command import run

    require_sane_ray()
    run(given, lambda: open_jobs(address_of_jobs(given.address)))


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


if __name__ == "__main__":
    sys.exit(main())
