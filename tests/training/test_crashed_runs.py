"""A whole run, whatever operation of its storage fails and wherever it is killed: the same command ends it, to the bit.

All of `train` but the roles: what they compute is a function of the step here, so that a run takes a moment.
"""

from contextlib import nullcontext, suppress
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.errors import RoleFailure, RunFolderLost, StorageUnavailable, UserError
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.metrics import grid_of, read_metrics
from dipp_ray.storage import remote
from dipp_ray.storage.aside import whole_folder
from dipp_ray.training import run as run_module
from dipp_ray.training import saving
from dipp_ray.training import train as training
from dipp_ray.training.controller import StepResult
from dipp_ray.training.folder import check_folder
from dipp_ray.training.looks import Look
from dipp_ray.training.session import Committed
from dipp_ray.training.sizes import Sizes
from dipp_ray.training.watch import Seen
from disk import Disk
from settings import tiny_config

STEPS, EVERY, LOOKS = 8, 3, 4
JUDGE = {"models": [{"name": "gold", "held_out": True}]}
EXPECTED = (UserError, StorageUnavailable, RunFolderLost, RoleFailure, OSError)


def after(steps: int) -> torch.Tensor:
    """The state of either group after so many steps, one after the other from the start."""
    state = torch.linspace(-1, 1, 50)
    for step in range(steps):
        state = (state * 1.7 + step).sin()
    return state


class Session:
    """A session without ranks, which takes its state from a checkpoint and writes it there."""

    def __init__(self, store, checkpoint):
        self.store, self.controller, self.sizes = store, self, Sizes(1, 1, 1)
        self.actors, self.reward_deviation = SimpleNamespace(count=lambda role: 1, of=self._rank), 1.0
        self.begun = {}  # by group: what is to be written, as it was when that was asked for
        self.state = store.read_group(checkpoint, "score")[0]["w"] if checkpoint else after(0)

    def _rank(self, role, index):
        return SimpleNamespace(share_written=SimpleNamespace(remote=lambda: lambda: self._written(role)))

    def _written(self, role):
        url, step, state = self.begun[role]
        return CheckpointStore(url).write_share(step, role, 0, 1, {"w": state}, {"step": step})

    def run_until(self, first, ends_after):
        done, last = first, False
        while not last:
            last = ends_after(done + 1)
            self.state = (self.state * 1.7 + done).sin()
            yield StepResult(done, {"score_loss": float(self.state.sum())}, {}, last)
            done += 1

    def together(self, role, method, *arguments):
        if method == "write_share":
            self.begun[role] = (*arguments, self.state)
        return [self._written(role) if method == "share_written" else None]

    def warm_score_up(self):
        pass

    def end_ranks(self):
        pass


class Sessions:
    def __init__(self, config, roles, room, prompts, store, say):
        self.roles, self.store, self.current = roles, store, None
        self.memory = SimpleNamespace(every=0, complete=0, lost=False, is_due=lambda done: False)
        nothing = lambda *_, **__: None  # noqa: E731
        self.telemetry = SimpleNamespace(add=nothing, set=nothing, busy=nothing)
        self.say_by = self.finished = self.moves = self.close = self.reason_to_move = nothing

    def open(self, find, saved, remembered):
        checkpoint = find()
        self.current = Session(self.store, checkpoint)
        return Committed(checkpoint, self.store.url) if checkpoint else None

    def survive(self, fault, done):
        raise fault


class Watch:
    def __init__(self, config, controller):
        self.config, self.controller = config, controller

    def look(self, step):
        save_grid(np.full((4, 3, 8, 8), 0.5, np.float32), grid_of(self.config.path, step), 2, ["a"] * 4)
        scores = self.controller.state[:8].numpy()
        return Seen({"held_out/gold": float(scores.mean())}, {"gold": Look.of(step, scores)})


def export(config, store, checkpoint, prompts, say, controller=None):
    with whole_folder(config.path / "pipeline") as aside:
        (aside / "exported.json").write_text(str(checkpoint.step))


def exported_step(config):
    file = config.path / "pipeline" / "exported.json"
    return int(file.read_text()) if file.is_file() else None


@pytest.fixture
def without_roles(monkeypatch):
    def checked(config):
        check_folder(config)
        return []

    placement = SimpleNamespace(release=lambda: None)
    planned = SimpleNamespace(table=lambda: "", require=lambda: None, requests=())
    roles = SimpleNamespace(service=JUDGE, stop=lambda: None)
    for name, value in {
        "settled": lambda config: config,
        "pinned_run": lambda config: config,
        "check": checked,
        "watched_head": lambda *_: nullcontext(),
        "doubt_about_start": lambda config: None,
        "requests": lambda *_: [],
        "cluster_nodes": list,
        "best_plan": lambda *_: planned,
        "can_grow": lambda: False,
        "contents_of": lambda _: {},
        "reserve": lambda *_: SimpleNamespace(split=lambda _: (placement, placement)),
        "start_roles": lambda *_: roles,
        "Sessions": Sessions,
        "export_run": export,
        "exported_step": exported_step,
        "print_table": lambda table: None,
    }.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(run_module, "Watch", Watch)
    asked = count()  # shares are there when they are asked after for the second time: a step later
    wait = lambda written, **_: (written, []) if next(asked) % 2 else ([], written)  # noqa: E731
    monkeypatch.setattr(saving, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(saving, "value_of", lambda written: written())
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of them: what counts is where they stand


def config_of(folder, here):
    steps = [f"run.steps={STEPS}", f"checkpoint.every={EVERY}", f"log.samples_every={LOOKS}"]
    return tiny_config(folder, here / "teacher", here / "prompts.parquet", f"run.folder={folder}", *steps)


def train(config):
    return training.train(config, lambda _: None)


def assert_committed_ones_are_whole(config):
    store = CheckpointStore(config.checkpoints, say=lambda _: None)
    for step in store.steps():
        for group in ("generator", "score"):
            assert torch.equal(store.read_group(store.require(step), group)[0]["w"], after(step))


def assert_ends(config, where):
    """The same command, undisturbed: the run's end is that of the run that nothing happened to."""
    train(config)
    assert_committed_ones_are_whole(config)
    store = CheckpointStore(config.checkpoints, say=lambda _: None)
    assert store.latest(thorough=True).step == STEPS, where
    losses = [record.get("score_loss") for record in read_metrics(config.path)]
    assert losses[1:] == [float(after(step).sum()) for step in range(1, STEPS + 1)], where
    assert exported_step(config) == STEPS and (config.path / "config.yaml").is_file(), where


def crashed(tmp_path, for_good, stride, first=0):
    """Whole runs, each of which fails at one operation more than the one before; returns how many operations it has."""
    number = first
    while True:
        folder = tmp_path / f"{for_good}-{number}"
        folder.mkdir()
        config = config_of(folder, tmp_path)
        disk = Disk(folder, number, for_good)
        with suppress(*EXPECTED), disk.recording():
            train(config)
        assert_committed_ones_are_whole(config)
        assert_ends(config, (number, disk.failed))
        if disk.count <= number:
            return disk.count
        number += stride


@pytest.mark.parametrize("for_good", [False, True], ids=["fails", "killed"])
def test_whatever_operation_of_a_run_fails(tmp_path, without_roles, for_good):
    assert crashed(tmp_path, for_good, stride=29, first=7) > 100


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["fails", "killed"])
def test_every_single_operation_of_a_run_fails(tmp_path, without_roles, for_good):
    assert crashed(tmp_path, for_good, stride=1) > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reset", "500"])
def test_a_run_in_a_bucket_that_is_cut_off_at_any_request_ends_elsewhere(
    bucket, s3, tmp_path, without_roles, monkeypatch, kind
):
    """Nothing is answered from a request on; then the same command runs on another machine, which has no copy."""
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    number, finished = 0, False
    while not finished:
        config = config_of(f"{bucket}/{kind}{number}", tmp_path)
        monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path / f"{number}-a"))
        with suppress(*EXPECTED), s3.faults(lambda at, method, path, n=number: kind if at >= n else None):
            train(config)
        finished = len(s3.requests) <= number
        monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path / f"{number}-b"))
        assert_committed_ones_are_whole(config)
        assert_ends(config, number)
        number += 7
    assert number > 50


def test_a_run_that_waited_for_room_in_vain_says_how_it_goes_on(tmp_path, without_roles, monkeypatch):
    """docs/elastic.md: where the room does not come within roles.wait_s the run ends, and goes on from there."""

    def no_room(*_):
        raise UserError("after 600 s the cluster still has no room: add nodes\nits table")

    config, reserve = config_of(tmp_path, tmp_path), training.reserve
    monkeypatch.setattr(training, "reserve", no_room)
    with pytest.raises(UserError, match=r"add nodes\nits table$"):  # nothing is there to go on from
        train(config)
    monkeypatch.setattr(training, "reserve", reserve)
    train(config.model_copy(update={"run": config.run.model_copy(update={"steps": EVERY})}))
    monkeypatch.setattr(training, "reserve", no_room)
    with pytest.raises(UserError, match=rf"add nodes; the same command goes on from step {EVERY}\nits table$"):
        train(config)
    planned = SimpleNamespace(table=lambda: "", require=no_room, requests=())
    monkeypatch.setattr(training, "best_plan", lambda *_: planned)
    with pytest.raises(UserError, match=rf"the same command goes on from step {EVERY}\nits table$"):
        train(config)


# -- what becomes of a checkpoint that is being written ----------------------------------------------------------------


def plain_run(tmp_path, monkeypatch, sessions=Sessions, seen=lambda done, store: None):
    """A run whose checkpoints are due every 3 steps; seen(done, store) is called before each step."""

    class Seen(Session):
        def run_until(self, first, ends_after):
            for step in super().run_until(first, ends_after):
                seen(step.step + 1, self.store)
                yield step

    class Opening(sessions):
        def open(self, find, saved, remembered):
            found = super().open(find, saved, remembered)
            self.current = Seen(self.store, found and found.checkpoint)
            return found

    monkeypatch.setattr(training, "Sessions", Opening)
    config = config_of(tmp_path, tmp_path)
    config = config.model_copy(update={"log": config.log.model_copy(update={"samples_every": 100})})
    train(config)
    return config


def test_a_checkpoint_is_committed_as_soon_as_it_is_written(tmp_path, without_roles, monkeypatch):
    """Here its shares are there when they are asked after for the second time."""
    steps = {}
    plain_run(tmp_path, monkeypatch, seen=lambda done, store: steps.update({done: store.steps()}))
    assert steps[4] == [] and steps[6] == [3], "begun after 3, and there while 5 and 6 are trained"


def never_there(monkeypatch):
    """Whoever asks after shares without waiting finds none."""
    monkeypatch.setattr(saving, "ray", SimpleNamespace(wait=lambda written, **_: ([], written)))


def test_what_lost_ranks_had_begun_is_not_asked_of_others(tmp_path, without_roles, monkeypatch):
    never_there(monkeypatch)
    survived = []

    class Surviving(Sessions):
        def survive(self, fault, done):
            survived.append(done)

    def lost(done, store):
        if done == 4 and not survived:
            raise RoleFailure("a rank died")

    config = plain_run(tmp_path, monkeypatch, Surviving, lost)
    assert survived == [3]
    assert_committed_ones_are_whole(config)
    assert CheckpointStore(config.checkpoints, say=lambda _: None).latest().step == STEPS


def test_a_move_waits_for_the_checkpoint_that_is_being_written(tmp_path, without_roles, monkeypatch):
    """Its ranks are ended: what they have not written would be lost."""
    never_there(monkeypatch)
    kept = []

    class Moving(Sessions):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.memory = SimpleNamespace(every=100, complete=0, lost=False, is_due=lambda done: False)
            self.reason_to_move = lambda: "a node leaves" if self.is_time() else None
            self.asked = count(1)

        def is_time(self):
            return next(self.asked) == 4  # the step after a checkpoint was begun

        def open(self, find, saved, remembered):
            found = super().open(find, saved, remembered)
            Session.keep_now = lambda session, done: kept.append((done, session.store.steps()))
            return found

    plain_run(tmp_path, monkeypatch, Moving)
    assert kept == [(4, [3])]


def test_a_state_whose_best_model_is_only_being_written_is_not_gone_back_to(tmp_path):
    config = config_of(tmp_path, tmp_path)
    run = run_module.Run(config, None, CheckpointStore(config.checkpoints, say=lambda _: None), lambda _: None)
    run.saver.begun = SimpleNamespace(best=Look(3, 1.0))
    run.remember(4)
    assert run.states == {}
    run.saver.begun = SimpleNamespace(best=None)
    run.remember(5)
    assert list(run.states) == [5]
