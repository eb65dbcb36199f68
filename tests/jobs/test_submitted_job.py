"""jobs/align.py through `ray job submit`, on a cluster of four unlike nodes: each role on its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster_process import ROOT, cluster_process, environment_of_a_client
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

RAY = Path(sys.executable).with_name("ray")
ROLES = {"GeneratorRank": "generator", "ScoreRank": "score", "Teacher": "teacher", "Text": "teacher"}
NODES = [
    "name=generator-node,cpus=2,labels=role:generator",
    "name=score-node,cpus=1,labels=role:score",
    "name=teacher-node,cpus=1,labels=role:teacher,resources=teacher_gpu:1",
    "name=reward-node,cpus=1,labels=role:reward",
]


def config_file(folder):
    pipeline, prompts = pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")
    settings = ["run.steps=3", "evaluation.samples=10", "evaluation.teacher_steps=2", "log.held_out_samples=4"]
    settings += [f"roles.{role}.labels={{role: {role}}}" for role in ("generator", "score", "teacher", "reward")]
    settings += ["roles.text.labels={role: teacher}", "roles.teacher.resources={teacher_gpu: 1}"]
    config = tiny_config(folder / "runs", pipeline, prompts, *settings)
    path = folder / "align.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.mark.slow
def test_each_role_runs_on_its_own_node(tmp_path):
    path = config_file(tmp_path)
    with cluster_process(NODES) as cluster:
        address, env = cluster.jobs_address, environment_of_a_client()

        def ray(*arguments):
            done = subprocess.run([RAY, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            return done.stdout

        ray("job", "submit", "--address", address, "--working-dir", ".", "--", "python", "jobs/align.py", path)
        ask = ("--address", address, "--format", "json", "--limit", "1000")
        nodes = {node["node_id"]: node["node_name"] for node in json.loads(ray("list", "nodes", *ask))}
        ran = {actor["class_name"]: nodes[actor["node_id"]] for actor in json.loads(ray("list", "actors", *ask))}
    assert {name: ran[name] for name in ROLES} == {name: f"{role}-node" for name, role in ROLES.items()}
    models = {name: node for name, node in ran.items() if name.startswith("ServeReplica") and "Rewards" not in name}
    assert set(models.values()) == {"reward-node"}
    run = tmp_path / "runs" / "tiny"
    assert (run / "checkpoints" / "step_000003" / "COMMITTED.json").is_file()
    assert (run / "pipeline" / "model_index.json").is_file()
    assert (run / "report.html").is_file()
