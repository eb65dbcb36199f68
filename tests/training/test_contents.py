"""A model, prompt file or reward of the same content is the same wherever it lies; and large files are read once."""

import json
import os
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import torch

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.storage import remembered
from dipp_ray.storage.remembered import remembered_hash
from dipp_ray.training import contents as contents_module
from dipp_ray.training.contents import contents_of
from dipp_ray.training.trajectory import difference, trajectory
from encoded_prompts import encoded
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file
from tiny_models import save_clip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    pixart_pipeline(folder / "teacher"), prompt_file(folder / "prompts.parquet"), save_clip(folder / "clip")
    (folder / "own").mkdir()
    (folder / "own" / "any.thing").write_text("weights of somebody's own kind")
    store = CheckpointStore(str(folder / "first" / "checkpoints"))
    files = [
        file for group in ("generator", "score") for file in store.write_share(2, group, 0, 1, {"w": torch.ones(2)}, {})
    ]
    store.commit(2, {"trajectory": {}}, files)
    encoded(tiny_config(folder, folder / "teacher", folder / "prompts.parquet"), folder / "embeddings")
    return folder


@pytest.fixture
def here(made, tmp_path):
    return shutil.copytree(made, tmp_path / "here")


def config_of(folder, *settings):
    terms = [
        {"name": "clip.a", "model": "clip", "folder": str(folder / "clip")},
        {"name": "own", "model": "settings:InkReward", "folder": str(folder / "own")},
    ]
    return tiny_config(
        folder, folder / "teacher", folder / "prompts.parquet", f"reward.terms={json.dumps(terms)}",
        f"model.generator={folder}/teacher/transformer", "init.score=checkpoint",
        f"init.score_checkpoint={folder}/first", f"data.embeddings={folder}/embeddings", *settings,
    )  # fmt: skip


def record_of(config):
    return {"trajectory": trajectory(config), "contents": contents_of(trajectory(config))}


ALL = {"model.teacher", "model.generator", "init.score_checkpoint", "data.prompts", "data.embeddings"}
ALL |= {"reward.terms.clip.a", "reward.terms.own"}


def test_what_was_moved_is_known_again(here, tmp_path):
    record = json.loads(json.dumps(record_of(config_of(here))))
    assert record["contents"].keys() == ALL and len(set(record["contents"].values())) == len(ALL)
    there = here.rename(tmp_path / "there")
    assert difference(record, config_of(there)) is None
    assert difference(record, config_of(there, "objective.guidance_scale=3")).startswith("objective.guidance_scale was")
    assert "model.teacher was" in difference({"trajectory": record["trajectory"]}, config_of(there)), "of before"


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("teacher/vae/diffusion_pytorch_model.safetensors", "model.teacher"),
        ("teacher/scheduler/scheduler_config.json", "model.teacher"),
        ("first/checkpoints/step_000002/COMMITTED.json", "init.score_checkpoint"),
        ("prompts.parquet", "data.prompts"),
        ("clip/model.safetensors", "reward.terms"),
        ("own/any.thing", "reward.terms"),
    ],
)
def test_what_is_another_in_one_byte_is_another_trajectory(here, tmp_path, file, key):
    record = record_of(config_of(here))
    there = here.rename(tmp_path / "there")
    path = there / file
    if key == "data.prompts":
        texts = pyarrow.parquet.read_table(path).column("prompt").to_pylist()
        pyarrow.parquet.write_table(pyarrow.table({"prompt": texts[::-1]}), path)
    elif key == "init.score_checkpoint":
        store = CheckpointStore(str(there / "first" / "checkpoints"))
        files = [*store.write_share(3, "generator", 0, 1, {"w": torch.ones(2)}, {})]
        store.commit(3, {}, files + store.write_share(3, "score", 0, 1, {"w": torch.zeros(2)}, {}))
    else:
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    assert difference(record, config_of(there)).startswith(f"{key} was ")


def test_moved_embeddings_are_known_by_encoders_prompts_and_bytes(here, tmp_path):
    """By their record alone: nobody reads terabytes to see whether they moved."""
    record = json.loads(json.dumps(record_of(config_of(here))))
    moved = (here / "embeddings").rename(tmp_path / "moved")
    assert difference(record, config_of(here, f"data.embeddings={moved}")) is None
    said = moved / "_encoded.json"
    was = json.loads(said.read_text())
    others = [{"sha256": "0" * 64}, {"sizes": was["sizes"] | {"_null.parquet": 1}}]
    for other in [*others, {"encoder": was["encoder"] | {"dtype": "bf16"}}]:
        said.write_text(json.dumps(was | other))
        assert difference(record, config_of(here, f"data.embeddings={moved}")).startswith("data.embeddings was ")
    said.unlink()
    assert difference(record, config_of(here, f"data.embeddings={moved}")).startswith("data.embeddings was ")
    before = record_of(config_of(here, "data.embeddings=null"))
    assert difference(before, config_of(here)).startswith("data.embeddings was null and is ")


def test_prompts_that_are_read_from_their_embeddings_move_with_them(here, tmp_path):
    record = record_of(config_of(here, f"data.prompts={here}/embeddings"))
    there = here.rename(tmp_path / "there")
    assert difference(record, config_of(there, f"data.prompts={there}/embeddings")) is None


def test_a_folder_that_moved_is_known_beside_terms_that_have_none(here, tmp_path):
    watched = 'reward.terms[0]={"name": "judge", "model": "server", "held_out": true, "server": {"url": "http://a"}}'
    record = record_of(config_of(here, watched))
    assert record["contents"].keys() == ALL - {"reward.terms.clip.a"}
    assert difference(record, config_of(here.rename(tmp_path / "there"), watched.replace("//a", "//b"))) is None


def test_a_file_that_no_loader_reads_changes_nothing(here, tmp_path):
    record = record_of(config_of(here))
    there = here.rename(tmp_path / "there")
    (there / "teacher" / "README.md").write_text("a card")
    (there / "clip" / "flax_model.msgpack").write_text("another library's")
    assert difference(record, config_of(there)) is None


def test_a_copy_is_known_by_the_original_where_a_record_is_older(here, tmp_path):
    record = {"trajectory": trajectory(config_of(here))}
    there = shutil.copytree(here, tmp_path / "there")
    assert difference(record, config_of(there)) is None


@pytest.mark.parametrize("odd", [None, [], 3, "of old", {"model.teacher": None, "oddity": None}, {"data.prompts": [1]}])
def test_contents_that_are_no_hashes_excuse_nothing(here, odd):
    record = record_of(config_of(here)) | {"contents": odd}
    gone = config_of(here, "model.teacher=org/name@" + "a" * 40)
    assert difference(record, gone).startswith("model.teacher was ")


def test_nothing_is_read_where_the_paths_are_the_same(here, monkeypatch):
    config = config_of(here)
    record = {"trajectory": trajectory(config), "contents": {"model.teacher": "of old"}}
    monkeypatch.setattr("dipp_ray.training.trajectory.contents_of", lambda settings: pytest.fail("read"))
    assert difference(record, config) is None
    assert "guidance_scale" in difference(record, config_of(here, "objective.guidance_scale=3"))


def test_what_is_gone_or_of_the_hub_is_left_out(here):
    settings = trajectory(config_of(here))
    settings["model"] |= {"teacher": "org/name@" + "a" * 40, "generator": None}
    settings["init"]["score_checkpoint"] = None
    shutil.rmtree(here / "clip")
    (here / "prompts.parquet").unlink()
    shutil.rmtree(here / "embeddings")
    assert contents_of(settings).keys() == {"reward.terms.own"}


def large(path, content=b"a"):
    path.write_bytes(content * (remembered.SMALL + 1))
    os.utime(path, (1e9, 1e9))
    return path


def read_of(path):
    blocks = []
    return remembered_hash(path, blocks.append), sum(blocks)


def test_a_large_file_is_read_once(tmp_path):
    path = large(tmp_path / "weights")
    first, size = read_of(path)
    assert size == remembered.SMALL + 1 and read_of(path) == (first, 0)
    assert first == contents_module.remembered_hash(path)
    large(path, b"b")
    os.utime(path, (1e9, 1e9 + 1))
    second, size = read_of(path)
    assert second != first and size
    with path.open("ab") as file:
        file.write(b"c")
    os.utime(path, (1e9, 1e9 + 1))
    assert read_of(path)[1] and read_of(path)[0] != second
    (notes,) = [*(tmp_path / "cache" / "hashes").iterdir()]
    notes.write_text("[1, 2")
    assert read_of(path)[1] == remembered.SMALL + 2


def test_what_was_written_just_now_is_not_remembered(tmp_path):
    path = large(tmp_path / "weights")
    os.utime(path)
    assert read_of(path)[1] == read_of(path)[1] == remembered.SMALL + 1


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path / "file"))
    path = large(tmp_path / "weights")
    assert read_of(path)[0] == read_of(path)[0]


def test_the_hash_is_that_of_the_file(tmp_path):
    import hashlib

    for path in (large(tmp_path / "weights"), tmp_path / "small"):
        path.touch()
        assert remembered_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
