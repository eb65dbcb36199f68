"""A folder in a store and its working copy: what is fetched, pushed and taken away, and in which order."""

import json

import pytest

from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.hub import fetch
from dipp_ray.hub.fetch import local
from dipp_ray.storage import remote
from dipp_ray.storage.mirror import Mirror, fetched
from dipp_ray.storage.remote import file_system
from faulty_s3 import leave_upload, uploads

WITHOUT = ("checkpoints",)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets the machine on which the test is: each has a disk of its own."""

    def on(name: str) -> None:
        monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path / name))

    on("one")
    return on


def write(mirror, **files):
    for name, text in files.items():
        path = mirror.copy / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def in_store(url):
    fs, root = file_system(url)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path).decode() for path in fs.find(root)}


def test_what_one_machine_pushes_another_has(bucket, machine, s3):
    here = Mirror(f"{bucket}/runs/one", WITHOUT)
    here.fetch(required=False)
    write(here, metrics="1\n", samples__a="picture", checkpoints__x="not", pipeline__model_index_json="{}")
    (here.copy / ".lock").touch()
    here.push()
    whole = {"metrics": "1\n", "samples/a": "picture", "pipeline/model_index.json": "{}"}
    assert in_store(here.url) == whole
    with s3.faults(lambda *_: None):
        here.push()
        assert not [request for request in s3.requests if not request.startswith("HEAD")], "nothing has changed"
    write(here, metrics="1\n2\n")
    (here.copy / "samples/a").unlink()
    here.push()
    del whole["samples/a"]
    whole["metrics"] = "1\n2\n"
    assert in_store(here.url) == whole

    machine("two")
    there = Mirror(here.url, WITHOUT)
    assert texts(there.fetch()) == whole
    write(there, metrics="1\n2\n3\n", more="x")
    there.push()
    machine("one")
    again = Mirror(here.url, WITHOUT)
    assert texts(again.fetch()) == whole | {"metrics": "1\n2\n3\n", "more": "x", "checkpoints/x": "not", ".lock": ""}


def test_what_is_there_already_is_not_fetched_again(bucket, machine, s3):
    Mirror(f"{bucket}/model").fetch(required=False)
    here = Mirror(f"{bucket}/model")
    write(here, a="1", b="2")
    here.push()
    machine("two")
    fetched(here.url)
    with s3.faults(lambda *_: None):
        fetched(here.url)
        assert not [request for request in s3.requests if "/model/" in request]
    fs, root = file_system(here.url)
    fs.pipe_file(f"{root}/a", b"3")  # of the same size
    assert texts(fetched(here.url)) == {"a": "3", "b": "2"}


def test_a_pipeline_is_none_while_its_files_change(bucket, machine, s3):
    here = Mirror(f"{bucket}/run")
    here.fetch(required=False)
    write(here, pipeline__exported_json="1", pipeline__model_index_json="{}", pipeline__unet__weights="old")
    here.push()
    write(here, pipeline__unet__weights="new")
    with s3.faults(lambda *_: None):
        here.push()
        changes = [
            request.split("?")[0].rsplit("/run/")[-1] for request in s3.requests if request[:3] in ("PUT", "DEL")
        ]
        verbs = [request.split()[0] for request in s3.requests if request[:3] in ("PUT", "DEL")]
    names = ["exported.json", "model_index.json", "unet/weights", "model_index.json", "exported.json"]
    assert changes == [f"pipeline/{name}" for name in names]
    assert verbs == ["DELETE", "DELETE", "PUT", "PUT", "PUT"]


def test_a_push_that_breaks_off_is_taken_up_by_the_next(bucket, machine, s3, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    number, finished = 0, False
    while not finished:
        here = Mirror(f"{bucket}/{number}")
        here.fetch(required=False)
        write(here, pipeline__model_index_json="{}", pipeline__weights="old", metrics="1")
        here.push()
        write(here, pipeline__weights="new", metrics="12")
        try:
            with s3.faults(lambda at, method, path, first=number: "reset" if at >= first else None):
                here.push()
            finished = len(s3.requests) <= number
        except StorageUnavailable:
            pass
        seen = in_store(here.url)
        assert "pipeline/model_index.json" not in seen or seen["pipeline/weights"] in ("old", "new")
        here.push()
        assert in_store(here.url) == {"pipeline/model_index.json": "{}", "pipeline/weights": "new", "metrics": "12"}
        number += 1
    assert number > 3


def test_a_push_aborts_what_a_killed_one_left_of_its_files(bucket, machine):
    here = Mirror(f"{bucket}/run", WITHOUT)
    here.fetch(required=False)
    write(here, pipeline__weights="old", metrics="1")
    here.push()
    for key in ("run/pipeline/weights", "run/report", "run2/pipeline/weights"):
        leave_upload(bucket, key)
    write(here, pipeline__weights="new")
    here.push()
    assert in_store(here.url)["pipeline/weights"] == "new"
    assert uploads(bucket) == ["run/report", "run2/pipeline/weights"], "others may be at these"


def test_who_alone_writes_aborts_all_that_was_left(bucket, machine):
    for key in ("run/pipeline/weights", "run/report", "run/checkpoints/step_000001/x", "run2/report"):
        leave_upload(bucket, key)
    here = Mirror(f"{bucket}/run", WITHOUT)
    here.abort_left()
    assert uploads(bucket) == ["run/checkpoints/step_000001/x", "run2/report"]
    Mirror(f"{bucket}/run").abort_left()
    Mirror(f"{bucket}/run2").abort_left()
    assert uploads(bucket) == []


def test_who_may_not_list_uploads_pushes_all_the_same(bucket, machine, s3):
    here = Mirror(f"{bucket}/run")
    here.fetch(required=False)
    write(here, metrics="1")
    with s3.faults(lambda number, method, path: "refused" if "uploads" in path else None):
        here.push()
        assert any("uploads" in request for request in s3.requests)
    assert in_store(here.url) == {"metrics": "1"}


def test_a_model_in_a_bucket_is_a_folder_here(bucket, machine):
    fetch._of_store.cache_clear()
    here = Mirror(f"{bucket}/teacher")
    here.fetch(required=False)
    write(here, model_index_json="{}", unet__config_json="[]")
    here.push()
    machine("two")
    assert json.loads((local(f"{bucket}/teacher") / "unet/config.json").read_text()) == []
    assert local(f"{bucket}/teacher/model_index.json").read_text() == "{}"
    with pytest.raises(UserError, match=r"s3://.*/nothing does not exist"):
        local(f"{bucket}/nothing")
