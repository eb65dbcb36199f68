"""The fitted model as a folder that `ClipReward` and transformers load, with its figures and a model card."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from dipp_ray.errors import UserError
from dipp_ray.preferences.calibration import measure_rows, reliability_cells
from dipp_ray.preferences.config import FitConfig
from dipp_ray.rewards.clip import clip_files, image_statistics, load_clip

RECORD = "fit.json"
CARD = """---
library_name: transformers
tags: [reward-model, preference, clip]
---
# A reward model fitted to preference pairs

A CLIPModel, fitted by Bradley-Terry with dipp-ray: P(a preferred) = sigmoid(r_a - r_b), and the reward
r(image, prompt) is logit_scale.exp() times the cosine of their features. In a configuration of dipp-ray:

```yaml
reward:
  terms:
    - {{name: preference, model: pickscore, folder: {folder}}}
```

| held out: {pairs:,} pairs | base | fitted |
|---|---|---|
{measures}

Confidence is the probability of the image that the model prefers; beside it, how often it was preferred indeed:

| confidence | pairs | mean confidence | preferred indeed |
|---|---|---|---|
{reliability}

| | |
|---|---|
| base | {base} |
| training pairs | {train_pairs:,}, from {source} |
| held out | {held_out} |
| updates | {steps:,} of {batch_size} pairs, AdamW, lr {lr:g} |
| licence | those of the base and of the pairs: nothing is granted beyond them |

It knows the taste of those who labelled the pairs, on images like theirs; far from them a high reward means nothing.
Keep another reward held out when training against it. Every setting is in fit.json.
"""


def read_record(folder: Path) -> dict | None:
    """fit.json of a finished fit's folder; None where there is no fit (an empty folder, or none).

    Raises UserError where `folder` holds something else: it is not for us to replace.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        if isinstance(record, dict) and "configuration" in record:
            return record
    except (OSError, ValueError):
        pass
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something other than a fitted reward: choose another `out`, or remove it")
    return None


def write_output(folder: Path, config: FitConfig, weights: Path, record: dict) -> None:
    """Fill `folder`: the base with `weights` (safetensors), its tokenizer, preprocessing, fit.json, README.md."""
    clip, tokenizer = load_clip(config.base)
    clip.load_state_dict(load_file(weights))
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = clip_files(config.base) / "preprocessor_config.json"
    if preprocessor.is_file():
        shutil.copyfile(preprocessor, folder / preprocessor.name)
    else:
        mean, std = image_statistics(config.base)
        (folder / preprocessor.name).write_text(json.dumps(_preprocessing(clip, mean, std), indent=2) + "\n")
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(card(config, record))
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its files private, and the service may be another user's


def card(config: FitConfig, record: dict) -> str:
    """README.md of the folder."""
    return CARD.format(
        folder=config.out,
        pairs=record["held_out_pairs"],
        measures="\n".join(f"| {' | '.join(row)} |" for row in measure_rows(record)),
        reliability="\n".join(f"| {' | '.join(reliability_cells(row))} |" for row in record["held_out"]["reliability"]),
        base=config.base,
        train_pairs=record["train_pairs"],
        source=config.pairs,
        held_out=config.held_out or f"{config.held_out_share:.0%} of the prompts, with all their pairs",
        steps=config.fit.steps,
        batch_size=config.fit.batch_size,
        lr=config.fit.lr,
    )


def _preprocessing(clip, mean: tuple[float, ...], std: tuple[float, ...]) -> dict:
    """What CLIPImageProcessor reads, for a base that came without it."""
    size = clip.config.vision_config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
