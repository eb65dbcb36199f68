"""An id of the hub where a folder does: fetched from a hub on loopback, then from the cache."""

import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from fake_hub import Repo
from safetensors.torch import load_file

from dipp_ray.config import ModelSection
from dipp_ray.errors import UserError
from dipp_ray.hub import fetch, revisions
from dipp_ray.hub.fetch import local
from dipp_ray.hub.revisions import pinned
from dipp_ray.hub.selection import weights_of
from dipp_ray.models.export import export_pipeline
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.models.reading import settle
from dipp_ray.models.text import TextEncoder
from dipp_ray.preferences.identity import base_digest
from dipp_ray.rewards.clip import load_clip
from dipp_ray.rewards.loading import check_term
from dipp_ray.rewards.terms import RewardTerm
from tiny_families import save_family
from tiny_models import save_clip

REPO = "org/tiny-sd"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline's folder, with what else lies in published ones."""
    folder = save_family("sd15", tmp_path_factory.mktemp("hub") / "sd15")
    for name in ("v1-5.ckpt", "unet/model.onnx", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/flax.msgpack"):
        (folder / name).write_bytes(b"gigabytes")
    (folder / "pipeline.py").write_text("raise SystemExit")
    return folder


def same(first, second) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def test_an_id_works_where_a_folder_does_and_extra_files_stay_there(hub, folder):
    commit = hub.add(REPO, folder)
    frame = read_frame(REPO)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert same(load_denoiser(REPO, "fp32", frame=frame), load_denoiser(folder, "fp32"))
    assert [name for name in hub.fetched() if name.endswith(".safetensors")] == [UNET]
    assert TextEncoder(REPO, torch.device("cpu"))(["a cat"]).tokens.shape[0] == 1
    assert same(LatentDecoder.from_folder(REPO), LatentDecoder.from_folder(folder))
    load_pipeline(f"{REPO}@main")
    extra = (".ckpt", ".onnx", ".fp16.safetensors", ".msgpack", ".py")
    assert len(hub.fetched()) == len(set(hub.fetched())) and not [n for n in hub.fetched() if n.endswith(extra)]
    assert frame.folder.name == commit


def test_a_folder_that_exists_is_taken_first(hub, folder, tmp_path, monkeypatch):
    hub.add(REPO, folder)
    shutil.copytree(folder, tmp_path / REPO)
    monkeypatch.chdir(tmp_path)
    assert read_frame(REPO).folder == Path(REPO) and pinned(REPO) == REPO and hub.asked == []


def test_what_is_no_id_keeps_its_sentence_and_asks_nobody(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where none of these lies
    for given in ("./org/name", "nowhere", "/org/name", "runs/distil/pipeline"):
        with pytest.raises(UserError, match="is no folder: give a diffusers pipeline folder"):
            read_frame(given)
    with pytest.raises(UserError, match=r"there is no folder \S*nowhere: correct its folder"):
        check_term(RewardTerm(name="r", model="clip", folder="nowhere"))
    assert hub.asked == []


def test_a_branch_a_tag_and_a_commit_are_pinned(hub, folder):
    first = hub.add(REPO, {"a.json": b"1"})
    hub.add(REPO, {"a.json": b"2"}, "v2")
    hub.add(REPO, {"a.json": b"3"})
    assert local(f"{REPO}/a.json@{first}", within=True).read_bytes() == b"1"
    assert local(f"{REPO}/a.json@v2", within=True).read_bytes() == b"2"
    assert local(f"{REPO}/a.json", within=True).read_bytes() == b"3"
    assert pinned(f"{REPO}/a.json@v2", within=True).endswith(f"/a.json@{hub.repos[REPO].refs['v2']}")
    assert pinned(f"{REPO}@{first}") == f"{REPO}@{first}"


def test_one_process_takes_one_commit_though_the_branch_moves(hub):
    hub.add(REPO, {"config.json": b"1"})
    before = local(REPO)
    hub.add(REPO, {"config.json": b"2"})
    assert local(REPO) == before


def test_a_file_and_a_folder_of_a_repository(hub, folder):
    files = {"one/unet.safetensors": (folder / UNET).read_bytes(), "one/other.safetensors": b"not wanted", "x.bin": b""}
    hub.add("org/nets", files | {"sub/unet/diffusion_pytorch_model.safetensors": (folder / UNET).read_bytes()})
    frame = read_frame(folder)
    own = load_file(folder / UNET)
    for given in ("org/nets/one/unet.safetensors", "org/nets/sub", "org/nets/sub/unet@main"):
        weights = load_denoiser(given, "fp32", frame=frame).network.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in own.items())
    assert hub.fetched() == ["one/unet.safetensors"]  # the others are the same bytes
    with pytest.raises(UserError, match=r"org/nets/typo@\w+: the repository org/nets holds no typo"):
        load_denoiser("org/nets/typo", "fp32", frame=frame)


def test_the_network_of_an_export_is_read_as_the_export_says(hub, folder, tmp_path):
    frame = read_frame(folder)
    weights = load_denoiser(folder, "fp32", frame=frame).network.state_dict()
    out = export_pipeline(frame, weights, one_step_of(frame, 399, "unit", "v_prediction"), tmp_path / "out")
    hub.add("org/exported", {f"deep/{path.relative_to(out)}": path.read_bytes() for path in out.rglob("*.*")})
    hub.add("org/exported-too", out)
    for given in ("org/exported/deep/unet", "org/exported/deep", "org/exported-too/unet", f"org/exported-too/{UNET}"):
        model = settle(ModelSection(teacher=str(folder), generator=given), frame)
        assert (model.t_star, model.input, model.prediction) == (399, "unit", "v_prediction")
    assert not [name for name in hub.fetched() if name.startswith("vae/") and name.endswith(".safetensors")]


def test_a_repository_of_one_variant_alone(hub, folder, tmp_path):
    only = shutil.copytree(folder, tmp_path / "fp16")
    for path in [*only.rglob("*.fp16.safetensors"), *only.glob("*.ckpt")]:
        path.unlink()
    for path in only.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    hub.add(REPO, only)
    assert same(load_pipeline(REPO).pipeline.unet, load_denoiser(folder, "fp32").network)
    assert UNET.replace(".saf", ".fp16.saf") in hub.fetched()


def test_a_repository_of_bin_alone(hub, folder, tmp_path):
    only = shutil.copytree(folder, tmp_path / "bin")
    for path in only.rglob("*.fp16.safetensors"):
        path.unlink()
    for path in only.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.name == "model.safetensors" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    hub.add(REPO, only)
    assert same(load_pipeline(REPO).pipeline.unet, load_denoiser(folder, "fp32").network)


def test_offline_the_cache_is_enough(hub, folder, offline):
    hub.add(REPO, folder)
    load_pipeline(REPO)
    asked = len(hub.asked)
    offline()
    assert pinned(REPO) == f"{REPO}@{hub.repos[REPO].refs['main']}"
    load_pipeline(REPO)
    assert len(hub.asked) == asked


def test_a_commit_in_the_cache_asks_nobody(hub, folder):
    given = f"{REPO}@{hub.add(REPO, folder)}"
    load_pipeline(given)
    hub.asked.clear()
    load_pipeline(given)
    assert hub.asked == []


def test_a_cache_that_another_program_filled_is_read_offline(hub, folder, offline, tmp_path):
    """The library of old noted no names of a commit's files."""
    commit = "ab" * 20
    repo = tmp_path / "cache" / "models--org--tiny-sd"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    offline()
    assert read_frame(REPO).folder == repo / "snapshots" / commit
    load_pipeline(REPO)
    assert hub.asked == []


def test_offline_without_a_cache_is_one_sentence(hub, folder, offline):
    hub.add(REPO, folder)
    offline()
    with pytest.raises(UserError, match=r"there is no folder org/tiny-sd here, .*HF_HUB_OFFLINE is set.*correct the"):
        read_frame(REPO)
    assert hub.asked == []


def test_offline_what_lacks_of_a_repository_is_one_sentence(hub, folder, offline):
    hub.add(REPO, folder)
    frame = read_frame(REPO)
    offline()
    with pytest.raises(UserError, match=r"nor the whole of it in .*HF_HUB_OFFLINE is set"):
        load_denoiser(REPO, "fp32", frame=frame)


def test_no_network_is_one_sentence_at_once(hub, folder, monkeypatch):
    commit = hub.add(REPO, folder)
    frame = read_frame(REPO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    clock = time.monotonic()
    for given in ("org/unknown", f"{REPO}@{commit}"):  # nothing of it, and not enough of it
        with pytest.raises(UserError, match=r"cannot be reached: ConnectionRefusedError|cannot be reached: Connect"):
            load_denoiser(given, "fp32", frame=None if "unknown" in given else frame)
    assert time.monotonic() - clock < 2


def test_a_hub_that_is_down_is_one_sentence_unless_the_cache_knows(hub, folder):
    hub.add(REPO, folder)
    read_frame(REPO)
    hub.repos[REPO].refusal = (503, "")
    hub.repos["org/other"] = Repo(refusal=(503, ""))
    revisions._commit_of.cache_clear()
    read_frame(REPO)
    with pytest.raises(UserError, match="answered 503"):
        read_frame("org/other")


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (None, r"there is no folder org/repo here, and .* shows no repository org/repo: correct the name; if it is "),
        (
            (401, "GatedRepo"),
            r"accept it at http.*/org/repo; it needs a token: log in by `hf auth login`, or set HF_TO",
        ),
        ((403, "GatedRepo"), r"its owner asks for an agreement"),
        ((401, ""), r"refuses it \(401\); it needs a token: log in"),
        ((403, ""), r"refuses it \(403\)"),
        ((404, "RepoNotFound"), r"shows no repository org/repo"),
    ],
)
def test_a_repository_that_nobody_gives_is_one_sentence(hub, refusal, sentence):
    if refusal:
        hub.repos["org/repo"] = Repo(refusal=refusal)
    with pytest.raises(UserError, match=sentence):
        read_frame("org/repo")


def test_with_a_token_the_sentence_is_about_the_token_and_does_not_show_it(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos["org/repo"] = Repo(refusal=(403, "GatedRepo"))
    with pytest.raises(UserError, match="your token cannot read it") as caught:
        read_frame("org/repo")
    assert "hf_secret" not in str(caught.value)


def test_a_revision_that_is_none_is_named(hub, folder):
    hub.add(REPO, folder)
    for revision in ("typo", "f" * 40):
        with pytest.raises(UserError, match=f"org/tiny-sd@{revision}: the repository has no revision {revision}"):
            read_frame(f"{REPO}@{revision}")


@pytest.mark.parametrize(
    "index", [b'{"_class_name": ["my", "Pipeline"]}', b'{"_class_name": "X", "unet": ["mine", "Net"]}', b"[]"]
)
def test_code_of_a_repository_is_refused_and_never_fetched(hub, index):
    hub.add(REPO, {"model_index.json": index, "unet/mine.py": b"raise SystemExit", "my.py": b"raise SystemExit"})
    with pytest.raises(UserError, match=r"code of a model is never run here|holds no JSON object"):
        read_frame(REPO)
    assert hub.fetched() == ["model_index.json"]


def test_no_name_of_a_repository_leads_out_of_the_cache(hub, tmp_path):
    hub.add(REPO, {"../../../evil.json": b"evil", "../evil.json": b"evil", "config.json": b"{}"})
    local(REPO)
    assert not list(tmp_path.rglob("evil.json"))


def test_a_reward_folder_may_be_an_id(hub, tmp_path):
    save_clip(tmp_path / "clip")
    hub.add("org/clip", tmp_path / "clip")
    check_term(RewardTerm(name="r", model="clip", folder="org/clip"))
    with pytest.raises(UserError, match="reward 'r': there is no folder org/none here"):
        check_term(RewardTerm(name="r", model="clip", folder="org/none"))


def test_a_vae_alone_may_be_an_id(hub, folder):
    hub.add("org/vae", folder / "vae")
    assert same(LatentDecoder.from_folder("org/vae"), LatentDecoder.from_folder(folder))
    assert local("org/vae", weights_of("vae")).is_dir()


def test_the_base_of_a_fit_may_be_an_id(hub, tmp_path):
    save_clip(tmp_path / "clip")
    hub.add("org/clip", tmp_path / "clip")
    assert same(load_clip("org/clip")[0], load_clip(tmp_path / "clip")[0])
    assert base_digest("org/clip") == base_digest(str(tmp_path / "clip"))


def test_an_actor_takes_no_id_that_its_driver_has_not_pinned(hub, folder, monkeypatch):
    commit = hub.add(REPO, folder)
    monkeypatch.setattr(revisions, "_pinned_alone", False)  # put back at the end
    revisions.take_pinned_alone()
    with pytest.raises(UserError, match="org/tiny-sd is no folder: give"):
        read_frame(REPO)
    with pytest.raises(UserError, match="there is no folder org/tiny-sd: correct its folder"):
        check_term(RewardTerm(name="r", model="clip", folder=REPO))
    assert hub.asked == [] and read_frame(f"{REPO}@{commit}").folder.name == commit


def test_a_cache_that_cannot_be_written_is_one_sentence(hub, folder, tmp_path, monkeypatch):
    hub.add(REPO, folder)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*/file \(Not a directory\): free or mend that"):
        read_frame(REPO)


def test_an_answer_that_is_no_hubs_is_one_sentence(hub, monkeypatch):
    monkeypatch.setattr(
        "fake_hub.Handler.say", lambda self, value: self.answer(200, b"<html>log in to this wifi</html>")
    )
    hub.add(REPO, {"config.json": b"{}"})
    with pytest.raises(UserError, match="does not answer as a hub does"):
        read_frame(REPO)


def test_a_long_download_says_how_far_it_is(hub, monkeypatch, capsys):
    hub.add(REPO, {"config.json": b"{}"})
    original = fetch._download

    def slow(named, names):
        original(named, names)
        time.sleep(0.4 if list(names) == ["config.json"] else 0)

    monkeypatch.setattr(fetch, "_download", slow)
    monkeypatch.setattr(fetch, "TOLD_EVERY_S", 0.02)
    monkeypatch.setattr("dipp_ray.reporting.waiting.QUIET", 0.2)
    local(REPO)
    line = r"waiting for 1 files of org/tiny-sd from the hub, \d s so far \(0.00 GB so far\)"
    assert re.search(line, capsys.readouterr().out)
