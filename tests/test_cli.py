"""The command line with bad input: one sentence that names the remedy, exit status 2, before any long work."""

import json
import re
import shutil
import socket
import sys

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from dipp_ray import cli, verbs
from dipp_ray.errors import UserError
from dipp_ray.models import latents
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file, sd_pipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


@pytest.fixture
def config_file(world, tmp_path):
    path = tmp_path / "run.yaml"
    config = tiny_config(tmp_path, *world[1:])
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def write_prompts(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Bad input is found before Ray is asked for anything."""

    def connect():
        raise AssertionError("Ray was started for bad input")

    monkeypatch.setattr(verbs, "connect", connect)


def refused(capsys, *arguments) -> str:
    capsys.readouterr()  # what making the test's files printed
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dipp-ray: ")
    assert captured.err.count("\n") == 1, "one sentence, no traceback"
    return captured.err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("objective.reward_scal=1", "did you mean objective.reward_scale"),
        ("lr=1", "in the top level: did you mean generator_optim.lr"),
        ("mixed_precision=bf16", "in the top level: did you mean roles.generator.dtype"),
        ("--steps=5", "settings are written without dashes: run.steps=5"),
        ("--generatr=runs/x", "does not know --generatr=runs/x: did you mean --generator?"),
        ("--learning-rate=1e-4", "settings are written without dashes: generator_optim.lr=1e-4"),
        ("--frobnicate", "see dipp-ray"),
        ("model.teacher=/nowhere", "/nowhere is no folder"),
        ("model.generator=/nowhere", "/nowhere is no folder"),
        ("model.t_star=1000", "choose 1 to 999"),
        ("data.prompts=/nowhere.parquet", "does not exist"),
        ("data.column=caption", "no column 'caption' (it has: prompt)"),
        ("data.micro_batches=3", "does not split"),
        ("roles.generator.workers=3", "allowed sizes are 1, 2, 4"),
        ("roles.score={workers: 2, gpus: 0.5}", "NCCL"),
        ("objective.divergence_timesteps=[20, 2000]", "the teacher has 1000 steps"),
        ("reward.terms=[{name: a, model: clip, folder: /nowhere}]", "reward 'a': there is no folder /nowhere"),
        ("reward.terms=[{name: a, model: clip}]", "reward 'a': model clip needs the folder"),
        ("reward.terms=[{name: a, model: 'settings:InkRewad'}]", "module settings has no class InkRewad"),
        ("reward.terms=[{name: a, model: 'no_such_module:Ink'}]", "reward 'a': No module named 'no_such_module'"),
        ("evaluation.judge=settings:nobody", "evaluation.judge 'settings:nobody'"),
        ("evaluation.prompts=/nowhere.parquet", "set evaluation.prompts to one that does"),
        ("roles.reward.workers=2", "use reward.replicas=2"),
        ("reward.terms=[]", "reward.terms has no trained term"),
        ("init={score: checkpoint, score_checkpoint: /nowhere}", "no committed checkpoint"),
        ("nonsense", "write section.key=value"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_bad_settings(capsys, config_file, verb, setting, words):
    assert words in refused(capsys, verb, config_file, setting)


def test_folders_that_are_no_pipeline(capsys, config_file, world, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "model_index.json is missing" in refused(capsys, "train", config_file, f"model.teacher={tmp_path / 'empty'}")
    broken = shutil.copytree(world[1], tmp_path / "broken")
    index = json.loads((broken / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "FluxTransformer2DModel"]
    (broken / "model_index.json").write_text(json.dumps(index))
    assert "FluxTransformer2DModel is not supported" in refused(capsys, "train", config_file, f"model.teacher={broken}")


def test_a_generator_of_another_kind(capsys, config_file, tmp_path):
    other = sd_pipeline(tmp_path / "sd")
    assert "use a generator of the teacher's kind" in refused(capsys, "train", config_file, f"model.generator={other}")


def test_a_generator_of_another_depth(capsys, config_file, world, tmp_path):
    other = shutil.copytree(world[1], tmp_path / "deeper")
    path = other / "transformer" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"num_layers": 3}))
    said = refused(capsys, "check", config_file, f"model.generator={other}")
    assert "num_layers=3" in said and "num_layers=2" in said


def test_a_pipeline_whose_prompts_cannot_be_encoded(capsys, config_file, world, tmp_path):
    other = shutil.copytree(world[1], tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))
    said = refused(capsys, "check", config_file, f"model.teacher={other}")
    assert "class KandinskyPipeline are not supported; known are StableDiffusionPipeline" in said


def test_rewards_and_judges_may_lie_in_the_current_folder(capsys, config_file, tmp_path, monkeypatch):
    (tmp_path / "my_measures.py").write_text(
        "class Mine:\n    def reward(self, images, prompts): ...\ndef judge(images, prompts): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    term = "reward.terms=[{name: mine, model: 'my_measures:Mine'}]"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["check", str(config_file), term, "evaluation.judge=my_measures:judge"]) == 0
    assert "ready. " in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_decoder_that_cannot_recompute_is_refused_before_training(capsys, config_file, monkeypatch, verb):
    def none(vae):
        raise UserError("the decoder cannot recompute")

    monkeypatch.setattr(latents, "_recomputed", none)
    assert "the decoder cannot recompute" in refused(capsys, verb, config_file, "reward.checkpoint_decoder=true")


def test_check_plans_for_this_machine_and_starts_no_ray(capsys, config_file, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["check", str(config_file)]) == 0
    said = capsys.readouterr().out
    words = " ".join(said.split())
    assert f"node {socket.gethostname()}" in words and "for this machine (where RAY_ADDRESS names a cluster" in words
    assert "the cluster cannot hold this run" in plan_refused(capsys, config_file, "roles.generator.gpus=64")


def test_check_loads_no_weights(config_file, monkeypatch):
    import diffusers

    from dipp_ray.models.hollow import Hollow

    def refuse(*given, **how):
        pytest.fail("weights were loaded")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(Hollow, "fill", refuse)
    monkeypatch.setattr(diffusers.ModelMixin, "from_pretrained", refuse)
    assert cli.main(["check", str(config_file)]) == 0


def plan_refused(capsys, *arguments) -> str:
    assert cli.main(["check", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_prompt_files_without_prompts(capsys, config_file, tmp_path):
    empty = write_prompts(tmp_path / "empty.parquet", prompt=pyarrow.array([], pyarrow.string()))
    assert "holds no prompts" in refused(capsys, "train", config_file, f"data.prompts={empty}")
    blank = write_prompts(tmp_path / "blank.parquet", prompt=["a zero", ""])
    assert "row 2: the prompt is empty" in refused(capsys, "train", config_file, f"data.prompts={blank}")
    text = tmp_path / "text.parquet"
    text.write_text("a zero\n")
    assert "is not parquet" in refused(capsys, "train", config_file, f"data.prompts={text}")


def test_configurations_that_cannot_be_read(capsys, tmp_path):
    assert "No such file or directory: name a YAML file that is there" in refused(
        capsys, "train", tmp_path / "none.yaml"
    )
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "holds no sections" in refused(capsys, "train", tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("run: {name: [\n")
    said = refused(capsys, "train", tmp_path / "bad.yaml")
    assert "is not YAML" in said and "line 2, column 1" in said and "unicode string" not in said
    for text in ("a: &a [*a]", "a: &a {b: *a}", "a: " + "[" * 5000):
        (tmp_path / "itself.yaml").write_text(text)
        assert "is not YAML: it holds itself, or lies too deep" in refused(capsys, "train", tmp_path / "itself.yaml")
    (tmp_path / "often.yaml").write_text("a: &a [1]\nb: [*a, *a]\nc: {d: *a, e: *a}\n")
    assert "not YAML" not in refused(capsys, "train", tmp_path / "often.yaml")


def test_a_full_disk_is_seen_before_the_run(capsys, config_file, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    assert "only 1 MB are free" in refused(capsys, "train", config_file)


def test_reward_services_that_cannot_be_started(capsys, tmp_path):
    path, tokens = tmp_path / "service.yaml", tmp_path / "tokens"
    tokens.write_text("ann:0123456789abcdef\n")
    path.write_text("models: [{name: mine, model: 'settings:InkReward'}]")
    assert "replicas" in refused(capsys, "serve-rewards", path, "models=[{name: a, model: clip, replica: 2}]")
    assert "needs the folder of its weights" in refused(
        capsys, "serve-rewards", path, "models=[{name: a, model: clip}]"
    )
    assert "which needs tokens" in refused(capsys, "serve-rewards", path, "http.host=0.0.0.0")
    assert "set RAY_ADDRESS" in refused(capsys, "serve-rewards", path, "--detach")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert "is taken already" in refused(capsys, "serve-rewards", path, f"http.port={port}")
    assert "cannot be listened on" in refused(capsys, "serve-rewards", path, "http.host=::2", f"http.tokens={tokens}")


@pytest.mark.parametrize(("given", "reason"), [("127.0.0.1:{port}", "Connection refused"), ("nonsense", "Invalid")])
def test_a_cluster_that_is_not_there_is_said_at_once(capsys, config_file, monkeypatch, given, reason):
    import ray

    def init(address, **options):
        raise ValueError(f"Invalid address: {address}\nand more")  # as Ray refuses one; it may be connected already

    monkeypatch.undo()  # `connect` is the real one here
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        given = given.format(port=free.getsockname()[1])
    monkeypatch.setenv("RAY_ADDRESS", given)
    said = refused(capsys, "check", config_file)
    assert f"RAY_ADDRESS={given}: " in said and reason in said


def test_a_finished_run_is_where_another_begins(capsys, config_file, tmp_path):
    said = refused(capsys, "check", config_file, "run.steps=3", "--generator", f"{tmp_path}/first/", "run.seed=1")
    assert f"{tmp_path}/first/pipeline is no folder" in said


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and re.fullmatch(r"dipp-ray \d+\.\d+\.\d+", capsys.readouterr().out.strip())


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("RAY_AUTH_MODE", "tokens", "write token or disabled"),
        ("RAY_AUTH_MODE", "", "write token or disabled"),
        ("RAY_ADDRESS", "http://127.0.0.1:8265", "write host:port of the cluster"),
        ("RAY_ADDRESS", "", "unset it, or write host:port"),
    ],
)
def test_a_setting_of_rays_that_means_another_is_refused(capsys, config_file, monkeypatch, name, given, words):
    import ray

    monkeypatch.undo()  # `connect` is the real one here
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setenv(name, given)
    said = refused(capsys, "check", config_file)
    assert f"{name}={given}: " in said and words in said and "start that cluster" not in said


def test_a_reward_without_gradient_is_trained_on_only_by_mistake(capsys, config_file):
    said = refused(capsys, "train", config_file, "reward.terms=[{name: size, model: jpeg}]")
    assert "has no gradient: set its held_out=true" in said


def test_sample_and_export_of_what_is_not_there(capsys, tmp_path):
    out = tmp_path / "image.png"
    assert "/nowhere" in refused(capsys, "sample", "/nowhere", "--prompt", "a zero", "--out", out)
    (tmp_path / "model_index.json").write_text("{}")
    words = refused(capsys, "sample", tmp_path, "--prompts", "/nowhere.txt", "--out", out)
    assert "/nowhere.txt does not exist: set --prompts to one that does" in words
    assert "/nowhere" in refused(capsys, "export", "/nowhere", tmp_path / "out")
    assert "/nowhere" in refused(capsys, "evaluate", "/nowhere")
    assert "no metrics.jsonl" in refused(capsys, "report", tmp_path)


@pytest.mark.parametrize("seed", ["99999999999999999999999", "-1", "x"])
def test_a_seed_that_no_noise_can_have_is_refused_at_once(capsys, seed):
    with pytest.raises(SystemExit) as ended:
        cli.main(["sample", "runs/x", "--prompt", "a", "--out", "x.png", "--seed", seed])
    assert ended.value.code == 2 and f"--seed: invalid seed value: '{seed}'" in capsys.readouterr().err


def test_what_is_asked_of_sample_reaches_it(monkeypatch, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("a two\na three\n")
    asked = []
    monkeypatch.setattr("dipp_ray.evaluation.sample_command.sample", lambda *given, **how: asked.append((given, how)))
    words = ["--prompt", "a zero", "--prompt", "a one", "--prompts", str(tmp_path / "prompts.txt"), "--count", "3"]
    words += [
        "--batch",
        "2",
        "--seed",
        "5",
        "--device",
        "cpu",
        "--family",
        "own:Family",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["sample", str(tmp_path), *words]) == 0
    given, how = asked[0]
    assert given == (str(tmp_path), ["a zero", "a one", "a two", "a three"], tmp_path / "out")
    assert how == {"seed": 5, "count": 3, "batch": 2, "device": "cpu", "family": "own:Family"}


def test_a_setting_with_dashes_and_its_value_behind_a_space(capsys, config_file):
    assert cli.main(["train", str(config_file), "--steps", "5"]) == 2
    assert "settings are written without dashes: run.steps=5" in capsys.readouterr().err
