"""What is wrong in settings is said before the libraries of models are loaded, which takes seconds."""

import json
import subprocess
import sys

import pytest
import yaml

from settings import tiny_config
from tiny import prompt_file

HEAVY = ("torch", "ray", "diffusers", "transformers", "deepspeed", "peft", "scipy", "sklearn")
# One process for all of it: none of the libraries can be imported there.
SCRIPT = f"""
import json, sys

class Heavy:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in {HEAVY!r}, f"{{name}} is loaded"

sys.meta_path.insert(0, Heavy())
from dipp_ray.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    print("STATUS", status, file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What was said to each of CASES: (exit status, standard error)."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "teacher").mkdir()
    (folder / "teacher" / "model_index.json").write_text("{}")
    (folder / "file").write_text("")
    (folder / "run" / "pipeline").mkdir(parents=True)
    (folder / "run" / "pipeline" / "model_index.json").write_text("{}")
    config = tiny_config(folder, folder / "teacher", prompt_file(folder / "prompts.parquet"))
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "run" / "config.yaml").write_text((folder / "run.yaml").read_text())
    (folder / "broken.yaml").write_text("run: [")
    given = [[word.replace("HERE", str(folder)) for word in arguments] for arguments, _ in CASES]
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said, before = [], ""
    for line in ran.stderr.splitlines():
        if line.startswith("STATUS "):
            said.append((line.removeprefix("STATUS "), before))
            before = ""
        else:
            before += line
    return said


def of_run(setting, words):
    return ["train", "HERE/run.yaml", setting], words


CASES = [
    (["--version"], None),
    (["--help"], None),
    (["train", "--help"], None),
    (["schema"], None),
    (["check", "HERE/none.yaml"], "No such file"),
    (["check", "HERE/broken.yaml"], "is not YAML"),
    (["check", "HERE/run.yaml", "run.stepz=1"], "did you mean run.steps"),
    (["fit-reward", "HERE/run.yaml"], "unknown key"),
    (["serve-rewards", "HERE/run.yaml"], "unknown key"),
    (["sample", "HERE/teacher", "--out", "HERE/a.png"], "there is nothing to sample"),
    (["sample", "/nowhere", "--prompt", "a zero", "--out", "HERE/a.png"], "/nowhere is no folder"),
    (["evaluate", "HERE"], "model_index.json is missing"),
    (["evaluate", "HERE/teacher", "--against", "/nowhere"], "/nowhere is no folder"),
    (
        ["evaluate", "HERE/teacher", "evaluation.sampels=3", "--config", "HERE/run.yaml"],
        "did you mean evaluation.samples",
    ),
    (["evaluate", "HERE/run/pipeline", "evaluation.sampels=3"], "did you mean evaluation.samples"),
    (["encode", "HERE/run.yaml", "HERE/out", "data.prompts=/nowhere.txt"], "set data.prompts to one that does"),
    (["export", "/nowhere", "HERE/out"], "/nowhere is no run's folder"),
    (["export", "/nowhere@bset", "HERE/out"], "write /nowhere@best, or /nowhere for its latest"),
    (["export", "HERE", "HERE/out", "--private"], "--private is about the repository of --push"),
    of_run("--steps=5", "run.steps=5"),
    of_run("data.micro_batches=3", "does not split"),
    of_run("model.teacher=/nowhere", "/nowhere is no folder"),
    of_run("model.teacher=HERE", "model_index.json is missing"),
    of_run("model.generator=/nowhere", "/nowhere is no folder"),
    of_run("data.prompts=/nowhere.parquet", "does not exist"),
    of_run("data.column=caption", "no column 'caption'"),
    of_run("evaluation.prompts=/nowhere.parquet", "set evaluation.prompts to one that does"),
    of_run("reward.terms=[{name: a, model: clip, folder: /nowhere}]", "there is no folder /nowhere"),
    of_run("reward.terms=[{name: a, model: clip}]", "needs the folder of its weights"),
    of_run("reward.terms=[{name: a, model: clipp}]", "did you mean clip"),
    of_run("init={score: checkpoint, score_checkpoint: /nowhere}", "holds no committed checkpoint"),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_it_is_said_without_the_libraries_of_models(answers, number):
    arguments, words = CASES[number]
    status, said = answers[number]
    assert status == ("0" if words is None else "2"), (arguments, said)
    assert words is None or (words in said and said.count("dipp-ray: ") == 1), (arguments, said)
