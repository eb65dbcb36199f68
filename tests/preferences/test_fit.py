import io
import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from dipp_ray.errors import UserError
from dipp_ray.preferences.dataset import read_pairs
from dipp_ray.preferences.fit import FitSettings, _augment, _batches, bradley_terry_loss, fit_reward, pair_accuracy
from dipp_ray.rewards.clip import ClipReward
from tiny_models import PROMPTS, save_clip


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write_pairs(path, count, seed, size=8):
    """The annotator prefers the image whose colour is the prompt's: separable, and blind to the prompt it is not."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prompt = PROMPTS[rng.integers(len(PROMPTS))]
        images, wanted = [], 0 if "red" in prompt else 2
        for channel in rng.permutation([0, 2]):
            pixels = rng.integers(0, 100, (size, size, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            images.append((png(pixels), channel == wanted))
        (a, a_wanted), (b, _) = images
        rows.append({"prompt": prompt, "image_a": a, "image_b": b, "label": 0.95 if a_wanted else 0.05})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_loss_and_accuracy_have_their_closed_forms():
    margin, label = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1.0, 0.25, 0.5])
    sigmoid = [1 / (1 + math.exp(-m)) for m in margin.tolist()]
    pairs = zip(sigmoid, label.tolist(), strict=True)
    expected = -sum(p * math.log(q) + (1 - p) * math.log(1 - q) for q, p in pairs) / 3
    assert bradley_terry_loss(margin, label).item() == pytest.approx(expected, rel=1e-6)
    assert pair_accuracy(margin, label) == 1.0
    assert pair_accuracy(-margin, label) == 0.0
    assert pair_accuracy(torch.tensor([1.0, 1.0, 1.0]), label) == 0.5


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fit_learns_a_separable_problem(ray_session, tmp_path, workers):
    base = save_clip(tmp_path / "base")
    train, test = write_pairs(tmp_path / "train.parquet", 400, 0), write_pairs(tmp_path / "test.parquet", 200, 1)
    seen = []
    settings = FitSettings(steps=120, batch_size=32, warmup_steps=10, report_every=60, workers=workers)
    record = fit_reward(base, train, test, tmp_path / "out", settings, lambda step, metrics: seen.append(step))
    assert record["base_accuracy"] < 0.75
    assert record["accuracy"] > 0.97 and record["log_loss"] < 0.3 < record["base_log_loss"]
    assert seen == [0, 60, 120]
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["accuracy"] == record["accuracy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "test.parquet", "train.parquet"]

    pairs = read_pairs(test, 8)
    prompts = [pairs.prompts[index] for index in pairs.prompt]
    reward = ClipReward(tmp_path / "out")
    with torch.no_grad():
        margin = reward.reward(pairs.a / 255, prompts) - reward.reward(pairs.b / 255, prompts)
    assert pair_accuracy(margin, pairs.label) == pytest.approx(record["accuracy"], abs=1e-6)


def test_every_pair_comes_once_an_epoch_whatever_the_batch():
    rows = torch.cat(list(_batches(10, FitSettings(steps=5, batch_size=4))))
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))


def test_augmentation_moves_both_images_alike():
    a = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    settings = FitSettings(shift=1)
    moved, also = _augment(a, a, settings, (0, 1, 0))
    assert torch.equal(moved, also) and not torch.equal(moved, a / 255)
    for before, after in zip(a / 255, moved, strict=True):
        inner = after[:, 2:-2, 2:-2]
        shifts = [before[:, 2 + y : 6 + y, 2 + x : 6 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert any(torch.equal(inner, shifted) for shifted in shifts)
    noisy, _ = _augment(a, a, FitSettings(noise=0.1), (0, 1, 0))
    assert 0.02 < (noisy - a / 255).abs().mean() < 0.1 and noisy.min() >= 0 and noisy.max() <= 1


def test_images_of_other_sizes_are_brought_to_the_models(tmp_path):
    pairs = read_pairs(write_pairs(tmp_path / "pairs.parquet", 3, 0, size=20), 8)
    assert pairs.a.shape == (3, 3, 8, 8) and pairs.a.dtype == torch.uint8


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": None}, "no column label"),
        ({"label": [1.5]}, "no probability"),
        ({"label": [float("nan")]}, "no probability"),
        ({"image_a": [b"no image"]}, "row 0 does not decode"),
        ({"prompt": [], "image_a": [], "image_b": [], "label": []}, "is empty"),
    ],
)
def test_bad_pairs_are_one_sentence(tmp_path, columns, message):
    image = png(np.zeros((8, 8, 3), np.uint8))
    table = {"prompt": ["red"], "image_a": [image], "image_b": [image], "label": [0.5]} | columns
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({key: value for key, value in table.items() if value is not None}), path)
    with pytest.raises(UserError, match=message):
        read_pairs(path, 8)


def test_a_missing_file_is_refused_before_any_worker_starts(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.parquet"):
        fit_reward(save_clip(tmp_path / "base"), tmp_path / "nowhere.parquet", tmp_path / "x", tmp_path / "out")


def test_what_a_worker_refuses_is_one_sentence_and_leaves_the_old_fit(ray_session, tmp_path):
    base, out = save_clip(tmp_path / "base"), tmp_path / "out"
    pairs = write_pairs(tmp_path / "pairs.parquet", 20, 0)
    table = pyarrow.parquet.read_table(pairs)
    wrong = table.set_column(table.schema.get_field_index("label"), "label", pyarrow.array([2.0] * 20))
    pyarrow.parquet.write_table(wrong, tmp_path / "wrong.parquet")
    out.mkdir()
    (out / "fit.json").write_text("old")
    with pytest.raises(UserError, match=r"wrong\.parquet: a label is no probability"):
        fit_reward(base, tmp_path / "wrong.parquet", pairs, out, FitSettings(steps=1))
    assert (out / "fit.json").read_text() == "old"
