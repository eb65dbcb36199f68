"""Rows by range: what is read, what is held, and what is read ahead."""

import threading

import pyarrow
import pyarrow.parquet
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from dipp_ray.data.prompts import Prompts, prompts_of, read_prompts
from dipp_ray.data.row_groups import READERS, Groups, ParquetRows
from dipp_ray.diffusion.noise import Draws
from dipp_ray.errors import UserError
from settings import tiny_config

TEXTS = [f"prompt {i}" for i in range(24)]


class Source:
    """Groups of three rows, which notes what was read."""

    def __init__(self):
        self.seen, self.fails, self.gate = [], set(), None

    def __call__(self, group):
        if self.gate:
            assert self.gate.wait(60)
        self.seen.append(group)
        if group in self.fails:
            raise UserError(f"group {group} cannot be read")
        return pyarrow.table({"text": TEXTS[3 * group : 3 * group + 3]})


def text(table, row):
    return table.column(0)[row].as_py()


def groups(limit=2**20):
    source = Source()
    return Groups([3] * 8, source, limit), source


def size_of(group=0):
    return Source()(group).nbytes


def test_rows_come_in_the_order_in_which_they_are_asked_and_each_group_is_read_once():
    found, source = groups()
    assert found.at([23, 0, 5, 1, 23], text) == [TEXTS[i] for i in (23, 0, 5, 1, 23)]
    assert sorted(source.seen) == [0, 1, 7] and len(found) == 24
    assert found.at([2, 3], text) == [TEXTS[2], TEXTS[3]] and len(source.seen) == 3


def test_groups_without_rows_are_passed_over():
    found = Groups([0, 2, 0, 1], lambda group: pyarrow.table({"text": {1: ["a", "b"], 3: ["c"]}[group]}))
    assert found.at([0, 1, 2], text) == ["a", "b", "c"]


@pytest.mark.parametrize("row", [-1, 24])
def test_a_row_that_is_not_there(row):
    with pytest.raises(IndexError):
        groups()[0].at([row], text)


def test_what_is_longest_unused_is_forgotten():
    found, source = groups(limit=2 * size_of() + 8)
    found.at([0], text), found.at([3], text), found.at([0], text)
    found.at([6], text)
    assert found._bytes <= found.limit and list(found._held) == [0, 2]
    found.at([0], text)
    assert source.seen == [0, 1, 2]
    found.at([3], text)
    assert source.seen == [0, 1, 2, 1]


def test_a_group_larger_than_all_the_room_is_read_all_the_same():
    found, source = groups(limit=1)
    assert found.at(range(24), text) == TEXTS
    assert len(found._held) == 1 and len(source.seen) == 8


def test_what_is_read_ahead_is_not_read_again():
    found, source = groups()
    found.ahead([4, 22])
    assert found.at([4, 22], text) == [TEXTS[4], TEXTS[22]]
    assert sorted(source.seen) == [1, 7]


def test_nothing_waits_for_what_is_read_ahead():
    found, source = groups()
    assert found.at([0], text) == [TEXTS[0]]
    source.gate = threading.Event()
    found.ahead([9])
    assert found.at([1], text) == [TEXTS[1]]
    source.gate.set()
    assert found.at([9], text) == [TEXTS[9]] and source.seen == [0, 3]


def test_nothing_is_read_ahead_where_it_would_drive_out_itself():
    found, source = groups(limit=4 * size_of())
    found.at([0], text)
    found.ahead([3, 6, 9])
    assert not found._coming and source.seen == [0]


def test_a_failure_ahead_is_told_when_the_row_is_needed():
    found, source = groups()
    source.fails = {2}
    found.ahead([6])
    with pytest.raises(UserError, match="group 2 cannot be read"):
        found.at([6], text)
    found.ahead([6])
    found._coming[2].exception()
    found.ahead([0])
    assert found.at([0], text) == [TEXTS[0]]
    source.fails = set()
    assert found.at([6], text) == [TEXTS[6]]


def test_every_group_in_order_few_at_a_time():
    found, source = groups()
    walk = found.each()
    assert next(walk).column(0).to_pylist() == TEXTS[:3]
    assert len(found._coming) < READERS and not found._held
    assert [text for table in walk for text in table.column(0).to_pylist()] == TEXTS[3:]
    assert sorted(source.seen) == list(range(8))


class Object(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.taken.append(end - start)
        return self.fs.content[start:end]


class Store(AbstractFileSystem):
    """As s3fs has it: one object, of which ranges are fetched, and counted."""

    cachable = False

    def __init__(self, content):
        super().__init__()
        self.content, self.taken = content, []

    def _open(self, path, mode="rb", **options):
        return Object(self, path, mode, size=len(self.content), **options)


def test_of_a_large_file_one_range_is_read(tmp_path):
    written = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": [f"{i:090}" for i in range(10_000)], "image": [b"x" * 900] * 10_000})
    pyarrow.parquet.write_table(table, written, row_group_size=100, compression="none", use_dictionary=False)
    store = Store(written.read_bytes())
    rows = ParquetRows(store, "bucket/a.parquet", "a", ["prompt"])
    assert rows.counts == [100] * 100
    store.taken.clear()
    assert rows.read(37).column(0)[5].as_py() == f"{3705:090}"
    assert sum(store.taken) < 15_000  # 100 rows of 94 bytes, of ten megabytes


def test_the_digest_is_of_the_texts_alone(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": TEXTS}), tmp_path / "a.parquet", row_group_size=5)
    (tmp_path / "b.txt").write_text("\n".join(TEXTS))
    digests = {read_prompts(str(tmp_path / name), "prompt").digest() for name in ("a.parquet", "b.txt")}
    coded = pyarrow.table({"prompt": pyarrow.array(TEXTS).dictionary_encode()}).slice(0)
    digests |= {Prompts(Groups([24], lambda _: coded)).digest(), Prompts.listed(TEXTS).digest()}
    assert len(digests) == 1
    for other in (TEXTS[:-1], TEXTS[::-1], [TEXTS[0] + TEXTS[1], *TEXTS[2:]], ["prompt 0p", "rompt 1", *TEXTS[2:]]):
        assert Prompts.listed(other).digest() not in digests


def test_a_runs_prompts_follow_its_order(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": TEXTS}), tmp_path / "a.parquet", row_group_size=4)
    config = tiny_config(tmp_path, tmp_path, tmp_path / "a.parquet", "data.order=epoch", "objective.score_updates=3")
    prompts = prompts_of(config)
    seen = [prompts.of(Draws(7, 0, repeat, range(start, start + 2))) for repeat in range(3) for start in (0, 2, 4, 6)]
    assert sorted(text for batch in seen for text in batch) == sorted(TEXTS)
    drawn = prompts_of(tiny_config(tmp_path, tmp_path, tmp_path / "a.parquet"))
    draws = Draws(7, 0, 0, range(8))
    assert drawn.of(draws) == [TEXTS[i] for i in draws.integers("prompt", 0, 24)]


def test_a_file_that_is_too_large_to_be_read_whole(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    monkeypatch.setattr("dipp_ray.data.files.LARGEST_WHOLE", 7)
    with pytest.raises(UserError, match=r"a\.txt has 0\.0 GiB.*convert it to parquet"):
        read_prompts(str(tmp_path / "a.txt"), "prompt")
