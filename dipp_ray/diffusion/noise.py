"""Keyed randomness: every draw is a function of (seed, step, repeat, sample index, purpose), wherever it is made.

The key is BLAKE2b-128 over the five, as documented at `key_of`, and feeds NumPy's counter-based Philox generator on
the CPU. So a run follows one trajectory at any number of ranks, before and after a restart. (torch's own CPU
generator keeps 32 bits of a seed and draws differently below 16 elements.)
"""

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Purpose = Literal["prompt", "z", "score_t", "score_eps", "divergence_t", "divergence_eps", "adapter"]


# Numbers of one draw from which threads pay for themselves: two milliseconds' worth.
PARALLEL_FROM = 2**18

# Steps below zero belong to draws outside training's own steps.
EVALUATION, STANDARDISATION, SCORE_WARMUP = -1, -2, -3
BARRIER = -4  # of calls between two steps, which draw nothing
ADAPTER = -5  # of an adapter's first weights: repeat 0 is the generator's, 1 the score model's


def key_of(seed: int, step: int, repeat: int, index: int, purpose: str) -> int:
    """128 bits: BLAKE2b of four little-endian signed 64-bit integers followed by the purpose in UTF-8."""
    record = struct.pack("<4q", seed, step, repeat, index) + purpose.encode()
    return int.from_bytes(hashlib.blake2b(record, digest_size=16).digest(), "little")


def _fill(generator: np.random.Generator, row: np.ndarray) -> None:
    generator.standard_normal(dtype=np.float32, out=row)  # lets go of the interpreter's lock while it draws


def processors() -> int:
    """Of this process, which may be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Draws:
    """The randomness of one micro-batch: of repeat k of a step, for the samples with these global indices.

    Any process that is handed these four values draws the same numbers, so noise never travels.
    """

    seed: int
    step: int
    repeat: int
    indices: Sequence[int]

    def _generators(self, purpose: Purpose) -> Iterator[np.random.Generator]:
        for index in self.indices:
            yield np.random.Generator(np.random.Philox(key=key_of(self.seed, self.step, self.repeat, index, purpose)))

    def normal(self, purpose: Purpose, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [b, *shape] in fp32 on the CPU, by up to as many threads as the process has processors:
        a role's network waits for it, however few threads the role computes with.

        A sample's numbers come one after another, 6 to 9 ns each; samples come side by side. The bits are the same.
        """
        noise = np.empty((len(self.indices), *shape), np.float32)
        threads = min(len(noise), processors()) if noise.size >= PARALLEL_FROM else 1
        if threads > 1:
            # A pool of this call alone: nothing that a forked process could inherit half alive.
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(_fill, self._generators(purpose), noise))
        else:
            for generator, row in zip(self._generators(purpose), noise, strict=True):
                _fill(generator, row)
        return torch.from_numpy(noise)

    def integers(self, purpose: Purpose, low: int, high: int) -> Tensor:
        """Integers [b] uniform on low .. high - 1."""
        return torch.tensor([int(generator.integers(low, high)) for generator in self._generators(purpose)])
