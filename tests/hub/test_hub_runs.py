"""A run with models of the hub: checked, pinned, resumed, exported, pushed."""

import shutil
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.cli import main
from dipp_ray.config import AdapterSection, RunConfig
from dipp_ray.evaluation.evaluate import evaluate
from dipp_ray.hub import revisions
from dipp_ray.hub.fetch import local
from dipp_ray.hub.revisions import pinned
from dipp_ray.models.adapter_files import save_adapter
from dipp_ray.models.adapters import add_adapter, trained_weights
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.models.start import starting_network
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.pinning import pinned_service
from dipp_ray.training.checks import check
from dipp_ray.training.pinning import pinned_run
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.train import train
from dipp_ray.training.trajectory import difference, trajectory
from settings import tiny_config
from tiny import prompt_file
from tiny_families import save_family

TEACHER = "org/teacher"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_family("sd15", tmp_path_factory.mktemp("runs") / "sd15")


def config_of(tmp_path: Path, *settings: str) -> RunConfig:
    prompts = prompt_file(tmp_path / "prompts.parquet")
    small = ("data.batch_size=2", "data.micro_batches=1", "evaluation.samples=2", "evaluation.teacher_steps=2")
    distil = ("objective.reward_scale=0", "reward.terms=[]", "model.input=sigma")
    return tiny_config(tmp_path, Path(TEACHER), prompts, *distil, *small, *settings)


def forget() -> None:
    """As in a new process."""
    revisions._commit_of.cache_clear()


def record(config: RunConfig, trained: list | None = None) -> None:
    """What a run leaves: a committed checkpoint with its trajectory, and config.yaml. trained: None for the teacher."""
    store = CheckpointStore(str(config.path / "checkpoints"), lambda _: None)
    weights = load_denoiser(config.model.teacher, "fp32").network.state_dict().items() if trained is None else trained
    tensors = {f"ema/{name}": value.detach() for name, value in weights}
    store.commit(1, {"trajectory": trajectory(config)}, store.write_share(1, "generator", 0, 1, tensors, {}))
    (config.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def test_a_run_is_checked_and_trained_from_ids_and_evaluated_against_them(hub, folder, tmp_path):
    hub.add(TEACHER, folder)
    unet = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    hub.add("org/nets", {"one.safetensors": unet})
    config = pinned_run(config_of(tmp_path, "model.generator=org/nets/one.safetensors"))
    loop = plain_loop(config, check(config))
    assert all(torch.tensor(value).isfinite() for value in loop.step(0).values())
    assert evaluate({"teacher": TEACHER}, config, lambda _: None)["samples"] == 2


def test_a_lora_may_be_an_id(hub, folder, tmp_path):
    hub.add(TEACHER, folder)
    frame, network = read_frame(folder), load_denoiser(folder, "fp32").network
    add_adapter(network, AdapterSection(rank=2), frame.adapter_targets, 7, "generator")
    for name, value in trained_weights(network):
        torch.nn.init.ones_(value) if ".lora_B." in name else None
    save_adapter(network, frame, tmp_path / "lora")
    hub.add("org/lora", tmp_path / "lora")
    start = starting_network(config_of(tmp_path, f"model.generator={tmp_path / 'lora'}"), "generator", frame)
    (file,) = (tmp_path / "lora").glob("*.safetensors")
    for given in ("org/lora", f"org/lora/{file.name}"):
        config = pinned_run(config_of(tmp_path, f"model.generator={given}"))
        check(config)
        found = starting_network(config, "generator", frame).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in start.state_dict().items())
    teacher = load_denoiser(folder, "fp32").state_dict()
    assert not all(torch.equal(value, teacher[name]) for name, value in start.state_dict().items())


def test_the_recorded_configuration_holds_commits(hub, folder, tmp_path):
    commit = hub.add(TEACHER, folder)
    nets, clip = hub.add("org/nets", {"a.bin": b""}), hub.add("org/clip", {"config.json": b"{}"}, "v1")
    term = "reward.terms=[{name: c, model: clip, folder: org/clip@v1}, {name: own, model: 'settings:InkReward'}]"
    config = pinned_run(config_of(tmp_path, "model.generator=org/nets/a.bin", term))
    assert config.model.teacher == f"{TEACHER}@{commit}"
    assert config.model.generator == f"org/nets/a.bin@{nets}"
    assert [term.folder for term in config.reward.terms] == [f"org/clip@{clip}", None]
    assert trajectory(config)["model"]["teacher"] == f"{TEACHER}@{commit}"
    forget()
    asked = len(hub.asked)
    assert pinned_run(config) is config and len(hub.asked) == asked


def test_train_and_its_verb_go_on_with_the_pinned_configuration(hub, folder, tmp_path, monkeypatch):
    commit, seen = hub.add(TEACHER, folder), []
    monkeypatch.setattr("dipp_ray.verbs.connect", lambda: None)
    monkeypatch.setattr("dipp_ray.training.train._train", lambda config, *_: seen.append(config) or config.path)
    monkeypatch.setattr("dipp_ray.training.train.watched_head", lambda *_: nullcontext())  # there is no Ray
    monkeypatch.setattr("dipp_ray.reporting.report.write_report", lambda folder: folder)
    written = tmp_path / "run.yaml"
    written.write_text(yaml.safe_dump(config_of(tmp_path).model_dump(mode="json")))
    assert main(["train", str(written)]) == 0
    train(config_of(tmp_path))
    assert [config.model.teacher for config in seen] == [f"{TEACHER}@{commit}"] * 2


def test_folders_alone_are_left_as_they_are(hub, folder, tmp_path):
    config = config_of(tmp_path, f"model.teacher={folder}")
    assert pinned_run(config) is config and hub.asked == []


@pytest.mark.parametrize("kept", ["checkpoint", "config.yaml"])
def test_a_resumed_run_keeps_its_commit_though_the_branch_moved(hub, folder, tmp_path, kept):
    first = hub.add(TEACHER, folder)
    given = config_of(tmp_path)
    config = pinned_run(given)
    check(config)
    record(config)
    if kept == "checkpoint":
        (config.path / "config.yaml").unlink()
    else:
        shutil.rmtree(config.path / "checkpoints")
    second = hub.add(TEACHER, folder)
    forget()
    hub.asked.clear()
    resumed = pinned_run(given)
    assert resumed.model.teacher == f"{TEACHER}@{first}" and first != second
    check(resumed)
    assert hub.asked == []  # no network: all of it lies in the cache


def test_another_revision_is_another_trajectory(hub, folder, tmp_path):
    first = hub.add(TEACHER, folder)
    config = pinned_run(config_of(tmp_path))
    record(config)
    second = hub.add(TEACHER, folder, "v2")
    forget()
    other = pinned_run(config_of(tmp_path, f"model.teacher={TEACHER}@v2"))
    refused = difference({"trajectory": trajectory(config)}, other)
    assert refused == f'model.teacher was "{TEACHER}@{first}" and is "{TEACHER}@{second}"'
    hub.add("org/other", folder)
    assert pinned_run(config_of(tmp_path, "model.teacher=org/other")).model.teacher.startswith("org/other@")


def test_the_terms_of_a_shared_service_are_not_looked_for(hub, folder, tmp_path):
    hub.add(TEACHER, folder)
    shared = ("reward.app=rewards", "reward.terms=[{name: c, model: clip, folder: org/none}]")
    assert pinned_run(config_of(tmp_path, *shared)).reward.terms[0].folder == "org/none"


def test_a_service_is_pinned(hub):
    commit = hub.add("org/vae", {"config.json": b"{}"})
    models = [{"name": "c", "model": "clip", "folder": "org/vae"}, {"name": "j", "model": "jpeg"}]
    config = pinned_service(ServiceConfig.model_validate({"models": models, "vae": "org/vae"}))
    assert (config.vae, config.models[0].folder, config.models[1].folder) == (*[f"org/vae@{commit}"] * 2, None)


def test_check_says_what_the_hub_refuses_before_anything_starts(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dipp_ray.verbs.connect", lambda: pytest.fail("Ray was started"))
    written = tmp_path / "run.yaml"
    written.write_text(yaml.safe_dump(config_of(tmp_path).model_dump(mode="json")))
    for verb in ("check", "train"):
        assert main([verb, str(written)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("dipp-ray: there is no folder org/teacher here") and said.count("\n") == 1


# -- export and push -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(hub, folder, tmp_path) -> Path:
    hub.add(TEACHER, folder)
    config = pinned_run(config_of(tmp_path))
    record(config)
    return config.path


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_card_names_the_teacher_and_its_commit(hub, run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "out" / "pipeline")]) == 0
    card = (tmp_path / "out" / "pipeline" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    commit = hub.repos[TEACHER].refs["main"]
    assert (front["base_model"], front["base_model_revision"]) == (TEACHER, commit)
    assert f"{TEACHER}@{commit}" in card and str(tmp_path / "cache") not in card


def test_the_card_of_an_adapter_loads_its_base_by_id_and_revision(hub, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    commit, frame, out = hub.add(TEACHER, folder), read_frame(folder), tmp_path / "out"
    config = pinned_run(config_of(tmp_path, "adapters.generator={rank: 2}"))
    record(config, trained_weights(starting_network(config, "generator", frame).network))
    assert main(["export", str(config.path), str(out), "--adapter", "--push", "me/lora"]) == 0
    assert f"exported {out}: its latents differ from the trainer's x0 by" in capsys.readouterr().out
    pushed = hub.repos["me/lora"]
    assert pushed.commits[pushed.refs["main"]] == files_of(out)
    card = (out / "README.md").read_text()
    assert f'from_pretrained("{TEACHER}", revision="{commit}")' in card and 'load_lora_weights("me/lora")' in card
    assert yaml.safe_load(card.split("---")[1])["base_model_relation"] == "adapter"


def test_a_card_of_a_folder_names_no_base(folder, run, tmp_path):
    written = yaml.safe_load((run / "config.yaml").read_text())
    written["model"]["teacher"] = str(folder)
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    assert main(["export", str(run), str(tmp_path / "pipeline")]) == 0
    assert "base_model" not in (tmp_path / "pipeline" / "README.md").read_text()


@pytest.mark.parametrize("private", [False, True])
def test_push_uploads_the_folder_and_nothing_else(hub, run, tmp_path, monkeypatch, capsys, private):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("beside the exported folder")
    out = tmp_path / "out" / "pipeline"
    assert main(["export", str(run), str(out), "--push", "me/mine", *(["--private"] if private else [])]) == 0
    pushed = hub.repos["me/mine"]
    assert pushed.commits[pushed.refs["main"]] == files_of(out) and pushed.private is private
    said = capsys.readouterr()
    assert f"pushed to {hub.url}/me/mine" in said.out and "hf_secret" not in said.out + said.err
    assert 'from_pretrained("me/mine")' in (out / "README.md").read_text()
    forget()
    assert load_denoiser("me/mine", "fp32").family.pipeline_class == "StableDiffusionPipeline"
    assert main(["export", str(run), str(out), "--push", "me/mine"]) == 0  # once more, to one that is there


def refused_push(run: Path, out: Path, capsys, *more: str) -> str:
    assert main(["export", str(run), str(out), "--push", "me/mine", *more]) == 2
    assert load_denoiser(out, "fp32") is not None  # the export stays
    said = capsys.readouterr().err
    assert said.startswith(f"dipp-ray: {out} is exported, but not pushed to me/mine") and said.count("\n") == 1
    return said


def test_push_without_a_token_is_one_sentence(hub, run, tmp_path, capsys):
    asked = len(hub.asked)
    assert "log in by `hf auth login`, or set HF_TOKEN" in refused_push(run, tmp_path / "out", capsys)
    assert not any("me/mine" in line for line in hub.asked[asked:])


def test_push_without_the_right_is_one_sentence(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.writable = False
    assert "answered 403: your token may not write there" in refused_push(run, tmp_path / "out", capsys)
    hub.add("me/mine", {})
    assert "answered 403" in refused_push(run, tmp_path / "out", capsys)


def test_push_without_a_network_is_one_sentence(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    local(pinned(TEACHER))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert "cannot be reached" in refused_push(run, tmp_path / "out", capsys)


def test_a_private_push_never_goes_to_a_public_repository(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("me/mine", {})
    assert "is public already" in refused_push(run, tmp_path / "out", capsys, "--private")
    assert hub.repos["me/mine"].commits[hub.repos["me/mine"].refs["main"]] == {}


def test_what_is_no_repository_is_refused_before_the_export(hub, run, tmp_path, capsys):
    for wrong in (["--push", "mine"], ["--push", "me/mine@v1"], ["--private"]):
        assert main(["export", str(run), str(tmp_path / "out"), *wrong]) == 2
    assert not (tmp_path / "out").exists() and "org/name" in capsys.readouterr().err
