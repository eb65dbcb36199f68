"""Folders that a command writes to."""

import pytest

from dipp_ray.errors import UserError
from dipp_ray.storage.made import made_folder


def test_a_folder_is_made_and_a_place_that_will_not_do_is_said(tmp_path):
    assert made_folder(tmp_path / "a" / "b", "x").is_dir() and made_folder(tmp_path / "a" / "b", "x").is_dir()
    file = tmp_path / "file"
    file.write_text("")
    for inside in (file, file / "out"):
        with pytest.raises(UserError) as told:
            made_folder(inside, "choose another --out")
        assert str(told.value) == f"{inside} cannot be written: {file} is a file: choose another --out"
    with pytest.raises(UserError, match=r"^/proc/x cannot be written: .+: choose another --out$"):
        made_folder(type(tmp_path)("/proc/x"), "choose another --out")
