"""What a rank finds wrong with its store before its group meets: one sentence, with the rank and its node."""

import pytest

from dipp_ray.errors import UserError
from dipp_ray.roles import trained
from dipp_ray.roles.trained import TrainedRank
from dipp_ray.storage.remote import file_system
from settings import tiny_config


class Joined(Exception):
    pass


@pytest.fixture
def meet(monkeypatch, tmp_path):
    """Has rank 1 of 2 generators meet, whose checkpoints lie under a URL; Joined is raised once it would join."""

    def join(*_):
        raise Joined

    def meets(url):
        rank = object.__new__(TrainedRank)
        rank.group, rank.device = "generator", None
        rank.config = tiny_config(tmp_path, tmp_path, tmp_path / "prompts", f"checkpoint.url={url}")
        rank.meet(1, 2, "127.0.0.1", 1)

    monkeypatch.setattr(trained, "join", join)
    return meets


def refusal(meet, url):
    with pytest.raises(UserError, match=r"^generator 1 on [0-9.]+: checkpoint\.url=s3://") as caught:
        meet(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_rank_whose_store_is_usable_joins_and_leaves_nothing_there(meet, bucket):
    with pytest.raises(Joined):
        meet(f"{bucket}/checkpoints")
    fs, root = file_system(bucket)
    assert fs.find(root) == []


def test_a_rank_says_that_there_is_no_bucket(meet, bucket):
    assert refusal(meet, "s3://nowhere/x").endswith("there is no such bucket: make it, or correct the URL")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("refused", "the store refuses these credentials"),
        ("503", "its store fails, or has too much to do"),
        ("reset", "its store cannot be reached"),
    ],
)
def test_a_rank_says_what_its_store_answers(meet, bucket, s3, kind, words):
    with s3.faults(lambda number, method, path: kind):
        assert words in refusal(meet, f"{bucket}/x")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_PROFILE", "nobody", "no credentials for it: set AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "its store cannot be reached"),
    ],
)
def test_a_rank_says_what_its_node_lacks(meet, bucket, monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    file_system(bucket)[0].clear_instance_cache()
    assert words in refusal(meet, f"{bucket}/x")
