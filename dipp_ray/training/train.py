"""One run from its configuration to the exported pipeline: check, place, start or resume, train, export, end."""

import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts
from dipp_ray.errors import TOLD, RoleFailure, RunFolderLost, UserError
from dipp_ray.head import watched_head
from dipp_ray.models.reading import settled
from dipp_ray.reporting.metrics import MetricsLog
from dipp_ray.reporting.progress import ProgressLine
from dipp_ray.serving.deploy.signals import ending
from dipp_ray.storage.aside import whole_file
from dipp_ray.storage.locks import Held
from dipp_ray.training.checks import check, doubt_about_start
from dipp_ray.training.contents import contents_of
from dipp_ray.training.evaluation import evaluate_placed
from dipp_ray.training.export import export_run, exported_step
from dipp_ray.training.faults import GOES_ON, broke, resumable
from dipp_ray.training.folder import only_trainer, require_folder
from dipp_ray.training.home import Home
from dipp_ray.training.pinning import pinned_run
from dipp_ray.training.placement import can_grow, cluster_nodes, reserve
from dipp_ray.training.plan import GROUPS, best_plan, requests
from dipp_ray.training.roles import start_roles
from dipp_ray.training.run import Run, Say
from dipp_ray.training.sessions import Sessions
from dipp_ray.training.sharing import text_beside_trainer
from dipp_ray.training.sizes import allowed_sizes
from dipp_ray.training.trajectory import difference, trajectory

LAST_WRITE_S = 30.0  # so long a run that fails waits for a checkpoint that its ranks are writing


def train(config: RunConfig, say: Say = print, evaluates: bool = False) -> Path:
    """Run or resume a training run to its end; returns the run's folder. Needs a connected Ray.

    evaluates: its end is an evaluation, in the room of its roles and by its own reward service.

    Models of the hub are pinned to commits first, those that the run had where it is resumed: the recorded
    configuration names them. Raises UserError for bad input before anything starts. Ctrl-C or SIGTERM saves a
    checkpoint and stops; the same command goes on from there.
    """
    config = settled(pinned_run(config))
    prompts = check(config)
    home = Home(config)
    with only_trainer(config) as lock, watched_head(say, GOES_ON):
        home.enter()
        try:
            return _train(config, prompts, say, lock, home, evaluates)
        finally:
            home.push()


def _train(config: RunConfig, prompts: Prompts, say: Say, lock: Held, home: Home, evaluates: bool) -> Path:
    store = CheckpointStore(config.checkpoints, say)
    checkpoint = store.latest(lambda record: difference(record, config), thorough=True)
    if checkpoint and checkpoint.step >= config.run.steps:
        say(f"{config.place}: all {checkpoint.step} steps are done already; delete the folder to start anew")
        if exported_step(config) != checkpoint.step:
            export_run(config, store, checkpoint, prompts, say)
        home.push()
        if evaluates:
            evaluate_placed(config, say)
        return config.path
    if checkpoint is None and (doubt := doubt_about_start(config)):
        say(doubt)
    choices = [requests(config, sizes) for sizes in allowed_sizes(config)]
    planned = best_plan(choices, cluster_nodes())
    print_table(planned.table())
    try:
        if warning := text_beside_trainer(config, planned):
            say(warning)
        if not can_grow():
            planned.require()
        contents = contents_of(trajectory(config))  # before anything is reserved, for it may take a while once
        room, rest = reserve(choices, config.roles.wait_s, say).split(GROUPS)
    except UserError as error:
        raise (resumable(error, checkpoint.step) if checkpoint else error) from None
    with whole_file(config.path / "config.yaml") as aside:
        aside.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    home.push()
    roles = run = None
    try:
        roles = start_roles(config, rest, say)
        run = Run(config, Sessions(config, roles, room, prompts, store, say), store, say, contents)
        done = run.start(lambda: checkpoint)
        if done:
            say(f"resumed from the checkpoint of step {done}")
        with (
            MetricsLog(config.path, config.log.trackers, lambda text: run.say(text)) as metrics,
            ProgressLine(config.run.steps, done, config.run.name) as progress,
            interrupts(run),
        ):

            def still_there(step: int) -> None:
                require_folder(config, lock, metrics, step)
                home.require(step)

            metrics.resume(done if checkpoint else -1)
            run.say_by(progress.say)
            done = run.loop(done, metrics, progress, still_there, home.push)
        run.say_by(say)
        if run.interrupted and done < config.run.steps:
            raise KeyboardInterrupt
        if run.gives_up:
            say(f"stopped at step {done}: {run.state.in_words()}")
        try:
            export_run(config, store, store.require(done), prompts, say, run.controller)
        except RoleFailure as failure:  # the weights are on disk: the comparison is with the checkpoint's then
            say(f"exporting without the ranks: {failure}")
            export_run(config, store, store.require(done), prompts, say)
        home.push()
        if evaluates:
            evaluate_placed(config, say, run)
    except BaseException as error:
        if run is not None and isinstance(error, Exception):
            with suppress(Exception):  # what failed first is what a person must read
                run.saver.commit_if_written(LAST_WRITE_S)
        with suppress(Exception):
            room.release()
            rest.release()
            if run is not None:
                run.close()
            if roles is not None:
                roles.stop()
        if isinstance(error, TOLD):
            raise resumable(error, _saved(store)) from None
        if isinstance(error, Exception) and not isinstance(error, (RoleFailure, RunFolderLost)):
            raise broke(error, getattr(error, "cause", None) or error, config.path / "error.txt") from None
        raise
    run.close()
    roles.stop()
    return config.path


def _saved(store: CheckpointStore) -> int | None:
    """The newest committed step, if it can be told."""
    with suppress(Exception):
        return max(store.steps(), default=None)
    return None


@contextmanager
def interrupts(run: Run):
    """Ctrl-C, SIGTERM and a terminal that is closed end the run after the step in hand, with a checkpoint; a second one
    ends it at once. What was ignored when the program was started, as `nohup` does, stays so."""

    def stop(number, frame):
        if run.interrupted:
            raise KeyboardInterrupt
        run.interrupted = True
        run.say("stopping after this step, with a checkpoint; once more to stop at once")

    before = {number: signal.signal(number, stop) for number in ending()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_table(table) -> None:
    import rich

    rich.print(table)
