"""A rank that is killed is seen within seconds and named, in every phase of a step, and nothing is left behind."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
import ray

from dipp_ray.data.prompts import read_prompts
from dipp_ray.errors import RoleFailure
from dipp_ray.training.session import only_session
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

SEEN_WITHIN_S = 5.0
NAMES = {"generator": "generator rank", "score": "score model rank"}
PHASES = ("sample", "train", "predict", "guide", "backward", "write_share", "sample_average")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    return tiny_config(
        folder,
        pixart_pipeline(folder / "pipeline"),
        prompt_file(folder / "prompts.parquet"),
        "roles.generator.workers=2",
        "roles.score.workers=2",
        "roles.generator.zero_stage=2",
        "roles.score.zero_stage=2",
        "objective.reward_scale=0",
        "objective.score_updates=2",
        "reward.terms=[]",
    )


def killed_in(config, role, rank, phase, number):
    """Train, send `number` to the rank's process while `phase` of step 1 is sent; returns (failure, seconds)."""
    prompts = read_prompts(config.data.prompts, config.data.column)
    opened, sent_at = only_session(config, prompts, print), []
    controller = opened.__enter__().controller
    try:
        controller.together("generator", "start")
        pid = ray.get(controller.actors.of(role, rank).__ray_call__.remote(lambda self: os.getpid()))

        def strike():
            if not sent_at:
                os.kill(pid, number)
                sent_at.append(time.monotonic())

        send = controller.send

        def send_and_strike(task, index, answers):
            answer = send(task, index, answers)
            if task.key.step == 1 and task.key.action == phase:
                strike()
            return answer

        controller.send = send_and_strike
        with pytest.raises(RoleFailure) as failure:
            for step in controller.steps(0, lambda done: done == 3):
                if step.last and phase in ("write_share", "sample_average"):
                    strike()
                    arguments = (config.checkpoint.url or str(config.path), 3) if phase == "write_share" else ([],)
                    group = role if phase == "write_share" else "generator"
                    controller.together(group, phase, *arguments)
                    controller.together(role, "meeting_point")  # where the phase had not met the rank
        return str(failure.value), time.monotonic() - sent_at[0]
    finally:
        opened.__exit__(None, None, None)
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)


def left_behind():
    """Processes of the run's roles, after some seconds in which Ray ends them, and room that is still held."""
    kinds = ("ray::GeneratorRank", "ray::ScoreRank", "ray::Teacher", "ray::Text", "ray::RewardClientActor")

    def alive():
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.cmdline()[:1]
                    and process.cmdline()[0].startswith(kinds)
                ):
                    yield process

    psutil.wait_procs(list(alive()), timeout=20)
    held = [table for table in ray.util.placement_group_table().values() if table["state"] == "CREATED"]
    return [process.cmdline() for process in alive()] + held


FAST = {("generator", "backward")}
CASES = [
    pytest.param(role, phase, marks=[] if (role, phase) in FAST else [pytest.mark.slow])
    for role in NAMES
    for phase in PHASES
]


@pytest.mark.parametrize(("role", "phase"), CASES)
def test_a_killed_rank_is_named_within_seconds(ray_session, config, role, phase):
    sentence, seconds = killed_in(config, role, 1, phase, signal.SIGKILL)
    assert sentence.startswith(f"{NAMES[role]} 1 died"), sentence
    assert "\n" not in sentence and "its process was killed" in sentence
    assert sentence.endswith("the same command goes on from the last checkpoint")
    assert seconds < SEEN_WITHIN_S
    assert not left_behind()


@pytest.mark.slow
@pytest.mark.parametrize("role", NAMES)
def test_a_rank_that_hangs_is_named(ray_session, config, role):
    roles = config.roles.model_copy(update={"step_timeout_s": 8.0})
    hung = config.model_copy(update={"roles": roles})
    sentence, seconds = killed_in(hung, role, 1, {"generator": "backward", "score": "train"}[role], signal.SIGSTOP)
    assert sentence.startswith(f"{NAMES[role]} 1 does not respond"), sentence
    assert seconds < 8 + SEEN_WITHIN_S
