"""Files and folders are the old ones or the new ones, whatever fails, and whenever the process or the power goes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from dipp_ray.errors import UserError
from dipp_ray.storage.aside import made_folder, whole_file, whole_folder
from dipp_ray.storage.files import write_file
from disk import Disk


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """Hundreds of syncs: what counts is where they stand."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


OLD, NEW = b"old" * 50, b"new, and longer" * 50


def by_whole_file(folder: Path) -> None:
    with whole_file(folder / "deep" / "file") as aside, open(aside, "wb") as file:
        file.write(NEW)


def by_write_file(folder: Path) -> None:
    write_file(LocalFileSystem(), str(folder / "deep" / "file"), [NEW[:100], NEW[100:]], "free some")


def by_whole_folder(folder: Path) -> None:
    with whole_folder(folder / "deep") as aside:
        (aside / "file").write_bytes(NEW)
        (aside / "inner").mkdir()
        (aside / "inner" / "other").write_bytes(NEW)


def start(folder: Path, old: bool) -> Path:
    """A folder to write in, with or without an old file of the name."""
    folder.mkdir(parents=True)
    if old:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(OLD)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


OLD_ONE = {"deep/file": OLD}
NEW_ONE = {by_whole_file: {"deep/file": NEW}, by_write_file: {"deep/file": NEW}}
NEW_ONE[by_whole_folder] = {"deep/file": NEW, "deep/inner/other": NEW}


def is_old_or_new(found: dict[str, bytes], write, old: bool) -> bool:
    """What has its name is whole, and what was there is not lost. What lies aside has a name that begins with a dot."""
    named = {name: content for name, content in found.items() if not any(p.startswith(".") for p in Path(name).parts)}
    before = OLD_ONE if old else {}
    # Two renames put a folder in the place of another: between them it lies beside.
    beside = write is by_whole_folder and not named and found.get(".deep.old/file") == OLD
    return named in (before, NEW_ONE[write]) or beside


@pytest.mark.parametrize("for_good", [False, True], ids=["fails", "killed"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("write", list(NEW_ONE))
def test_whatever_operation_fails(tmp_path, write, old, for_good):
    number = 0
    while True:
        folder = start(tmp_path / str(number), old)
        disk = Disk(folder, number, for_good)
        try:
            with disk.recording():
                write(folder)
            finished = disk.count <= number
        except (OSError, UserError):
            finished = False
        found = contents(folder)
        assert is_old_or_new(found, write, old), (number, disk.done)
        if not for_good and disk.failed not in ("remove", "unlink", "rmdir"):  # it could clean up after the failure
            assert not [name for name in found if ".part" in name], (number, disk.done)
        write(folder)  # what was left aside is in nobody's way
        assert contents(folder) == NEW_ONE[write]
        if finished:
            break
        number += 1
    assert number > 5


@pytest.mark.parametrize("eager", [False, True], ids=["names late", "names early"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("write", list(NEW_ONE))
def test_whenever_the_power_fails(tmp_path, write, old, eager):
    disk = Disk(start(tmp_path / "real", old))
    with disk.recording():
        write(disk.root)
    for operations in range(len(disk.done) + 1):
        found = contents(disk.after_power_cut(operations, eager, tmp_path / f"cut_{operations}"))
        assert is_old_or_new(found, write, old), disk.done[:operations]
    named = {name: content for name, content in found.items() if not name.startswith(".deep.old")}
    assert named == NEW_ONE[write], "it is on the disk when the call returns"


KILLED = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from dipp_ray.storage.files import write_file

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def chunks():
    yield b"half of "
    if sys.argv[2] == "write":
        kill()
    yield b"the new one"

if sys.argv[2] == "rename":
    os.replace = kill
write_file(LocalFileSystem(), sys.argv[1], chunks(), "free some")
"""


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_kill_leaves_the_old_file_whole_and_no_name_of_the_new_one(tmp_path, moment):
    (tmp_path / "old").write_bytes(OLD)
    for name in ("old", "new"):
        ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name), moment])
        assert ran.returncode == -signal.SIGKILL
    assert (tmp_path / "old").read_bytes() == OLD
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["old"]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    sentence = r"cannot write .*inside: .*: free space or choose another place"
    with pytest.raises(UserError, match=sentence), whole_file(tmp_path / "file" / "inside"):
        pass


def test_a_fault_while_writing_is_passed_on_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole_file(tmp_path / "file") as aside:
        aside.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), whole_folder(tmp_path / "folder") as aside:
        (aside / "half").write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == []


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
