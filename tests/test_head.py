"""A head that is lost is said, and ends the program with one sentence before Ray ends it with a line of its own."""

import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from dipp_ray import head


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(head, "PROBE_S", 0.02)
    monkeypatch.setattr(head, "SAY_AFTER_S", 0.1)
    monkeypatch.setattr(head, "SAY_EVERY_S", 0.1)


def listening(port=0):
    server = socket.create_server(("127.0.0.1", port))
    return server, f"127.0.0.1:{server.getsockname()[1]}"


def until(condition):
    ends = time.monotonic() + 30
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()


def test_a_lost_head_ends_the_program_with_one_sentence(capsys):
    said, ended = [], []
    server, address = listening()
    with head.watched_head(said.append, "the same command goes on", address, patience=0.5, end=ended.append):
        time.sleep(0.2)
        assert (said, ended) == ([], [])
        server.close()
        until(lambda: ended)
    assert ended == [1]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"dipp-ray: the head of the Ray cluster ({address}) has not ")
    assert error.endswith("the same command goes on\n")
    assert said and all(line.startswith("waiting for the head of the Ray cluster") for line in said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_without_rays_patience_where_the_head_is_away(number, capsys):
    ended, seen, said = [], [], []
    server, address = listening()
    before = signal.signal(number, lambda *_: seen.append(number))
    ours, theirs = socket.socketpair()
    ours.setblocking(False), theirs.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    try:
        with head.watched_head(said.append, "the same command goes on", address, patience=1000, end=ended.append):
            server.close()
            until(lambda: len(said) > 2)
            assert ended == []
            os.kill(os.getpid(), number)
            until(lambda: ended)
        assert signal.set_wakeup_fd(-1) == ours.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(number, before)
        ours.close(), theirs.close()
    assert (ended, seen) == ([1], [number]) and capsys.readouterr().err.endswith("the same command goes on\n")


def test_a_signal_while_the_head_is_there_is_the_programs_own_affair():
    """It may be saving a checkpoint: a head that is away for a moment is waited for as ever."""
    ended, said = [], []
    server, address = listening()
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with head.watched_head(said.append, "", address, patience=1000, end=ended.append):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            server.close()
            until(lambda: len(said) > 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == []


def test_a_short_patience_is_not_lengthened_by_a_signal(monkeypatch):
    looks, now, ended = [(1, False), (2, False)], [0.0], []
    done = SimpleNamespace(wait=lambda _: not looks or now.__setitem__(0, looks.pop(0)[0]))
    monkeypatch.setattr(head, "SAY_AFTER_S", 100)
    monkeypatch.setattr(head, "_answers", lambda address: False)
    monkeypatch.setattr(head, "time", SimpleNamespace(monotonic=lambda: now[0]))
    head._watch("head:1", 2, print, "", ended.append, done, lambda: True)
    assert ended == [1]


def test_it_may_be_watched_from_any_thread_and_a_watch_of_before_may_be_gone():
    server, address = listening()
    found = []

    def watch():
        with head.watched_head(print, "", address, patience=1000, end=found.append):
            found.append("there")

    thread = threading.Thread(target=watch)
    thread.start(), thread.join()
    assert found == ["there"]
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    with head.watched_head(print, "", address, patience=1000, end=found.append):
        ours.close(), theirs.close()
    assert signal.set_wakeup_fd(-1) == -1
    server.close()


def test_a_signal_that_ends_nothing_does_not_shorten_the_wait():
    ended, said = [], []
    server, address = listening()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with head.watched_head(said.append, "", address, patience=1000, end=ended.append):
            os.kill(os.getpid(), signal.SIGUSR1)
            server.close()
            until(lambda: len(said) > 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended == []


def test_a_head_that_comes_back_in_time_ends_nothing(capsys):
    said, ended = [], []
    server, address = listening()
    with head.watched_head(said.append, "", address, patience=5, end=ended.append):
        server.close()
        until(lambda: said)
        server, _ = listening(int(address.rpartition(":")[2]))
        time.sleep(0.2)
        count = len(said)
        time.sleep(0.3)
        assert len(said) == count
    server.close()
    assert ended == [] and capsys.readouterr().err == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "head"]


def test_each_loss_is_counted_from_its_own_beginning(monkeypatch):
    looks = [(1, True), (2, False), (3, True), (90, True), (91, False), (92, False), (99, False)]
    now, said = [0.0], []

    class Done:
        def wait(self, seconds):
            if not looks:
                return True
            now[0], answer = looks.pop(0)
            monkeypatch.setattr(head, "_answers", lambda address: answer)
            return False

    monkeypatch.setattr(head, "time", SimpleNamespace(monotonic=lambda: now[0]))
    head._watch("head:1", 10, said.append, "", lambda status: pytest.fail("ended"), Done(), lambda: False)
    assert [line.rpartition(", ")[2] for line in said] == ["1 s so far", "1 s so far", "2 s so far", "9 s so far"]


def test_it_is_seen_before_rays_own_patience_ends(monkeypatch):
    monkeypatch.delenv(head.RAYS_PATIENCE, raising=False)
    assert 30 < head.patience_s() < 60
    monkeypatch.setenv(head.RAYS_PATIENCE, "12")
    assert head.patience_s() == 10
