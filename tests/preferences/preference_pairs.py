"""Preference pairs that a tiny CLIP learns in seconds, and the files they come in."""

import base64
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from dipp_ray.preferences.config import FitConfig
from dipp_ray.settings import apply_override, validate
from tiny_models import PROMPTS


def encoded(pixels, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return data.getvalue()


def make_rows(count, seed, size=8, kind="PNG"):
    """The annotator prefers the image whose colour is the prompt's: separable, and blind to the prompt it is not."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prompt = PROMPTS[rng.integers(len(PROMPTS))]
        images, wanted = [], 0 if "red" in prompt else 2
        for channel in rng.permutation([0, 2]):
            pixels = rng.integers(0, 100, (size, size, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            images.append((encoded(pixels, kind), channel == wanted))
        (a, a_wanted), (b, _) = images
        rows.append({"prompt": prompt, "image_a": a, "image_b": b, "label": 0.95 if a_wanted else 0.05})
    return rows


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_pairs(path, count, seed, size=8):
    return write_parquet(path, make_rows(count, seed, size))


def in_base64(row, head=""):
    images = {key: head + base64.b64encode(row[key]).decode() for key in ("image_a", "image_b")}
    return row | images


def fit_config(folder, base, pairs, held_out, *overrides) -> FitConfig:
    data = {"base": str(base), "pairs": str(pairs), "held_out": str(held_out), "out": str(folder / "out")}
    data["fit"] = {"steps": 120, "batch_size": 32, "warmup_steps": 10, "report_every": 60}
    for override in overrides:
        apply_override(data, override)
    return validate(data, FitConfig, "test")
