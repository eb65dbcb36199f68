"""`dipp-ray sample`: images of an exported generator as files, by plain diffusers."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dipp_ray.errors import UserError
from dipp_ray.evaluation.folders import pipeline_of
from dipp_ray.models.pipeline import device_of_this_process, one_step_of_folder, read_frame
from dipp_ray.models.plain_pipeline import PlainPipeline, load_pipeline
from dipp_ray.reporting.waiting import waiting
from dipp_ray.storage.aside import whole_file

SMALLEST_SIDE = 256  # of a written image, pixels; smaller ones are enlarged by a whole factor
SUFFIX = ".png"


@dataclass(frozen=True)
class Wanted:
    """One image: its prompt, and the seed of torch.Generator().manual_seed that its noise comes from."""

    prompt: str
    seed: int


def sample(
    folder: str | Path,
    prompts: list[str],
    out: str | Path,
    *,
    seed: int = 0,
    count: int = 1,
    batch: int = 8,
    device: str | None = None,
    family: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write `count` one-step images of each prompt, from the seeds seed .. seed + count - 1; returns their files.

    folder: a run's, a pipeline's, or a hub's id. out: a .png for one image; for several a folder, which is made, and
    they are numbered in it, prompt by prompt. batch: images at a time, which changes none of them beyond rounding.
    device: as torch names it; None: the first GPU, or the CPU. family: 'package.module:Class' of one that the package
    does not know. Each pixel of an image below 256 pixels becomes a square of as many as brings its shorter side there.
    Raises UserError, before a weight is read, where the folder holds no exported one-step generator, a prompt is empty,
    or `out` cannot be written.
    """
    wanted = [Wanted(prompt, seed + i) for prompt in prompts for i in range(count)]
    pipeline, out = pipeline_of(folder), Path(out)
    check_prompts(prompts)
    files = files_in(out, len(wanted))
    frame = read_frame(pipeline, family)
    if one_step_of_folder(pipeline) is None:
        raise UserError(
            f"{pipeline} is no one-step generator that was exported here (it has no one_step.json): give the pipeline/ "
            "of a run"
        )
    with waiting(f"the weights of {pipeline}"):
        plain = load_pipeline(pipeline, device_named(device), frame)
    if len(files) > 1:
        out.mkdir(exist_ok=True)
    with waiting(f"{len(files)} images") as detail:
        for done, (file, image) in enumerate(zip(files, images_of(plain, wanted, batch), strict=True), start=1):
            detail(f"{done} of {len(files)}")
            write(image, file)
    say(str(out))
    return files


def check_prompts(prompts: list[str]) -> None:
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("the prompt is empty: give --prompt some words")


def files_in(out: Path, number: int) -> list[Path]:
    """Where the images go. Raises UserError where they cannot."""
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} to write {out.name} into: make it first")
    if number == 1 and not out.is_dir():
        return [out]
    if out.suffix == SUFFIX or out.is_file():
        raise UserError(f"{number} images do not go into the one file {out}: give --out a folder")
    return [out / f"{i:0{len(str(number - 1))}}{SUFFIX}" for i in range(number)]


def device_named(name: str | None) -> torch.device:
    """Raises UserError for a name that torch does not know, or a GPU that is not there."""
    if name is None:
        return device_of_this_process()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--device {name}: torch has none here ({reason}): write cpu, cuda or cuda:1") from None
    return device


def images_of(plain: PlainPipeline, wanted: list[Wanted], batch: int) -> Iterator[Image.Image]:
    """The images in order, `batch` at a time; each from its own generator, so that it does not depend on the others."""
    for start in range(0, len(wanted), batch):
        some = wanted[start : start + batch]
        generators = [torch.Generator().manual_seed(one.seed) for one in some]
        yield from plain.pipeline([one.prompt for one in some], generator=generators, **plain.arguments()).images


def write(image: Image.Image, file: Path) -> None:
    factor = math.ceil(SMALLEST_SIDE / min(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    with whole_file(file) as aside:
        image.save(aside, format="PNG")
