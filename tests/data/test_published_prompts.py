"""Published lists of prompts, in small files of their forms, by the one reader and its default column."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dipp_ray.data.prompts import read_prompts
from dipp_ray.errors import UserError

TEXTS = ["a bench", 'a sign that says "stop"', "ein kühner Zweier, gemalt"]


def parti(folder):
    """PartiPrompts.tsv: its quotes belong to the prompts."""
    rows = [f"{text}\tArts\tBasic\tnote" for text in TEXTS]
    (folder / "PartiPrompts.tsv").write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *rows]) + "\n")


def parti_as_parquet(folder):
    columns = {"Prompt": TEXTS, "Category": ["a"] * 3, "Challenge": ["b"] * 3, "Note": [None] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")


def drawbench(folder):
    quoted = [text.replace('"', '""') for text in TEXTS]
    (folder / "drawbench.csv").write_text("Prompts,Category\n" + "".join(f'"{text}",Colors\n' for text in quoted))


def coco(folder):
    annotations = [{"image_id": 9 - i, "id": i, "caption": text} for i, text in enumerate(TEXTS)]
    held = {"info": {}, "licenses": [], "images": [{"id": 9, "file_name": "9.jpg"}], "annotations": annotations}
    (folder / "captions_val2014.json").write_text(json.dumps(held))


def hpdv2(folder):
    """A list of texts a style; the styles follow each other by name."""
    for style, texts in (("paintings", TEXTS[2:]), ("anime", TEXTS[:2])):
        (folder / f"{style}.json").write_text(json.dumps(texts))


def geneval(folder):
    lines = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": text} for text in TEXTS]
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def flow_grpo(folder):
    (folder / "train.txt").write_text("\n".join(TEXTS))


@pytest.mark.parametrize("write", [parti, parti_as_parquet, drawbench, coco, hpdv2, geneval, flow_grpo])
def test_it_is_read_as_published(tmp_path, write):
    write(tmp_path)
    assert list(read_prompts(str(tmp_path), "prompt")) == TEXTS


def test_a_column_that_is_there_is_taken_before_a_published_one(tmp_path):
    (tmp_path / "a.csv").write_text("Prompts,Category\none,two\n")
    assert list(read_prompts(str(tmp_path / "a.csv"), "Category")) == ["two"]
    (tmp_path / "b.csv").write_text("Prompts,Category,more\none,two,three\n")
    with pytest.raises(UserError, match=r"has no column 'prompt' \(it has: Prompts, Category, more\): set data.column"):
        read_prompts(str(tmp_path / "b.csv"), "prompt")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", {"annotations": [{"id": 1}], "images": []}, r"entry 1 has no 'caption'"),
        ("a.json", {"annotations": [{"caption": " "}], "images": []}, r"entry 1: the prompt is empty"),
        ("a.json", {"annotations": {}, "images": []}, "holds no list"),
        ("a.json", {"prompts": TEXTS}, "holds no list: expected one of prompts, of objects with 'prompt', or COCO's"),
        ("a.yaml", TEXTS, "none of the known kinds"),
    ],
)
def test_what_is_none_of_the_known_forms_is_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        read_prompts(str(tmp_path / name), "prompt")
