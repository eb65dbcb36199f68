"""What the tests of reward models share: random weights, small tokenizers, and comparisons of scores and gradients."""

import json
from pathlib import Path

import torch
from transformers import BertTokenizer

PROMPTS = ["red circle", "a blue square", "red", "red circle"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# One piece a letter, one a letter that ends a word, and the two marks: the end of text has the highest id.
CLIP_VOCABULARY = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square"]


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of a scale at which every part of the network matters to its output; biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = (noise / fan_in**0.5).to(parameter.dtype) + float(norm)


def save_clip_vocabulary(folder) -> None:
    """vocab.json and merges.txt, as open_clip's and OpenAI's tokenizers are published."""
    vocab = {piece: index for index, piece in enumerate(CLIP_VOCABULARY)}
    (Path(folder) / "vocab.json").write_text(json.dumps(vocab))
    (Path(folder) / "merges.txt").write_text("#version: 0.2\n")


def clip_ids(prompt: str, length: int) -> torch.Tensor:
    """open_clip's tokens of a prompt [length], by hand: start, letters, end, zeros; cut so that the end stays."""
    pieces = [piece for word in prompt.split() for piece in [*word[:-1], word[-1] + "</w>"]]
    ids = [CLIP_VOCABULARY.index(p) for p in ["<|startoftext|>", *pieces, "<|endoftext|>"]]
    if len(ids) > length:
        ids = [*ids[: length - 1], CLIP_VOCABULARY.index("<|endoftext|>")]
    return torch.tensor(ids + [0] * (length - len(ids)))


def save_bert_vocabulary(folder) -> None:
    (Path(folder) / "vocab.txt").write_text("\n".join(BERT_VOCABULARY))


def save_bert_tokenizer(folder) -> None:
    """tokenizer.json, the newer form."""
    BertTokenizer(vocab={piece: index for index, piece in enumerate(BERT_VOCABULARY)}).save_pretrained(folder)


def bert_ids(prompt: str, length: int) -> list[int]:
    ids = [BERT_VOCABULARY.index(piece) for piece in ["[CLS]", *prompt.split(), "[SEP]"]]
    return ids + [0] * (length - len(ids))


def photos(count: int, height: int, width: int, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5), dtype=dtype)


def score_and_gradient(function, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = images.clone().requires_grad_()
    score = function(images)
    return score.detach(), torch.autograd.grad(score.sum(), images)[0]


def assert_parity(ours, original, images: torch.Tensor, tolerance: float = 1e-5) -> tuple[float, float]:
    """Scores and image gradients agree relative to their scale; scores of rows differ by much more than that."""
    (score, gradient), (expected, slope) = (score_and_gradient(f, images) for f in (ours, original))
    assert expected.std() > 100 * tolerance * expected.abs().max()
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in ((score, expected), (gradient, slope))]
    assert max(errors) < tolerance, errors
    return tuple(errors)


def assert_finite_differences(function, images: torch.Tensor, step: float = 1e-5, tolerance: float = 1e-6) -> None:
    """The gradient of each row along random directions equals central differences; images in fp64."""
    score, gradient = score_and_gradient(function, images)
    assert score.dtype == gradient.dtype == torch.float64
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            difference = (function(images + step * direction) - function(images - step * direction)) / (2 * step)
        slope = (gradient * direction).sum((1, 2, 3))
        assert (difference - slope).abs().max() < tolerance * slope.abs().max()


def assert_rows_stand_alone(model, images: torch.Tensor, prompts: list[str]) -> None:
    """A row's score is the same alone and among others, and in another order."""
    with torch.no_grad():
        together = model.reward(images, prompts)
        alone = torch.cat([model.reward(images[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts))])
        turned = model.reward(images.flip(0), prompts[::-1]).flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-5)
