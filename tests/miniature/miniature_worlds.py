"""A miniature that is built in seconds."""

import hashlib

from dipp_ray.miniature.autoencoder import AutoencoderRecipe
from dipp_ray.miniature.build import MiniatureRecipe
from dipp_ray.miniature.gold import GoldRecipe
from dipp_ray.miniature.pairs import PairsRecipe
from dipp_ray.miniature.teacher import TeacherRecipe

TINY = MiniatureRecipe(
    autoencoder=AutoencoderRecipe(steps=4, batch=8, width=8),
    teacher=TeacherRecipe(ranks=1, steps=3, batch=4, layers=1, heads=2, head_width=12, text_width=16),
    gold=GoldRecipe(steps=30, batch=64, width=4),
    pairs=PairsRecipe(train=300, test=40, samples=8, sample_steps=(1, 2)),
)


def silent(line: str) -> None:
    pass


def checksums(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
