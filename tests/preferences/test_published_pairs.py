"""Published preference data, in small files of their forms: the pairs that each gives, and one sentence for faults."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.local import LocalFileSystem
from preference_pairs import encoded, make_rows, write_parquet

from dipp_ray.errors import UserError
from dipp_ray.preferences.config import ColumnSettings
from dipp_ray.preferences.reading import ROWS, read_images, read_labels

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}


def picture(name, kind="PNG"):
    return encoded(np.full((8, 8, 3), COLOURS[name], np.uint8), kind)


def saved(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.png").write_bytes(picture(name))


def named(image):
    """The colour of an image [3, 8, 8]."""
    return next(name for name, colour in COLOURS.items() if abs(image[:, 4, 4].astype(int) - colour).max() < 40)


def pairs(path):
    """[(prompt, name of a, name of b, label)] of a file."""
    columns = ColumnSettings()
    labels = read_labels(str(path), columns)
    images = np.concatenate(list(read_images(labels, columns, 8, lambda row: True)))
    assert len(images) == len(labels)
    return [
        (prompt, named(a), named(b), float(label))
        for prompt, (a, b), label in zip(labels.prompts, images, labels.label, strict=True)
    ]


def dumped(path, rows):
    path.write_text(json.dumps(rows))
    return path


def pick_a_pic(a, b, label, has_label=True, **more):
    row = {"caption": f"{a} or {b}", "jpg_0": picture(a, "JPEG"), "jpg_1": picture(b, "JPEG"), "label_0": label}
    return row | {"label_1": 1 - label, "has_label": has_label, "image_0_uid": a, "best_image_uid": a} | more


def test_pick_a_pic_v2(tmp_path):
    rows = [
        pick_a_pic("red", "blue", 1.0),
        pick_a_pic("green", "grey", 0.0, has_label=False),  # nobody chose
        pick_a_pic("grey", "red", 0.5),
        pick_a_pic("blue", "green", 0.0),
    ]
    found = pairs(write_parquet(tmp_path / "validation.parquet", rows))
    assert found == [
        ("red or blue", "red", "blue", 1.0), ("grey or red", "grey", "red", 0.5),
        ("blue or green", "blue", "green", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("paths", ["file_path", "image_path"])
@pytest.mark.parametrize("beside", [False, True])
def test_hpdv2(tmp_path, beside, paths):
    """Its images lie in a folder of the file's name, or beside it; train.json was published with either column."""
    for part in ("train", "test"):
        saved(tmp_path / ("" if beside else part), *COLOURS)
    train = [
        {"prompt": "one", paths: ["red.png", "blue.png"], "human_preference": [0, 1], "user_hash": "x"},
        {"prompt": "two", paths: ["grey.png", "red.png"], "human_preference": [1, 0], "user_hash": "y"},
    ]
    assert pairs(dumped(tmp_path / "train.json", train)) == [("one", "red", "blue", 0.0), ("two", "grey", "red", 1.0)]
    test = [{"prompt": "three", "image_path": ["red.png", "green.png", "blue.png"], "rank": [2, 1, 2]}]
    assert pairs(dumped(tmp_path / "test.json", test)) == [
        ("three", "red", "green", 0.0), ("three", "red", "blue", 0.5), ("three", "green", "blue", 1.0)
    ]  # fmt: skip


def test_hpdv3(tmp_path):
    saved(tmp_path / "images", *COLOURS)

    def row(a, b, **more):
        return {"prompt": a, "path1": f"images/{a}.png", "path2": f"images/{b}.png", "model1": "x"} | more

    rows = [
        row("red", "blue", choice_dist=[9, 3], confidence=0.99),
        row("green", "grey", choice_dist=None, confidence=0.9),
        row("blue", "red", choice_dist=None, confidence=None),
    ]
    found = pairs(dumped(tmp_path / "train.json", rows))
    assert [one[:3] for one in found] == [("red", "red", "blue"), ("green", "green", "grey"), ("blue", "blue", "red")]
    assert [one[3] for one in found] == pytest.approx([0.75, 0.9, 1.0])


def image_reward_rows():
    ranks = [("p1", "red", 1), ("p2", "blue", 2), ("p1", "green", 3), ("p1", "grey", 3), ("p2", "red", 1)]
    return [
        {"image_path": f"./images/{name}.png", "prompt_id": number, "prompt": f"of {number}", "rank": rank,
         "overall_rating": 5, "image_amount_in_total": 3}
        for number, name, rank in ranks
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_image_reward_db(tmp_path, kind):
    """All pairs of a prompt's images, wherever its rows stand."""
    saved(tmp_path / "images", *COLOURS)
    path = tmp_path / f"train.{kind}"
    write_parquet(path, image_reward_rows()) if kind == "parquet" else dumped(path, image_reward_rows())
    assert pairs(path) == [
        ("of p1", "red", "green", 1.0), ("of p1", "red", "grey", 1.0), ("of p1", "green", "grey", 0.5),
        ("of p2", "blue", "red", 0.0),
    ]  # fmt: skip


def test_a_prompt_of_image_reward_db_lies_in_one_file(tmp_path):
    saved(tmp_path / "images", *COLOURS)
    rows = image_reward_rows()
    by_prompt = [[row for row in rows if row["prompt_id"] == number] for number in ("p1", "p2")]
    for name, part in zip("ab", by_prompt, strict=True):
        dumped(tmp_path / f"{name}.json", part)
    assert len(pairs(tmp_path)) == 4
    dumped(tmp_path / "a.json", rows[:3])
    dumped(tmp_path / "b.json", rows[3:])
    with pytest.raises(UserError, match=r"b\.json, entry \d: prompt_id p1 is in .*a\.json too: put its"):
        pairs(tmp_path)


@pytest.mark.parametrize("part", ["images/train/train_1/train_1.json", "metadata-train.parquet"])
def test_image_reward_db_names_its_images_from_the_root(tmp_path, part):
    """As it is published: the .json of a part beside its images, the parquet at the root."""
    folder, path = tmp_path / "images/train/train_1", tmp_path / part
    saved(folder, *COLOURS)
    rows = [row | {"image_path": f"images/train/train_1/{row['image_path'][9:]}"} for row in image_reward_rows()]
    write_parquet(path, rows) if part.endswith("parquet") else dumped(path, rows)
    assert [f"{a} {b}" for _, a, b, _ in pairs(path)] == ["red green", "red grey", "green grey", "blue red"]
    (folder / "grey.png").unlink()
    said = r"(row|entry) \d+, \w+ image: there is no images/train/train_1/grey.png beside the file or in the folders"
    with pytest.raises(UserError, match=said):
        pairs(path)


def test_images_are_looked_for_first_where_those_before_them_lay(tmp_path, monkeypatch):
    asked, cat = [], LocalFileSystem.cat_ranges

    def counted(self, paths, *arguments, **more):
        asked.append(len(paths))
        return cat(self, paths, *arguments, **more)

    saved(tmp_path / "deep/er", "red", "blue")
    rows = [
        {"image_path": f"deep/er/{name}.png", "prompt_id": number, "prompt": "p", "rank": 1}
        for number in range(3 * ROWS)
        for name in ("red", "blue")
    ]
    path = dumped(tmp_path / "deep/er/part.json", rows)
    monkeypatch.setattr(LocalFileSystem, "cat_ranges", counted)
    assert len(pairs(path)) == 3 * ROWS
    assert asked == [2, 2, 2, 2, 2], "three folders for the first images, one for the others"


def test_only_hpdv2_has_its_images_in_a_folder_of_its_name(tmp_path):
    saved(tmp_path / "train", *COLOURS)
    rows = [{"prompt": "p", "path1": "train/red.png", "path2": "train/blue.png"}]
    assert pairs(dumped(tmp_path / "train.json", rows)) == [("p", "red", "blue", 1.0)]


def test_the_rows_that_are_wanted_are_those_of_the_labels(tmp_path):
    rows = [pick_a_pic("red", "blue", 1.0, has_label=number % 3 > 0) for number in range(100)]
    rows[50] = pick_a_pic("green", "grey", 0.0)
    path, columns = write_parquet(tmp_path / "p.parquet", rows), ColumnSettings()
    labels = read_labels(path, columns)
    (number,) = [i for i, prompt in enumerate(labels.prompts) if prompt == "green or grey"]
    (images,) = read_images(labels, columns, 8, lambda row: row == number)
    assert [named(image) for image in images[0]] == ["green", "grey"] and len(labels) == 66


def test_columns_that_are_named_are_taken_before_a_form(tmp_path):
    """A file may have the marks of a published form besides."""
    rows = [row | {"path1": "x", "path2": "y"} for row in make_rows(3, 0)]
    labels = read_labels(write_parquet(tmp_path / "p", rows), ColumnSettings())
    assert labels.label.tolist() == [np.float32(row["label"]) for row in rows]


def test_only_what_is_asked_for_is_read_of_parquet(tmp_path, monkeypatch):
    asked, read = [], pyarrow.parquet.ParquetFile.iter_batches

    def counted(self, *arguments, columns, **more):
        asked.append(sorted(columns))
        return read(self, *arguments, columns=columns, **more)

    path = write_parquet(tmp_path / "p", [pick_a_pic("red", "blue", 1.0)])
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    read_labels(path, ColumnSettings())
    assert asked == [["caption", "has_label", "label_0"]], "labels need no image"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"prompt": "a", "image_path": ["x"], "human_preference": [1, 0]}],
            "entry 1: image_path and human_preference",
        ),
        ([{"prompt": "a", "file_path": ["x"], "human_preference": [1, 0]}], "entry 1: file_path and human_preference"),
        ([{"prompt": "a", "image_path": ["x", "y"], "rank": [1, None]}], "entry 1: a rank is no number"),
        ([{"prompt": "a", "path1": "x", "path2": "y", "confidence": 7}], "entry 1: label 7 is no probability"),
        ([{"prompt": "a", "path1": "x", "path2": "y"}, {"prompt": "b"}], r"entry 2: no path1, path2, as in HPDv3"),
        ([{"prompt": "a", "images": ["x", "y"]}], r"entry 1: no column image_a, image_b, label"),
        ([["a", "b"]], "entry 1: no object"),
        ([{"prompt": " ", "path1": "x", "path2": "y"}], "entry 1: the prompt is empty"),
    ],
)
def test_what_is_none_of_the_forms_is_one_sentence(tmp_path, rows, sentence):
    with pytest.raises(UserError, match=f"preference pairs .*, {sentence}"):
        read_labels(str(dumped(tmp_path / "train.json", rows)), ColumnSettings())


def test_a_list_that_is_cut_off_is_one_sentence(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(image_reward_rows())[:-5])
    with pytest.raises(UserError, match="it is not JSON"):
        read_labels(str(tmp_path / "train.json"), ColumnSettings())
