"""Noise by key: a specified function of (seed, step, repeat, index, purpose) and of nothing else."""

import hashlib
import multiprocessing
from typing import get_args

import pytest
import torch

from dipp_ray.diffusion.noise import Draws, Purpose, key_of

SHAPE = (1, 4, 4)


def test_key_is_blake2b_of_the_record_as_documented():
    record = b"".join(n.to_bytes(8, "little", signed=True) for n in (7, -1, 1, 2**40)) + b"score_eps"
    digest = hashlib.blake2b(record, digest_size=16).digest()
    assert len(record) == 41
    assert key_of(7, -1, 1, 2**40, "score_eps") == int.from_bytes(digest, "little")


def test_golden_values():
    """Written down: a change of hash, generator or library that would move every trajectory shows here."""
    assert key_of(7, 3, 1, 11, "z") == 0x8A0D96E232B2003B3FC501856465AFC
    draws = Draws(7, 3, 1, [11, 12])
    golden = [
        ["0x1.5143eep+0", "-0x1.ecedeap+0", "-0x1.221aa2p+0", "-0x1.14bf5ep-1"],
        ["0x1.3874c6p+0", "-0x1.1e043cp+1", "-0x1.e5de56p-4", "-0x1.dc76b2p-1"],
    ]
    assert draws.normal("z", (4,)).tolist() == [[float.fromhex(value) for value in row] for row in golden]
    assert draws.integers("score_t", 0, 1000).tolist() == [113, 500]
    assert draws.integers("divergence_t", 20, 980).tolist() == [811, 358]


# SHA-256 of the bytes of Draws(7, 3, 1, range(11, 11 + b)).normal("z", shape), written down before threads drew them.
BITS = {
    ((4, 64, 64), 1): "9a62f32b15b6deaddea1a23811ac82e14c9ecd5f7c2d7e3c000c8d19e0ee39ec",
    ((4, 64, 64), 9): "e615d15220d7441fa1bdc84ee2881d1283cae2d65682426a0105cde7651be58e",
    ((16, 128, 128), 3): "533f8a010a14750b282f82f68f3116982804d26861be3df234723853fd5d4452",
}


def bits(shape, b) -> str:
    return hashlib.sha256(Draws(7, 3, 1, range(11, 11 + b)).normal("z", shape).numpy().tobytes()).hexdigest()


@pytest.fixture
def threads(monkeypatch):
    """Sets the processors that a draw may use."""
    return lambda number: monkeypatch.setattr("dipp_ray.diffusion.noise.processors", lambda: number)


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("size", BITS)
def test_the_bits_are_the_same_at_any_number_of_threads(threads, number, size):
    threads(number)
    assert bits(*size) == BITS[size]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_started_after_a_parallel_draw_draws_the_same(threads, method):
    threads(2)
    size = (16, 128, 128), 3
    assert bits(*size) == BITS[size]
    with multiprocessing.get_context(method).Pool(1) as processes:
        assert processes.apply_async(bits, size).get(timeout=60) == BITS[size]


def test_a_sample_has_the_same_noise_in_any_batch_and_order():
    whole = Draws(0, 5, 0, range(8))
    for indices in ([3], [7, 3, 0], range(4, 8)):
        part = Draws(0, 5, 0, indices)
        assert torch.equal(part.normal("z", SHAPE), whole.normal("z", SHAPE)[list(indices)])
        assert torch.equal(part.integers("score_t", 0, 1000), whole.integers("score_t", 0, 1000)[list(indices)])


def test_a_draw_does_not_depend_on_what_was_drawn_before():
    draws = Draws(0, 5, 0, range(4))
    first = draws.normal("z", SHAPE)
    draws.normal("score_eps", SHAPE)
    torch.manual_seed(123)
    assert torch.equal(draws.normal("z", SHAPE), first)


@pytest.mark.parametrize("other", [(1, 5, 0, 2), (0, 6, 0, 2), (0, 5, 1, 2), (0, 5, 0, 3), (0, -1, 0, 2), (0, 0, 5, 2)])
def test_seed_step_repeat_and_index_each_give_other_noise(other):
    noise, others = (Draws(*key[:3], [key[3]]).normal("z", (64,)) for key in ((0, 5, 0, 2), other))
    assert not (noise == others).any()


def test_purposes_give_other_noise():
    rows = torch.cat([Draws(0, 5, 0, [2]).normal(purpose, (64,)) for purpose in get_args(Purpose)])
    same = rows[:, None] == rows[None]
    assert len(rows) == 7 and same.sum() == 7 * 64


def test_moments_and_independence_of_normal_noise():
    noise = Draws(3, 0, 0, range(2000)).normal("z", (50,))
    n = noise.numel()
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5
    neighbours = torch.cat([(noise[:-1] * noise[1:]).flatten(), (noise[:, :-1] * noise[:, 1:]).flatten()])
    assert abs(neighbours.mean()) < 4 / len(neighbours) ** 0.5


def test_times_are_uniform_on_the_half_open_range():
    t = Draws(3, 0, 0, range(4000)).integers("divergence_t", 20, 30)
    counts = torch.bincount(t, minlength=30)
    assert t.dtype == torch.int64 and counts[:20].sum() == 0 and len(counts) == 30
    chi_squared = ((counts[20:] - 400.0) ** 2 / 400).sum()
    assert chi_squared < 27.9  # 99.9% of chi^2 with 9 degrees of freedom
