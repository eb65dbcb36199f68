"""`dipp-ray submit` for real, on a local cluster with a dashboard: training whose driver is killed comes back."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from cluster_process import ROOT, cluster_process, environment_of_a_client
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

COMMAND = [sys.executable, "-c", "import sys; from dipp_ray.cli import main; sys.exit(main())", "submit"]
STEPS, EVERY = 20, 4


def config_file(folder):
    pipeline, prompts = pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")
    settings = [f"run.steps={STEPS}", f"checkpoint.every={EVERY}", "log.samples_every=10", "log.samples=4"]
    settings += ["evaluation.samples=10", "evaluation.teacher_steps=2", "log.held_out_samples=4"]
    path = folder / "align.yaml"
    path.write_text(yaml.safe_dump(tiny_config(folder / "runs", pipeline, prompts, *settings).model_dump(mode="json")))
    return path


def driver_below(pid):
    """The process that trains, of all below `pid`; None while there is none."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "jobs/align.py" in words and "python" in words[0]:
            return process
    return None


@pytest.mark.slow
def test_training_whose_driver_is_killed_is_submitted_again_and_ends(tmp_path, monkeypatch):
    env = environment_of_a_client()
    path = str(config_file(tmp_path))
    run = tmp_path / "runs" / "tiny"
    with cluster_process(["name=worker,cpus=4,labels=role:worker"]) as cluster:
        here = ["--address", cluster.jobs_address]

        def submit(*words):
            done = subprocess.run(
                [*COMMAND, *here, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900
            )
            return done.returncode, done.stdout, done.stderr

        train = ["--on", "head", "--env", f"PYTHONPATH={ROOT}/tests", "--retries", "2", "--"]
        train += ["python", "jobs/align.py", path]
        command = subprocess.Popen(
            [*COMMAND, *here, *train], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while not list((run / "checkpoints").glob("step_*/COMMITTED.json")):
            assert command.poll() is None, command.communicate()
            time.sleep(0.2)
        driver_below(cluster.pid).send_signal(signal.SIGKILL)
        out, error = command.communicate(timeout=900)
        assert command.returncode == 0, out + error
        assert "submitted again, 2 of 2 retries left" in out and out.rstrip().endswith("succeeded")
        steps = [json.loads(line).get("step") for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {*range(1, STEPS + 1)} <= {*steps}
        assert (run / "checkpoints" / f"step_{STEPS:06}" / "COMMITTED.json").is_file()
        assert out.count(f"tiny 0/{STEPS}") == 1, "no driver began anew"

        code, out, error = submit("--on", "role=worker", *train[2:], "run.steps=none")
        # On a busy machine Ray may lose sight of a job that ends at once: then it is submitted again, and refused.
        assert code == 2 and "was refused by its own command (exit status 2)" in error, out + error

        assert submit("--detach", "--", "sleep", "600")[0] == 0
        jobs = [line.split()[:2] for line in submit("--list")[1].splitlines()]
        assert [status for _, status in jobs][:3] == ["FAILED", "SUCCEEDED", "FAILED"]
        assert submit("--stop", jobs[-1][0])[1].endswith(f"job {jobs[-1][0]} is stopped\n")
        assert submit("--status", jobs[-1][0])[1].split()[1] == "STOPPED"

        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.jobs_address)
        placed = [JobSubmissionClient().get_job_info(job).driver_node_id for job, _ in jobs]
        assert placed[0] == placed[1] != placed[-2], "two on the head, one on the worker"
