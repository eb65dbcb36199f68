"""Embeddings for tests, made in this process."""

from contextlib import nullcontext
from pathlib import Path

import torch

from dipp_ray.config import RunConfig
from dipp_ray.encoding.command import encode
from dipp_ray.encoding.encoder import Encoder


def here(config: RunConfig):
    """One encoder, in this process."""
    return nullcontext([Encoder(config, torch.device("cpu"))])


def encoded(config: RunConfig, folder: Path, dtype: str = "fp32", rows: int = 2, encoders=here) -> Path:
    """The folder, with the embeddings of the configuration's prompts."""
    encode(config, str(folder), encoders, lambda _: None, dtype, rows)
    return folder
