"""Prompts from every kind of file that people keep them in, and what is said of files that are none."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dipp_ray.data.prompts import read_prompts
from dipp_ray.errors import UserError

TEXTS = ["a bold zero", 'a "thin" one, drawn', "ein kühner Zweier"]


def parquet(path, columns, groups=None):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=groups)


def write(folder, kind):
    path = folder / f"prompts{kind}"
    match kind:
        case ".parquet":
            parquet(path, {"id": [1, 2, 3], "prompt": TEXTS}, groups=2)
        case ".csv":
            path.write_text('id,prompt\n1,a bold zero\n2,"a ""thin"" one, drawn"\n3,ein kühner Zweier\n')
        case ".tsv":
            path.write_text('prompt\tCategory\na bold zero\tx\na "thin" one, drawn\ty\nein kühner Zweier\tz\n')
        case ".jsonl":
            path.write_text("".join(json.dumps({"prompt": text, "tag": 1}) + "\n" for text in TEXTS) + "\n")
        case ".json":
            path.write_text(json.dumps(TEXTS))
        case ".txt":
            path.write_text("\ufeff" + "\n\n".join(TEXTS) + "\n")
    return path


KINDS = [".parquet", ".csv", ".tsv", ".jsonl", ".json", ".txt"]


def read(path, column="prompt"):
    return list(read_prompts(str(path) if not isinstance(path, list) else path, column))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file(tmp_path, kind):
    assert read(write(tmp_path, kind)) == TEXTS


def test_a_folder_a_pattern_and_a_list(tmp_path):
    (tmp_path / "README.md").write_text("no prompts")
    for number in (10, 2, 1):
        (tmp_path / f"part-{number:02d}.txt").write_text(f"prompt {number}\n")
    expected = ["prompt 1", "prompt 2", "prompt 10"]
    assert read(tmp_path) == read(tmp_path / "part-*.txt") == expected
    assert read([f"{tmp_path}/part-10.txt", f"{tmp_path}/part-0?.txt"]) == ["prompt 10", "prompt 1", "prompt 2"]


def test_lists_of_objects_in_json_and_texts_in_jsonl(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]))
    (tmp_path / "b.jsonl").write_text('"one"\n"two"\n')
    assert read(tmp_path / "a.json", "text") == read(tmp_path / "b.jsonl") == ["one", "two"]


def test_lines_end_where_editors_end_them(tmp_path):
    """And not at what Python takes for ends besides: form feeds, next-line marks, line separators."""
    odd = "a\u2028cat, a\x0cdog\x85and an owl"
    (tmp_path / "a.txt").write_bytes(f"{odd}\r\nsecond\rthird\nfourth".encode())
    assert read(tmp_path / "a.txt") == [odd, "second", "third", "fourth"]
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\n")
    assert read(tmp_path / "b.jsonl") == [odd]


def fault(path, column="prompt"):
    with pytest.raises(UserError) as error:
        read(path, column)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_row_that_is_no_text_is_named(tmp_path):
    parquet(tmp_path / "a.parquet", {"prompt": ["one", None]})
    assert "a.parquet, row 2: nothing stands where a text should" in fault(tmp_path / "a.parquet")
    parquet(tmp_path / "b.parquet", {"prompt": [b"one"]})
    assert "row 1: a bytes stands" in fault(tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("id,prompt\n1,one\n2\n")
    assert "c.csv, line 3: nothing stands" in fault(tmp_path / "c.csv")
    (tmp_path / "d.jsonl").write_text('{"prompt": "one"}\n{"prompt": 7}\n')
    assert "d.jsonl, line 2: a int stands" in fault(tmp_path / "d.jsonl")
    (tmp_path / "e.json").write_text('["one", " "]')
    assert "e.json, entry 2: the prompt is empty" in fault(tmp_path / "e.json")
    (tmp_path / "f.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    assert "f.txt, line 3: its bytes are no UTF-8" in fault(tmp_path / "f.txt")


def test_a_column_that_is_there_twice_or_not_at_all(tmp_path):
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    assert "has 2 columns 'prompt'" in fault(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("prompt,prompt\na,b\n")
    assert "has 2 columns 'prompt'" in fault(tmp_path / "b.csv")
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
    assert "names something twice" in fault(tmp_path / "c.jsonl")
    assert "no column 'caption' (it has: id, prompt)" in fault(write(tmp_path, ".csv"), "caption")
    assert "line 1 has no 'caption' (it has: prompt, tag)" in fault(write(tmp_path, ".jsonl"), "caption")


def test_text_in_parquet_whose_bytes_are_no_utf8(tmp_path):
    for bad in (b"caf\xe9", b"caf\xe9 au lait"):
        words = pyarrow.array([b"good", None, bad], pyarrow.binary())
        text = pyarrow.Array.from_buffers(pyarrow.string(), 3, words.buffers())
        pyarrow.parquet.write_table(pyarrow.table({"prompt": text.slice(0, 1)}), tmp_path / "a.parquet")
        assert list(read_prompts(str(tmp_path / "a.parquet"), "prompt")) == ["good"]
        pyarrow.parquet.write_table(pyarrow.table({"prompt": text.take([0, 2])}), tmp_path / "a.parquet")
        assert "a.parquet, row 2: its bytes are no UTF-8: write it as that" in fault(tmp_path / "a.parquet")


def test_files_that_are_not_what_they_say(tmp_path):
    assert "does not exist" in fault(tmp_path / "nothing.txt")
    assert "no file is called" in fault(tmp_path / "*.txt")
    assert "holds no prompt file (" in fault(tmp_path)
    (tmp_path / "a.parquet").write_text("one\n")
    assert "is not parquet" in fault(tmp_path / "a.parquet")
    (tmp_path / "a.docx").write_text("one\n")
    assert "is none of the known kinds" in fault(tmp_path / "a.docx")
    (tmp_path / "a.json").write_text('{"prompt": "one"}')
    assert "holds no list" in fault(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[one]")
    assert "it is not JSON" in fault(tmp_path / "b.json")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "holds no prompts" in fault(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "set AWS_ACCESS_KEY_ID"),
        (type("EndpointConnectionError", (Exception,), {})("Could not connect"), "set AWS_ENDPOINT_URL"),
        (PermissionError("Forbidden"), "the rights to it"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_sentence(monkeypatch, error, words):
    class Store:
        def isdir(self, path):
            raise error

    monkeypatch.setattr("dipp_ray.data.files.file_system", lambda path: (Store(), path))
    assert words in fault("s3://bucket/prompts.parquet")


def test_a_row_is_counted_through_the_row_groups(tmp_path):
    parquet(tmp_path / "a.parquet", {"prompt": ["one", "two", "three", "four", "\u3000\n"]}, groups=2)
    assert "a.parquet, row 5: the prompt is empty" in fault(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("text", "line"),
    [('prompt\na cat\n"12 inch ruler\n' + "one more\n" * 50, 3), ('prompt\n"a\n', 2), ('prompt\na\n"big" dog\n', 3)],
    ids=["never closed", "the last one", "closed too soon"],
)
def test_a_quote_that_swallows_what_follows_is_one_sentence(tmp_path, text, line):
    (tmp_path / "q.csv").write_text(text)
    assert f"q.csv: the row that begins on line {line} cannot be read" in fault(tmp_path / "q.csv")


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".txt", ".jsonl"])
def test_a_nul_byte_is_no_text(tmp_path, kind):
    (tmp_path / f"n{kind}").write_bytes(b"prompt\na\0b\n")
    assert f"n{kind}, line 2: a NUL byte is no text" in fault(tmp_path / f"n{kind}")
