"""The arguments of the `dipp-ray` command, verb by verb."""

import argparse
from importlib.metadata import version
from pathlib import Path

from dipp_ray import verbs


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="dipp-ray",
        description="Align one-step text-to-image generators with human preferences by Diff-Instruct++.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {version('dipp-ray')}")
    added = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(function, text: str) -> argparse.ArgumentParser:
        name = function.__name__.removeprefix("run_").replace("_", "-")
        sub = added.add_parser(name, help=text, description=text)
        sub.set_defaults(run=function, usage=sub.format_usage)
        return sub

    demo = verb(
        verbs.run_demo, "The whole pipeline on the miniature: build, fit the reward, distil, align, evaluate, report."
    )
    demo.add_argument("--out", type=Path, default=Path("runs"), help="where the run folders go (%(default)s)")
    for function, text in (
        (verbs.run_train, "Distil or align; finds and resumes its own committed checkpoint."),
        (
            verbs.run_check,
            "Check all that can fail before a GPU is taken: files, shapes, placement against the cluster.",
        ),
        (verbs.run_fit_reward, "A reward model from your own preference pairs; goes on from its last checkpoint."),
    ):
        sub = verb(function, text)
        sub.add_argument("config", type=Path, help="YAML configuration")
        sub.add_argument(
            "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
        )
        if function is verbs.run_check:
            sub.add_argument(
                "--try", dest="try_rewards", action="store_true",
                help="start Ray, build each reward where it would run, and call it on two images",
            )  # fmt: skip
        if function is not verbs.run_fit_reward:
            sub.add_argument("--generator", metavar="RUN", help="begin where this finished run's folder ended")
    encode = verb(verbs.run_encode, "The prompts' embeddings, once and for all: parquet that training reads by row.")
    encode.add_argument("config", type=Path, help="YAML configuration of a run: its teacher, prompts and roles.text")
    encode.add_argument("out", help="folder of the embeddings, local or s3://; goes on with what is missing there")
    encode.add_argument(
        "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
    )
    encode.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="as stored (%(default)s)")
    encode.add_argument("--actors", type=positive, default=1, help="encoders side by side (%(default)s)")
    encode.add_argument("--rows", type=positive, default=512, help="prompts of a shard (%(default)s)")
    sample = verb(verbs.run_sample, "One step an image, of an exported generator.")
    sample.add_argument("pipeline", help="pipeline folder, a run's folder, or a hub's id")
    sample.add_argument("--prompt", action="append", default=[], help="several times for several prompts")
    sample.add_argument("--prompts", help="file of prompts, as data.prompts")
    sample.add_argument("--out", type=Path, required=True, help="PNG file; for several images a folder")
    sample.add_argument("--count", type=positive, default=1, help="images of each prompt (%(default)s)")
    sample.add_argument("--batch", type=positive, default=8, help="images at a time (%(default)s)")
    sample.add_argument("--seed", type=seed, default=0, help="of the first image's noise, counted up (%(default)s)")
    sample.add_argument("--device", help="cpu, cuda or cuda:1 (default: the first GPU, or the CPU)")
    sample.add_argument("--family", help="package.module:Class, where it was trained as a family of your own")
    evaluate = verb(
        verbs.run_evaluate, "Rewards, judge and diversity of a pipeline: a table, JSON and a side-by-side grid."
    )
    evaluate.add_argument("pipeline", help="pipeline folder, a run's folder, or a hub's id")
    evaluate.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that override the run's")
    evaluate.add_argument("--against", help="pipeline to compare with: a folder, or a hub's id")
    evaluate.add_argument("--config", type=Path, help="whose rewards and prompts (default: the run's config.yaml)")
    evaluate.add_argument("--out", type=Path, help="folder of evaluation.json and the grid (default: the run's)")
    export = verb(verbs.run_export, "A checkpoint as a diffusers pipeline folder.")
    export.add_argument("checkpoint", help="RUN (its latest), RUN@best, or RUN/checkpoints/step_NNNNNN")
    export.add_argument("out", type=Path)
    export.add_argument("--adapter", action="store_true", help="the LoRA alone, of a run that trained one")
    export.add_argument("--push", metavar="ORG/NAME", help="then upload the folder to this repository of the hub")
    export.add_argument("--private", action="store_true", help="with --push: nobody else sees the repository")
    service = verb(
        verbs.run_serve_rewards, "The reward service: scores and gradients for several trainers, until Ctrl-C."
    )
    service.add_argument("config", type=Path, help="YAML configuration of a service")
    service.add_argument(
        "settings", nargs="*", metavar="section.key=value", help="settings that override it, or YAML files of such"
    )
    service.add_argument("--detach", action="store_true", help="leave it in the cluster of RAY_ADDRESS and return")
    job = verb(verbs.run_submit, "A command as a job on a cluster: its log is shown until it ends.")
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
    schema = verb(verbs.run_schema, "The JSON schema of a configuration, by which an editor completes and checks it.")
    schema.add_argument(
        "configuration", nargs="?", choices=("run", "service", "fit"), default="run", help="(%(default)s)"
    )
    report = verb(verbs.run_report, "Write report.html of a run's folder anew.")
    report.add_argument("folder", help="a run's folder, here or s3://")
    return top


def positive(text: str) -> int:
    """An argument that is 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seed(text: str) -> int:
    """An argument that noise may be keyed by: 0 or more, with room to count up."""
    number = int(text)
    if not 0 <= number < 2**62:
        raise ValueError
    return number


def count(text: str) -> int:
    """An argument that is 0 or more."""
    return 0 if text == "0" else positive(text)
