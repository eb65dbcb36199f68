"""What the `dipp-ray` command does: one thin function a verb, given its arguments."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dipp_ray.connecting import connect, require_sane_ray
from dipp_ray.errors import UserError


@contextmanager
def joined(goes_on: str) -> Iterator[None]:
    """Within, Ray is connected and its head is watched: `goes_on` says what to do where that is lost."""
    from dipp_ray.head import watched_head

    connect()
    with watched_head(print, goes_on):
        yield


@contextmanager
def libraries() -> Iterator[None]:
    """Within, the libraries of models are loaded, which takes seconds, and on a busy machine many: a person sees it."""
    from dipp_ray.reporting.waiting import waiting

    with waiting("the libraries of models"):
        yield


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
    with libraries():
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
    with libraries():
        from dipp_ray.training.checks import check, doubt_about_start

    prompts = check(config)
    if doubt := doubt_about_start(config):
        print(doubt)
    require_sane_ray()
    in_cluster = "RAY_ADDRESS" in os.environ
    with ExitStack() as stack:
        if in_cluster or given.try_rewards:
            stack.enter_context(joined("start it anew, and the same command checks again"))
        check_room(given, config, prompts, in_cluster)


def check_room(given, config, prompts, in_cluster: bool) -> None:
    """What `check` says of the processes of a run, once what it is about was found to be there."""
    import rich

    from dipp_ray.models.pipeline import frame_of
    from dipp_ray.training.checks import embeddings_line, sizes_line, start_line
    from dipp_ray.training.footprint import footprint_lines, held
    from dipp_ray.training.machine import this_machine
    from dipp_ray.training.placement import cluster_nodes
    from dipp_ray.training.plan import best_plan, requests
    from dipp_ray.training.sharing import sharing_lines, text_beside_trainer
    from dipp_ray.training.sizes import Sizes, allowed_sizes

    choices = [requests(config, sizes) for sizes in allowed_sizes(config)]
    planned = best_plan(choices, cluster_nodes() if in_cluster else [this_machine()])
    rich.print(planned.table())
    planned.require()
    frame, sizes = frame_of(config.model), Sizes.of(planned.requests)
    if warning := text_beside_trainer(config, planned):
        print(warning)
    print(start_line(config))
    processes = held(config, frame, sizes)
    for line in [
        *footprint_lines(config, frame, sizes, processes),
        *sharing_lines(config, planned, processes),
    ]:
        print(line)
    print(embeddings_line(config))
    if given.try_rewards:
        from dipp_ray.training.reward_trial import try_rewards

        try_rewards(config, prompts.first(2), print)
    where = "" if in_cluster else "; planned for this machine (where RAY_ADDRESS names a cluster, for that)"
    print(f"{given.config}: ready. {len(prompts):,} prompts; {sizes_line(config)}{where}")


def run_fit_reward(given) -> None:
    from dipp_ray.preferences.config import load_fit_config

    config = load_fit_config(given.config, given.settings)  # said before the libraries are loaded
    from dipp_ray.preferences.command import fit_command

    fit_command(config, connect)


def run_encode(given) -> None:
    from dipp_ray.config import load_config
    from dipp_ray.training.pinning import pinned_run

    config = load_config(given.config, given.settings)
    if config.data.embeddings is None:
        from dipp_ray.data.prompt_files import open_texts

        open_texts(config.data.prompts, config.data.column, "data.prompts")  # said before the libraries are loaded
    config = pinned_run(config)
    from dipp_ray.encoding.command import encode

    @contextmanager
    def encoders(config):
        from dipp_ray.encoding.placed import GOES_ON, placed_encoders

        # Joined once all has been looked at.
        with joined(GOES_ON), placed_encoders(config, given.actors, print) as started:
            yield started

    encode(config, given.out, encoders, print, given.dtype, given.rows)


def run_sample(given) -> None:
    if not given.prompt and not given.prompts:
        raise UserError("there is nothing to sample: give --prompt TEXT, or --prompts FILE")
    from dipp_ray.evaluation.folders import require_pipeline

    require_pipeline(given.pipeline)  # said before the libraries are loaded
    from dipp_ray.data.prompts import read_prompts

    read = list(read_prompts(given.prompts, "prompt", "--prompts")) if given.prompts else []
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
    from dipp_ray.config import load_config
    from dipp_ray.evaluation.folders import recorded_here, require_pipeline

    for folder in filter(None, (given.pipeline, given.against)):
        require_pipeline(folder)  # said before the libraries are loaded, and so are settings
    if recorded := given.config or recorded_here(given.pipeline):
        load_config(recorded, given.settings)
    from dipp_ray.evaluation.evaluate import evaluate_command

    def placed(config, say):
        from dipp_ray.training.evaluation import evaluators

        return evaluators(config, say)

    def in_cluster():
        from dipp_ray.training.evaluation import GOES_ON

        return joined(GOES_ON)

    evaluate_command(given.pipeline, given.against, given.config, given.out, given.settings, print, in_cluster, placed)


def run_export(given) -> None:
    if given.private and not given.push:
        raise UserError("--private is about the repository of --push: give that too, or leave it out")
    from dipp_ray.training.checkpoint_name import named

    named(given.checkpoint)  # said before the libraries are loaded
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
    from dipp_ray.training.service_room import require_room

    def read() -> ServiceConfig:
        """The configuration anew: what the cluster cannot hold is refused, at the start as at each reading."""
        new = pinned_service(load_settings(given.config, given.settings, ServiceConfig))
        require_room(new)
        return new

    with joined("the service is lost with it, and the same command begins it again"):
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
