"""One holder at a time; and a dead one holds nothing."""

import subprocess
import sys
import threading

import pytest

from dipp_ray.errors import UserError
from dipp_ray.storage.hashing import hash_of_file, hash_of_json
from dipp_ray.storage.locks import alone, in_turn

DIES = """
import os, sys
from pathlib import Path
from dipp_ray.storage.locks import alone
with alone(Path(sys.argv[1]), "taken"):
    os._exit(0)
"""


def test_a_second_holder_is_refused_until_the_first_is_gone(tmp_path):
    held = alone(tmp_path / "lock", "taken: wait")
    with held, pytest.raises(UserError, match="taken: wait"), alone(tmp_path / "lock", "taken: wait"):
        pass
    with alone(tmp_path / "lock", "taken: wait"):
        pass


def test_who_waits_is_told_once_and_gets_it_then(tmp_path):
    order, told = [], threading.Event()

    def second():
        with in_turn(tmp_path / "lock", told.set):
            order.append("second")

    with in_turn(tmp_path / "lock", lambda: order.append("it was free")):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_dead_process_holds_no_lock(tmp_path):
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "lock")], check=True)
    with alone(tmp_path / "lock", "taken"):
        pass


def test_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_of_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_of_json({"a": 1, "b": [2]}) == hash_of_json({"b": [2], "a": 1}) != hash_of_json({"a": 1, "b": [3]})
