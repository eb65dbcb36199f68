"""A run's folder: it can be written, one process trains in it, and its loss is seen while the run trains."""

import os
import shutil
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from dipp_ray import cli, verbs
from dipp_ray.errors import RunFolderLost, UserError
from dipp_ray.reporting.metrics import MetricsLog
from dipp_ray.training import train as training
from dipp_ray.training.checks import doubt_about_start
from dipp_ray.training.folder import check_folder, only_trainer, require_folder, require_writable
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file


@pytest.fixture
def folder():
    """One that other users may enter, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="drf-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def as_nobody():
    """Root may write anywhere: then the test is another user for a while."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


def config_of(folder, *settings):
    return tiny_config(folder, folder / "teacher", folder / "prompts.parquet", *settings)


@pytest.mark.parametrize("part", ["", "samples", "checkpoints", "tensorboard"])
def test_an_existing_folder_that_cannot_be_written_is_one_sentence(folder, part):
    config = config_of(folder)
    (config.path / part).mkdir(parents=True)
    if os.geteuid() == 0 and part:
        os.chown(config.path, 65534, 65534)
    (config.path / part).chmod(0o555)
    with as_nobody(), pytest.raises(UserError, match=r"run folder .*tiny cannot be written \(Permission denied\)"):
        check_folder(config)
    (config.path / part).chmod(0o755)


def test_metrics_of_another_user_are_seen_beforehand(folder):
    config = config_of(folder)
    config.path.mkdir()
    (config.path / "metrics.jsonl").write_text("")
    (config.path / "metrics.jsonl").chmod(0o444)
    config.path.chmod(0o777)
    with as_nobody(), pytest.raises(UserError, match="cannot be written"):
        check_folder(config)
    check_folder(config) if os.geteuid() == 0 else None
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        require_writable(folder / "file")


@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_second_trainer_is_told_before_ray_starts(folder, verb, monkeypatch, capsys):
    monkeypatch.setattr(verbs, "connect", lambda: pytest.fail("Ray was started"))
    pixart_pipeline(folder / "teacher"), prompt_file(folder / "prompts.parquet")
    config = config_of(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    config.path.mkdir()
    capsys.readouterr()
    with only_trainer(config):
        assert cli.main([verb, str(folder / "run.yaml")]) == 2
    error = capsys.readouterr().err
    assert "another process trains in this folder" in error and error.count("\n") == 1


def test_a_folder_that_goes_while_the_run_trains_is_seen(folder, monkeypatch):
    monkeypatch.setattr("dipp_ray.training.folder.require_store", lambda url, key: None)  # a bucket is elsewhere
    for url, words in ((None, "begins again"), ("s3://bucket/run", "s3://bucket/run stay")):
        for loss in (shutil.rmtree, emptied, made_anew, unlocked):
            config = config_of(folder, *([f"checkpoint.url={url}"] if url else []))
            check_folder(config)
            (config.path / "config.yaml").write_text("{}")
            with only_trainer(config) as lock, MetricsLog(config.path) as metrics:
                require_folder(config, lock, metrics, 3)
                loss(config.path)
                with pytest.raises(RunFolderLost, match=rf"seen after step 4\): .*{words}"):
                    require_folder(config, lock, metrics, 4)


def emptied(path):
    """As `rm -rf RUN/*` does, which leaves the lock."""
    for file in path.glob("[!.]*"):
        file.unlink()


def unlocked(path):
    """As somebody does who is told that another process trains here: the next trainer is not told."""
    (path / ".lock").unlink()
    (path / ".lock").write_text("")


def made_anew(path):
    shutil.rmtree(path)
    path.mkdir()
    for name in (".lock", "config.yaml", "metrics.jsonl"):
        (path / name).write_text("")


def test_a_lost_folder_is_a_failed_run(capsys):
    def work():
        raise RunFolderLost("runs/tiny was removed")

    assert cli.guarded(work) == 1
    assert capsys.readouterr().err == "dipp-ray: runs/tiny was removed\n"


def test_an_alignment_of_the_raw_teacher_is_doubted(tmp_path):
    teacher = pixart_pipeline(tmp_path / "teacher")
    other = pixart_pipeline(tmp_path / "other")

    def doubt(*settings):
        return doubt_about_start(config_of(tmp_path, *settings))

    (tmp_path / "link").symlink_to(teacher)
    for given in ([], [f"model.generator={teacher}"], [f"model.generator={tmp_path}/link/"]):
        assert "distil first" in doubt(*given) and "--generator RUN" in doubt(*given)
        assert doubt(*given).count("\n") == 0
    assert doubt(f"model.generator={other}") is None
    assert doubt("objective.reward_scale=0") is None
    (teacher / "one_step.json").write_text('{"t_star": 440, "input": "sigma"}')
    assert doubt() is None  # it gives images in one step


def test_check_and_train_say_it(tmp_path, monkeypatch, capsys):
    def nothing_more(*arguments):
        raise UserError("no cluster here")

    monkeypatch.setattr(verbs, "connect", nothing_more)
    monkeypatch.setattr(training, "cluster_nodes", nothing_more)
    monkeypatch.setattr(training, "watched_head", lambda *_: nullcontext())  # there is no Ray
    pixart_pipeline(tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")
    config, said = config_of(tmp_path), []
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["check", str(tmp_path / "run.yaml")]) == 0
    assert "distil first" in capsys.readouterr().out
    with pytest.raises(UserError, match="no cluster here"):
        training.train(config, said.append)
    assert len(said) == 1 and "distil first" in said[0]
