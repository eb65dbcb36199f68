"""What is taken for an id of the hub, and what for a path."""

import pytest

from dipp_ray.hub.ids import HubId, hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", HubId("stabilityai/stable-diffusion-xl-base-1.0")),
        ("org/name@main", HubId("org/name", "", "main")),
        ("org/name@refs/pr/4", HubId("org/name", "", "refs/pr/4")),
        (f"org/name@{COMMIT}", HubId("org/name", "", COMMIT)),
        ("tianweiy/DMD2/dmd2_sdxl.bin@v1", HubId("tianweiy/DMD2", "dmd2_sdxl.bin", "v1")),
        ("org/name/deep/er", HubId("org/name", "deep/er")),
    ],
)
def test_an_id_is_read(given, meant):
    assert hub_id(given, within=True) == meant
    assert str(meant) == given


@pytest.mark.parametrize(
    "given",
    [
        "/org/name", "./org/name", "../org/name", "~/org/name", "teacher", "s3://bucket/name", "org/name/", "org//name",
        "org/-name", "org/name.", "org/na--me", "org/name.git", "org/na me", "org/../name", "org/name/../../x",
        "org/name@../../x", "org/name@/etc", "org/name@", "",
    ],
)  # fmt: skip
def test_what_looks_like_a_path_is_none(given):
    assert hub_id(given, within=True) is None


def test_where_a_repository_alone_fits_more_parts_are_a_path():
    assert hub_id("runs/distil/pipeline") is None
    assert hub_id("runs/distil/pipeline", within=True) is not None


def test_only_a_whole_commit_is_one():
    assert hub_id(f"org/name@{COMMIT}").commit == COMMIT
    assert hub_id("org/name@0123abc").commit is None
