import numpy as np
import pytest
import torch

from dipp_ray.miniature.digits import (
    ALL_PROMPTS,
    load_scans,
    measure_ink,
    measure_slant,
    parse_prompt,
    prompt_text,
    stratified_split,
)


def test_prompts_and_meanings_round_trip():
    assert prompt_text(7, 2, 2) == "a bold right-slanted handwritten seven"
    assert len(set(ALL_PROMPTS)) == 90
    for prompt in ALL_PROMPTS:
        assert prompt_text(*parse_prompt(prompt)) == prompt


@pytest.mark.parametrize(
    "prompt", ["", "seven", "a bold right-slanted handwritten ten", " a thin upright handwritten one"]
)
def test_unknown_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="no prompt of the miniature"):
        parse_prompt(prompt)


def test_parts_are_disjoint_complete_and_stratified():
    train, test, _ = load_scans()
    assert (len(train), len(test)) == (1297, 500)
    assert sorted(train.rows.tolist() + test.rows.tolist()) == list(range(1797))
    shares = torch.bincount(test.digits) / (torch.bincount(train.digits) + torch.bincount(test.digits))
    assert (shares - 500 / 1797).abs().max() < 0.01


def test_the_split_is_fixed():
    _, test, _ = load_scans()
    # Any other split would silently make old judges and old teachers see each other's scans.
    assert test.rows[:8].tolist() == [1, 5, 6, 9, 12, 14, 15, 16]
    digits = np.array([0, 1] * 50)
    first, second = stratified_split(digits, 3), stratified_split(digits, 3)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], stratified_split(digits, 4)[1])


def test_ink_and_slant_of_drawn_lines():
    upright, right, left, blank = torch.zeros(4, 3, 8, 8)
    upright[:, :, 3] = 1
    for row in range(8):
        right[:, row, 7 - row] = 1  # one column to the right for each row upwards
        left[:, row, row] = 1
    images = torch.stack([upright, right, left, blank])
    assert measure_slant(images).tolist() == pytest.approx([0, 1, -1, 0], abs=1e-12)
    assert measure_ink(images).tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 8, 0])


def test_terciles_split_each_digit_in_three_and_name_the_prompts():
    train, _, terciles = load_scans()
    inks, slants = terciles.inks(train.images, train.digits), terciles.slants(train.images, train.digits)
    for digit in range(10):
        for attribute in (inks, slants):
            counts = torch.bincount(attribute[train.digits == digit], minlength=3)
            assert counts.max() - counts.min() <= 6  # equal inks stay together
    named = [prompt_text(*values) for values in zip(train.digits.tolist(), inks.tolist(), slants.tolist(), strict=True)]
    assert list(train.prompts) == named
    assert len(set(train.prompts)) == 90
