"""Checkpoints beside the training: what is committed is the state of the barrier, once all of it is written."""

import threading
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import ActorDiedError

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.errors import StorageUnavailable
from dipp_ray.roles.writer import Writer
from dipp_ray.training import saving
from dipp_ray.training.looks import Look
from dipp_ray.training.saving import Saver


class Ranks:
    """The controller of two groups of one rank, each with a real `Writer`, whose disk waits for `may_write`."""

    def __init__(self):
        self.weights = {"generator": torch.zeros(2), "score": torch.ones(2)}
        self.writers = {group: Writer() for group in self.weights}
        self.may_write, self.fault = threading.Event(), None
        self.actors = SimpleNamespace(count=lambda group: 1, of=self._of)

    def _of(self, group, rank):
        return SimpleNamespace(share_written=SimpleNamespace(remote=lambda: group))

    def together(self, group, method, *arguments):
        if method == "share_written":
            return [self.writers[group].written()]
        url, step = arguments

        def write(tensors, counters):
            assert self.may_write.wait(10)
            if self.fault:
                raise self.fault
            return CheckpointStore(url).write_share(step, group, 0, 1, tensors, counters)

        return [self.writers[group].begin(write, lambda: ({"w": self.weights[group].clone()}, {"step": step}))]

    def train(self):
        for weight in self.weights.values():
            weight.add_(1)


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks()

    def wait(groups, num_returns, timeout):
        assert (num_returns, timeout) == (2, 0)
        return [group for group in groups if ranks.writers[group].writing.done()], []

    monkeypatch.setattr(saving, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(saving, "value_of", lambda group: ranks.writers[group].written())
    yield ranks
    ranks.may_write.set()


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path), say=lambda _: None)


def until_written(ranks):
    for writer in ranks.writers.values():
        writer.written()


def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_the_barriers_state(ranks, store):
    saver = Saver(store, 2)
    saver.begin(ranks, 5, {"of": 5}, Look(5, 1.5))
    ranks.train()
    saver.commit_if_written()
    assert store.steps() == [] and saver.saved == 0  # it is not there yet, and nothing waited for it
    ranks.may_write.set()
    until_written(ranks)
    saver.commit_if_written()
    assert store.steps() == [5] and saver.saved == 5 and store.require(5).record["of"] == 5
    assert store.read_group(store.require(5), "generator")[0]["w"].tolist() == [0, 0]
    assert store.read_group(store.require(5), "score")[0]["w"].tolist() == [1, 1]
    assert (store.best().step, store.best().value) == (5, 1.5)


def test_one_group_alone_makes_no_checkpoint(ranks, store):
    saver = Saver(store, 2)
    ranks.may_write.set()
    saver.begin(ranks, 5, {}, None)
    until_written(ranks)
    ranks.writers["score"] = SimpleNamespace(writing=SimpleNamespace(done=lambda: False))
    saver.commit_if_written()
    assert store.steps() == []


def test_the_next_one_begins_when_the_one_before_is_committed(ranks, store):
    saver = Saver(store, 1)
    ranks.may_write.set()
    saver.begin(ranks, 5, {}, Look(5, 1.5))
    ranks.train()
    saver.begin(ranks, 6, {}, None)
    assert store.steps() == [5]
    saver.finish(ranks)
    saver.finish(ranks)  # nothing is left to do
    assert store.steps() == [5, 6]  # keep=1: the newest, and the best
    assert store.read_group(store.require(6), "generator")[0]["w"].tolist() == [1, 1]
    ranks.train()
    saver.begin(ranks, 7, {}, None)
    saver.finish(ranks)
    assert store.steps() == [5, 7] and saver.saved == 7


def test_what_a_rank_could_not_write_is_raised_and_not_committed(ranks, store):
    saver = Saver(store, 1)
    ranks.fault = StorageUnavailable("the store is away")
    ranks.may_write.set()
    saver.begin(ranks, 5, {}, None)
    with pytest.raises(StorageUnavailable, match="the store is away"):
        saver.finish(ranks)
    assert store.steps() == [] and saver.saved == 0


def test_what_could_not_be_written_is_raised_while_training_goes_on(ranks, store):
    saver = Saver(store, 1)
    ranks.fault = StorageUnavailable("the store is away")
    ranks.may_write.set()
    saver.begin(ranks, 5, {}, None)
    for writer in ranks.writers.values():
        assert writer.writing.exception()
    with pytest.raises(StorageUnavailable, match="the store is away"):
        saver.commit_if_written()
    assert store.steps() == []


def test_a_lost_ranks_checkpoint_is_no_error_of_the_checkpoint(ranks, store):
    """The executor tells of the rank."""
    saver = Saver(store, 1)
    ranks.fault = ActorDiedError()
    ranks.may_write.set()
    saver.begin(ranks, 5, {}, None)
    for writer in ranks.writers.values():
        assert writer.writing.exception()
    saver.commit_if_written()
    assert store.steps() == [] and saver.begun is None


def test_what_was_begun_by_ranks_that_are_lost_is_forgotten(ranks, store):
    saver = Saver(store, 1)
    ranks.may_write.set()
    saver.begin(ranks, 5, {}, None)
    saver.forget()
    until_written(ranks)
    saver.commit_if_written()
    saver.finish(ranks)
    assert store.steps() == [] and saver.saved == 0


def test_a_writer_holds_one_copy_at_a_time():
    writer, first, order = Writer(), threading.Event(), []

    def slow():
        assert first.wait(10)
        order.append("first is written")
        return []

    def state():
        order.append("the state is taken")
        return ()

    writer.begin(slow, tuple)
    second = threading.Thread(target=writer.begin, args=(list, state))
    second.start()
    second.join(0.05)
    assert order == []
    first.set()
    second.join(10)
    assert order == ["first is written", "the state is taken"] and writer.written() == []
