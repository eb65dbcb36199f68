"""Pairs from every kind of file that is read, and one sentence for each kind that is not."""

import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from preference_pairs import encoded, in_base64, make_rows, write_jsonl, write_parquet

from dipp_ray.errors import UserError
from dipp_ray.preferences.config import ColumnSettings
from dipp_ray.preferences.dataset import is_held_out, load_pairs, split, store_pairs
from dipp_ray.preferences.images import decode
from dipp_ray.preferences.reading import Labels, read_images, read_labels
from dipp_ray.storage import remote
from dipp_ray.storage.remote import file_system

COLUMNS = ColumnSettings()


def read(path, columns=COLUMNS, size=8):
    """(labels, images [N, 2, 3, size, size]) of a whole file."""
    labels = read_labels(path, columns)
    return labels, np.concatenate(list(read_images(labels, columns, size, lambda row: True)))


@pytest.fixture(scope="module")
def rows():
    return make_rows(70, 0)  # more than are read together


@pytest.fixture(scope="module")
def pixels(rows):
    pairs = [[np.asarray(Image.open(io.BytesIO(row[key]))) for key in ("image_a", "image_b")] for row in rows]
    return np.array(pairs).transpose(0, 1, 4, 2, 3)


def beside(folder, rows):
    """The same rows with their images in files beside."""
    (folder / "images").mkdir(exist_ok=True)
    named = []
    for number, row in enumerate(rows):
        for key in ("image_a", "image_b"):
            (folder / "images" / f"{number} [{key}]*.png").write_bytes(row[key])  # no pattern, though it looks like one
        named.append(row | {key: f"images/{number} [{key}]*.png" for key in ("image_a", "image_b")})
    return named


def as_struct(rows, bytes_kept):
    return [
        row | {key: {"bytes": row[key] if bytes_kept else None, "path": row[key] if not bytes_kept else None}
               for key in ("image_a", "image_b")}
        for row in rows
    ]  # fmt: skip


FILES = {
    "parquet, bytes": lambda folder, rows: write_parquet(folder / "p", rows),
    "parquet, struct": lambda folder, rows: write_parquet(folder / "p", as_struct(rows, True)),
    "parquet, struct of paths": lambda folder, rows: write_parquet(
        folder / "p", as_struct(beside(folder, rows), False)
    ),
    "parquet, paths": lambda folder, rows: write_parquet(folder / "p", beside(folder, rows)),
    "jsonl, paths": lambda folder, rows: write_jsonl(folder / "p", beside(folder, rows)),
    "jsonl, base64": lambda folder, rows: write_jsonl(folder / "p", [in_base64(row) for row in rows]),
    "jsonl, data uri": lambda folder, rows: write_jsonl(
        folder / "p", [in_base64(row, "data:image/png;base64,") for row in rows]
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, rows, pixels, kind):
    labels, images = read(FILES[kind](tmp_path, rows))
    assert labels.prompts == tuple(row["prompt"] for row in rows)
    assert labels.label.tolist() == [np.float32(row["label"]) for row in rows]
    assert images.dtype == np.uint8 and np.array_equal(images, pixels)


def now_and_then():
    """A fault of a moment in the first request of the pairs, and of every ninth image."""
    seen = set()

    def fault(number, method, path):
        new = path not in seen
        seen.add(path)
        return ("500", "503", "throttled", "reset")[number % 4] if new and len(seen) % 9 == 1 else None

    return fault


def test_s3_reads_like_a_folder(tmp_path, rows, pixels, s3, bucket):
    fs, root = file_system(bucket)
    for name in ("parquet, bytes", "jsonl, paths"):
        (folder := tmp_path / name.replace(", ", "_")).mkdir()
        FILES[name](folder, rows)
        for path in folder.rglob("*"):
            if path.is_file():
                fs.put_file(str(path), f"{root}/{folder.name}/{path.relative_to(folder)}")
        with s3.faults(now_and_then()):
            labels, images = read(f"{bucket}/{folder.name}/p")
        assert len(labels) == len(rows) and np.array_equal(images, pixels)
    with pytest.raises(UserError, match=r"s3://.*/nowhere does not exist"):
        read_labels(f"{bucket}/nowhere", COLUMNS)
    gone = write_parquet(tmp_path / "gone", [rows[0] | {"image_a": "gone.png", "image_b": "gone.png"}])
    fs.put_file(gone, f"{root}/gone")
    with pytest.raises(UserError, match=r"row 0, first image: there is no gone\.png beside"):
        read(f"{bucket}/gone")


def test_a_store_that_fails_is_one_sentence_which_names_the_row(tmp_path, rows, s3, bucket, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    fs, root = file_system(bucket)
    pair = rows[0] | {"image_a": "a.png", "image_b": "a.png"}
    fs.put_file(write_parquet(tmp_path / "pairs", [pair]), f"{root}/pairs")
    with s3.faults(lambda number, method, path: "503"), pytest.raises(UserError) as caught:
        read_labels(f"{bucket}/pairs", COLUMNS)
    assert str(caught.value).startswith(f"preference pairs {bucket}/pairs: its store fails, or has too much to do (")
    assert len(s3.requests) == 1
    refused = pytest.raises(UserError, match=rf"/pairs, row 0, first image: {bucket}/a\.png: its store fails")
    with s3.faults(lambda number, method, path: "503" if "a.png" in path else None), refused:
        read(f"{bucket}/pairs")
    with pytest.raises(UserError, match=r"^preference pairs s3://nowhere/pairs: there is no such bucket: make it"):
        read_labels("s3://nowhere/pairs", COLUMNS)


def test_labels_in_words_and_numbers(tmp_path, rows):
    given = ["a", "b", "tie", 1, 0, 0.5, 0.25, True]
    path = write_jsonl(tmp_path / "p.jsonl", [in_base64(rows[0]) | {"label": label} for label in given])
    assert read_labels(path, COLUMNS).label.tolist() == [1, 0, 0.5, 1, 0, 0.5, 0.25, 1]


def test_columns_can_be_named(tmp_path, rows):
    renamed = [
        {"caption": r["prompt"], "jpg_0": r["image_a"], "jpg_1": r["image_b"], "label_0": r["label"]} for r in rows
    ]
    columns = ColumnSettings(prompt="caption", image_a="jpg_0", image_b="jpg_1", label="label_0")
    labels, _ = read(write_parquet(tmp_path / "p", renamed), columns)
    assert labels.label.tolist() == [np.float32(row["label"]) for row in rows]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind):
    pixels = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    assert np.abs(decode(encoded(pixels, kind), 8).astype(int) - [[[200]], [[40]], [[90]]]).max() <= 3


def test_images_of_other_sizes_are_brought_to_the_models():
    ramp = np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (20, 1, 3))  # 20 high, 40 wide
    small = decode(encoded(ramp), 8)
    assert small.shape == (3, 8, 8) and small.dtype == np.uint8
    # The middle of the wide side: columns 10 to 30, of mean 6 x 19.5.
    assert abs(small.mean() - 117) < 2 and (np.diff(small[0].astype(int), axis=1) > 0).all()


def test_a_very_large_side_is_shrunk_as_the_others_are():
    ramp = np.tile((np.arange(2080) / 9).astype(np.uint8)[None, :, None], (1040, 1, 3))
    large, small = decode(encoded(ramp), 8), decode(encoded(ramp[::2, ::2].copy()), 8)
    assert large.shape == (3, 8, 8) and np.abs(large.astype(int) - small).max() <= 3


def bomb(width, height):
    """A PNG of a hundred bytes whose header claims so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("side", "words"), [(8001, "8001 x 8001 pixels, over the limit"), (60000, "claims more pixels")]
)
def test_a_decompression_bomb_is_refused_before_it_takes_memory(side, words):
    with warnings.catch_warnings(), pytest.raises(UserError, match=words):
        warnings.simplefilter("error")
        decode(bomb(side, side), 8)


@pytest.mark.parametrize(("width", "height"), [(2048, 1), (1, 2048), (16_000_000, 1)])
def test_a_lopsided_image_is_refused_for_resizing_takes_memory_by_its_aspect(width, height):
    with pytest.raises(UserError, match="more than 8 times as long as wide"):
        decode(bomb(width, height), 224)


IMAGE = encoded(np.zeros((8, 8, 3), np.uint8))
GOOD = {"prompt": "red", "image_a": IMAGE, "image_b": IMAGE, "label": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, r"row 1: label None is no probability: give a number in \[0, 1\], or a, b, tie"),
        ({"label": 1.5}, "row 1: label 1.5 is no probability"),
        ({"label": float("nan")}, "label nan is no probability"),
        ({"prompt": " "}, "row 1: the prompt is empty"),
        ({"prompt": None}, "row 1: the prompt is empty"),
        ({"image_a": b"no image"}, "row 1, first image: it is no PNG, JPEG or WEBP file"),
        ({"image_a": IMAGE[:45]}, "row 1, first image: it does not decode"),
        ({"image_b": None}, "row 1, second image: it is neither bytes, base64 nor a path"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read(write_parquet(tmp_path / "pairs.parquet", [GOOD, GOOD | change]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_a": "gone.png"},
            r"first image: there is no gone\.png beside the file .*, nor is that an image in base64",
        ),
        ({"image_a": "/etc/hostname"}, "line 1, first image: /etc/hostname is not below the file's folder"),
        ({"image_a": "../x.png"}, r"\.\./x\.png is not below the file's folder"),
        ({"image_a": "s3://b/x.png"}, "is not below the file's folder"),
        ({"image_a": "iVBORw0KGgo!"}, "it is no base64"),
        ({"image_b": "QUJD" * 300}, r"line 1, second image: (QUJD){5}\.\.\. is no PNG, JPEG or WEBP file in base64"),
        ({"image_a": 7}, "line 1, first image: it is neither bytes, base64 nor a path"),
        ({"label": "c"}, "label 'c' is no probability"),
        ({"label": "left"}, "label 'left' is no probability"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read(write_jsonl(tmp_path / "pairs.jsonl", [in_base64(GOOD) | change]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"prompt": "red"}', r"line 1: no column image_a, image_b, label \(it has: prompt\)"),
        (b"[1]", "entry 1: no object"),
        (b'[{"prompt": "red", "prompt": "blue"}]', ": an object names something twice: keep one"),
        (b'{"prompt": "red", "prompt": "blue"}', "line 1: an object names something twice: keep one"),
        (b"prompt,image_a\n", "line 1: neither JSON nor parquet"),
        (b"\xff\xfe", "line 1: neither JSON nor parquet"),
        (b"PAR1 and nothing more", "cannot be read: .*: write it anew"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, message):
    (tmp_path / "pairs").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(str(tmp_path / "pairs"), COLUMNS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere.parquet", "nosuch://bucket/pairs", "."])
def test_a_file_that_cannot_be_opened_is_one_sentence(path):
    with pytest.raises(UserError, match=r"does not exist: set|holds no preference pairs \(.*: set|: correct the URL"):
        read_labels(path, COLUMNS)


@pytest.mark.parametrize("given", ["", "*.parquet"])
def test_shards_are_one_set_in_the_order_of_their_names(tmp_path, rows, pixels, given, s3, bucket):
    cut = len(rows) // 2
    fs, root = file_system(bucket)
    for name, part in (("b.parquet", rows[cut:]), ("a.parquet", rows[:cut])):
        fs.put_file(write_parquet(tmp_path / name, part), f"{root}/shards/{name}")
    (tmp_path / "read.me").write_text("no pairs")
    for place in (str(tmp_path), f"{bucket}/shards"):
        path = f"{place}/{given}".rstrip("/")
        labels, images = read(path)
        assert labels.prompts == tuple(row["prompt"] for row in rows) and np.array_equal(images, pixels)
        assert labels.size == sum((tmp_path / name).stat().st_size for name in ("a.parquet", "b.parquet"))
        later = np.concatenate(list(read_images(labels, COLUMNS, 8, lambda row: row >= cut - 1)))
        assert np.array_equal(later, pixels[cut - 1 :])


def test_a_damaged_shard_is_named_with_the_remedy(tmp_path):
    path = Path(write_parquet(tmp_path / "a.parquet", [GOOD | {"prompt": f"red {i}"} for i in range(99)]))
    whole = bytearray(path.read_bytes())
    whole[4:60] = bytes(255 - byte for byte in whole[4:60])
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read: .*[^.]: write it anew$"):
        read(str(tmp_path))


def test_a_fault_in_a_shard_names_that_file(tmp_path):
    write_parquet(tmp_path / "a.parquet", [GOOD])
    write_parquet(tmp_path / "b.parquet", [GOOD, GOOD | {"image_b": b"no image"}])
    with pytest.raises(UserError, match=r"b\.parquet, row 1, second image: it is no PNG"):
        read(str(tmp_path))


def test_files_of_a_folder_that_are_of_pairs(tmp_path):
    """Each kind is read; hidden files and folders are not, nor a library's notes in JSON beside parquet."""
    write_jsonl(tmp_path / "b.jsonl", [in_base64(GOOD) | {"prompt": "second"}])
    (tmp_path / "a.json").write_text(json.dumps([in_base64(GOOD) | {"prompt": "first"}]))
    (tmp_path / "._a.json").write_bytes(b"of a Mac")
    (tmp_path / "sub.parquet").mkdir()
    for path in (tmp_path, f"{tmp_path}/*"):
        assert read_labels(str(path), COLUMNS).prompts == ("first", "second")
    write_parquet(tmp_path / "c.parquet", [GOOD | {"prompt": "third"}])
    assert read_labels(str(tmp_path), COLUMNS).prompts == ("third",)


def test_a_column_that_is_there_twice(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"column prompt is there twice: rename one"):
        read_labels(str(tmp_path / "p.parquet"), COLUMNS)


@pytest.mark.parametrize("kind", ["deep gray", "turned", "transparent"])
def test_pairs_show_what_the_service_shows(kind):
    """16 bits, EXIF's orientation, transparency over white: by the one reader of pictures."""
    out, ramp = io.BytesIO(), np.arange(64, dtype=np.uint32).reshape(8, 8)
    if kind == "deep gray":
        Image.fromarray((ramp * 1040).astype(np.uint16)).save(out, "PNG")
        expected = np.broadcast_to((ramp * 1040 + 128) // 257, (3, 8, 8))
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 3
        Image.fromarray(np.stack([ramp.astype(np.uint8) * 4] * 3, -1)).save(out, "PNG", exif=exif)
        expected = np.broadcast_to(ramp[::-1, ::-1] * 4, (3, 8, 8))
    else:
        Image.fromarray(np.zeros((8, 8, 4), np.uint8), "RGBA").save(out, "PNG")
        expected = np.full((3, 8, 8), 255)
    assert np.array_equal(decode(out.getvalue(), 8), expected)


def test_an_empty_shard_is_named(tmp_path):
    write_parquet(tmp_path / "b.parquet", [GOOD])
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"c\.parquet is empty"):
        read_labels(str(tmp_path), COLUMNS)


def test_a_file_that_appears_meanwhile_is_not_taken_for_the_one_that_was_read(tmp_path):
    write_parquet(tmp_path / "b.parquet", [GOOD | {"image_a": encoded(np.full((8, 8, 3), 9, np.uint8))}])
    labels = read_labels(str(tmp_path), COLUMNS)
    write_parquet(tmp_path / "a.parquet", [GOOD])
    (images,) = read_images(labels, COLUMNS, 8, lambda row: True)
    assert (images[0, 0] == 9).all()


def test_a_name_that_reads_like_a_pattern_is_a_name(tmp_path):
    assert len(read(write_parquet(tmp_path / "pairs[1].parquet", [GOOD]))[0]) == 1


def test_stored_pairs_are_the_chosen_rows(tmp_path, rows, pixels):
    labels = read_labels(write_parquet(tmp_path / "p", rows), COLUMNS)
    chosen, ticks = list(range(1, 70, 2)), []
    store_pairs(tmp_path / "stored", labels, chosen, COLUMNS, 8, ticks.append)
    pairs = load_pairs(tmp_path / "stored")
    assert len(pairs) == len(chosen) and ticks[-1] == len(chosen)
    assert np.array_equal(pairs.images, pixels[chosen])
    assert [pairs.prompts[index] for index in pairs.prompt] == [rows[row]["prompt"] for row in chosen]
    assert torch.equal(pairs.label, torch.tensor([rows[row]["label"] for row in chosen]))
    assert torch.equal(pairs.both(torch.tensor([3, 0])), torch.from_numpy(pixels[[7, 1]]))
    with pytest.raises(UserError, match="is not seen on this machine"):
        load_pairs(tmp_path / "elsewhere")


def test_what_a_stopped_decoding_left_is_not_taken_for_pairs(tmp_path, rows):
    labels = read_labels(write_parquet(tmp_path / "p", [*rows, GOOD | {"image_a": b"no image"}]), COLUMNS)
    with pytest.raises(UserError, match="row 70"):
        store_pairs(tmp_path / "stored", labels, list(range(71)), COLUMNS, 8, lambda done: None)
    assert not (tmp_path / "stored").exists()


def test_the_split_is_by_prompt_and_stays_as_the_file_grows():
    prompts = tuple(f"prompt {number % 500}" for number in range(2000))
    labels = Labels("pairs", ("pairs",), prompts, np.zeros(2000, np.float32), 1)
    train, held_out = split(labels, 0.2)
    assert sorted(train + held_out) == list(range(2000))
    assert not {prompts[row] for row in train} & {prompts[row] for row in held_out}
    assert 0.14 < len(held_out) / 2000 < 0.26
    assert {prompt for prompt in prompts if is_held_out(prompt, 0.1)} < {prompts[row] for row in held_out}
    for share, words in ((1e-9, "none"), (1 - 1e-9, "all")):
        with pytest.raises(UserError, match=f"puts {words} of the 500 prompts"):
            split(labels, share)
