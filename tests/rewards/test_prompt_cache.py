import torch
from torch import nn

from dipp_ray.rewards.prompt_cache import PromptCache


def recorder():
    calls = []
    return calls, lambda prompt: calls.append(prompt) or torch.full((2,), float(len(prompt)))


def test_each_distinct_prompt_is_computed_once():
    calls, compute = recorder()
    cache = PromptCache()
    out = cache.stack(["aa", "b", "aa"], compute)
    assert out.tolist() == [[2, 2], [1, 1], [2, 2]]
    cache.stack(["b", "ccc"], compute)
    assert calls == ["aa", "b", "ccc"]


def test_the_longest_unused_leaves_first():
    calls, compute = recorder()
    cache = PromptCache(size=2)
    for prompt in ["a", "b", "a", "c", "a"]:
        cache.stack([prompt], compute)
    assert calls == ["a", "b", "c"]
    cache.stack(["b"], compute)
    assert calls == ["a", "b", "c", "b"]


def test_more_prompts_in_a_call_than_are_kept():
    calls, compute = recorder()
    prompts = ["a", "bb", "ccc", "a", "bb"]
    assert PromptCache(size=1).stack(prompts, compute)[:, 0].tolist() == [1, 2, 3, 1, 2]
    assert calls == ["a", "bb", "ccc"]


def test_a_cast_of_the_model_around_it_empties_it():
    calls, compute = recorder()
    model = nn.Module()
    model.cache = PromptCache()
    model.cache.stack(["a"], compute)
    model.double()
    model.cache.stack(["a"], compute)
    assert calls == ["a", "a"]


def test_what_inference_mode_computed_serves_a_gradient():
    weight = nn.Parameter(torch.ones(2))
    cache = PromptCache()
    with torch.inference_mode():
        cache.stack(["a"], lambda prompt: 2 * weight)
    out = cache.stack(["a"], lambda prompt: 2 * weight)
    assert not out.requires_grad
    x = torch.ones(2, requires_grad=True)
    (out * x).sum().backward()
    assert x.grad.tolist() == [2, 2]
