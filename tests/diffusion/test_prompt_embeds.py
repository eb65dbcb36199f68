"""Prompt embeddings keep their values and masks through padding, trimming, joining and the object store."""

import torch

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds

TOKENS = torch.arange(2 * 5 * 3, dtype=torch.float32).view(2, 5, 3)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
POOLED = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
EMBEDS = PromptEmbeds(TOKENS, MASK, POOLED)


def equal(left: PromptEmbeds, right: PromptEmbeds) -> bool:
    pairs = zip(left.parts, right.parts, strict=True)
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def test_trimmed_to_the_longest_prompt():
    assert equal(EMBEDS.trimmed(), PromptEmbeds(TOKENS[:, :3], MASK[:, :3], POOLED))


def test_without_a_mask_nothing_is_cut_or_added():
    bare = PromptEmbeds(TOKENS)
    assert bare.trimmed() is bare and bare.padded(9) is bare


def test_padding_is_masked_and_trimming_takes_it_away():
    trimmed = EMBEDS.trimmed()
    padded = trimmed.padded(7)
    assert padded.tokens.shape == (2, 7, 3) and padded.mask.shape == (2, 7)
    assert padded.mask[:, 3:].sum() == 0 and torch.equal(padded.mask[:, :3], trimmed.mask)
    assert torch.equal(padded.tokens[:, :3], trimmed.tokens)
    assert equal(padded.trimmed(), trimmed)


def test_concatenate_pads_to_the_longer_and_keeps_order():
    null = PromptEmbeds(torch.full((1, 1, 3), 9.0), torch.ones(1, 1, dtype=torch.int64), POOLED[:1])
    both = PromptEmbeds.concatenate(null.repeat(2), EMBEDS)
    assert len(both) == 4 and both.tokens.shape == (4, 5, 3)
    assert torch.equal(both.tokens[2:], TOKENS) and torch.equal(both.mask[2:], MASK)
    assert (both.tokens[:2, 0] == 9).all() and both.mask[:2].tolist() == [[1, 0, 0, 0, 0]] * 2
    assert torch.equal(both.pooled, torch.cat([POOLED[:1], POOLED[:1], POOLED]))


def test_concatenate_without_mask_and_pooled():
    both = PromptEmbeds.concatenate(PromptEmbeds(TOKENS), PromptEmbeds(TOKENS + 1))
    assert equal(both, PromptEmbeds(torch.cat([TOKENS, TOKENS + 1])))


def test_arrays_round_trip():
    for embeds in (EMBEDS, PromptEmbeds(TOKENS), PromptEmbeds(TOKENS, MASK)):
        back = PromptEmbeds.from_arrays(embeds.arrays(), "cpu")
        assert equal(back, embeds)


def test_arrays_of_bf16_are_exact_in_fp32():
    embeds = EMBEDS.to("cpu", torch.bfloat16)
    back = PromptEmbeds.from_arrays(embeds.arrays(), "cpu")
    assert back.tokens.dtype == torch.float32 and torch.equal(back.tokens, embeds.tokens.float())


def test_dtype_changes_floating_parts_alone():
    moved = EMBEDS.to("cpu", torch.bfloat16)
    assert (moved.tokens.dtype, moved.mask.dtype, moved.pooled.dtype) == (torch.bfloat16, torch.int64, torch.bfloat16)
