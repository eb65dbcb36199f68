"""HPSv3 on a tiny Qwen2-VL, against transformers' own model and processor, and the head by hand."""

import json

import numpy as np
import pytest
import torch
from comparing import assert_finite_differences, assert_rows_stand_alone, photos, randomise, score_and_gradient
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from dipp_ray.errors import CallError, UserError
from dipp_ray.rewards.clip import CLIP_MEAN, CLIP_STD
from dipp_ray.rewards.hpsv3 import INSTRUCTION, REWARD, Hpsv3
from dipp_ray.rewards.preprocess import normalise, resize
from dipp_ray.rewards.qwen_patches import patches_of, size_for
from tiny_families import qwen_tokenizer

PROMPTS = ["red circle", "a blue square", "red", "red circle"]
SAID = "\nRate it.  \nThe prompt - {text_prompt}\n\n\nThe rating: <|Reward|>\n\nEND\n"
PIXELS = 4 * 28 * 28
ADDED = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]


def tokenizer_of():
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(ADDED, special_tokens=True)
    return tokenizer


def config_of(tokenizer):
    return Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer) + 1, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, bos_token_id=None, max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        ),
        vision_config=dict(depth=2, embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=2),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
    )  # fmt: skip


class Original:
    """The whole generative model of transformers and its processor, one image at a time, and the head by hand."""

    def __init__(self, dtype=torch.float32):
        self.tokenizer = tokenizer_of()
        torch.manual_seed(0)
        self.model = Qwen2VLForConditionalGeneration(config_of(self.tokenizer)).eval()
        randomise(self.model)
        generator = torch.Generator().manual_seed(1)
        self.head = {}
        for number, (out, given) in {0: (1024, 16), 3: (16, 1024), 5: (2, 16)}.items():
            self.head[f"rm_head.{number}.weight"] = torch.randn(out, given, generator=generator) / given**0.5
            self.head[f"rm_head.{number}.bias"] = torch.randn(out, generator=generator) / 4
        self.tokenizer.add_tokens([REWARD], special_tokens=True)
        self.model.to(dtype)
        self.head = {key: value.to(dtype) for key, value in self.head.items()}

    def state_dict(self):
        """As the file was published, by the names of older transformers."""
        renamed = {}
        for key, value in self.model.state_dict().items():
            key = key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            renamed[key] = value.detach().clone()
        return renamed | self.head

    def score(self, images, prompts, size):
        return torch.stack([self.one(image[None], prompt, size) for image, prompt in zip(images, prompts, strict=True)])

    def one(self, image, prompt, size):
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
        pixels = (image - image.new_tensor(CLIP_MEAN).view(3, 1, 1)) / image.new_tensor(CLIP_STD).view(3, 1, 1)
        rows, columns = size[0] // 14, size[1] // 14
        patches = []  # in the order of Qwen2-VL: two by two, each twice in time
        for block in range(rows * columns // 4):
            top, left = block // (columns // 2) * 28, block % (columns // 2) * 28
            for y, x in ((0, 0), (0, 14), (14, 0), (14, 14)):
                patch = pixels[0, :, top + y : top + y + 14, left + x : left + x + 14]
                patches.append(torch.stack([patch, patch], 1).flatten())
        said = SAID.replace("{text_prompt}", prompt)
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * (rows * columns // 4)
            + f"<|vision_end|>{said}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        hidden = self.model(
            input_ids=ids,
            pixel_values=torch.stack(patches),
            image_grid_thw=torch.tensor([[1, rows, columns]]),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            output_hidden_states=True,
        ).hidden_states[-1]
        at = hidden[0, ids[0].tolist().index(self.tokenizer.convert_tokens_to_ids(REWARD))]
        for number in (0, 3):
            at = (self.head[f"rm_head.{number}.weight"] @ at + self.head[f"rm_head.{number}.bias"]).relu()
        return (self.head["rm_head.5.weight"] @ at + self.head["rm_head.5.bias"])[0]


@pytest.fixture(scope="module")
def original():
    return Original()


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    tokenizer_of().save_pretrained(folder)
    original.model.config.save_pretrained(folder)
    save_file(original.state_dict(), folder / Hpsv3.FILE)
    (folder / INSTRUCTION).write_bytes(SAID.encode())
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return Hpsv3(folder, PIXELS)


@pytest.fixture
def exact(monkeypatch):
    """Qwen2-VL in fp64 throughout: its norm and its vision tower's rotation go over fp32 by themselves."""

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    def rotated(q, k, cos, sin):
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return tuple(x * cos + qwen.rotate_half(x) * sin for x in (q, k))

    monkeypatch.setattr(qwen.Qwen2VLRMSNorm, "forward", norm)
    monkeypatch.setattr(qwen, "apply_rotary_pos_emb_vision", rotated)


def close(found, expected, tolerance=1e-7):
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "size"), [(60, 60, (56, 56)), (50, 100, (28, 56)), (40, 90, (56, 84)), (20, 20, (56, 56))]
)
def test_it_is_the_original(folder, exact, height, width, size):
    """In fp64, for in fp32 the order of sums alone is worth 1e-5 of the gradient."""
    original, model = Original(torch.float64), Hpsv3(folder, PIXELS).double()
    assert size_for(height, width, 28, PIXELS) == size
    images = photos(4, height, width, torch.float64)
    score, gradient = score_and_gradient(lambda x: model.reward(x, PROMPTS), images)
    expected, slope = score_and_gradient(lambda x: original.score(x, PROMPTS, size), images)
    assert expected.std() > 1e-2 * expected.abs().max()
    close(score, expected)
    close(gradient, slope)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_gradient_is_that_of_finite_differences(folder, exact):
    model = Hpsv3(folder, 28 * 28).double()
    assert_finite_differences(lambda x: model.reward(x, PROMPTS[:2]), photos(2, 40, 30, torch.float64))


def test_rows_stand_alone_whatever_their_prompts_lengths(model):
    assert_rows_stand_alone(model, photos(4, 56, 56), PROMPTS)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 112), (56, 84), (64, 90), (33, 120), (200, 100)])
def test_preprocessing_is_that_of_transformers_to_rounding(height, width):
    """Of an image of 8 bits, where its processor reads the same number of pixels at least and at most."""
    rng = np.random.default_rng(0)
    smooth = F.interpolate(torch.tensor(rng.random((1, 3, 6, 6))), size=(height, width), mode="bicubic")
    picture = (smooth[0].clamp(0, 1) * 155 + 50).round().to(torch.uint8)  # far from where PIL clips what overshoots
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
    theirs = processor(Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")
    size = size_for(height, width, 28, PIXELS)
    assert theirs["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]]
    pixels = normalise(resize(picture[None].float() / 255, *size), CLIP_MEAN, CLIP_STD)
    ours = patches_of(pixels, 14, 2, 2)[0]
    assert ours.shape == theirs["pixel_values"].shape
    step = 1 / 255 / min(CLIP_STD)  # of 8 bits, to which theirs is rounded behind each of the two axes
    error = (ours - theirs["pixel_values"]).abs()
    assert error.max() < (1e-5 if size == (height, width) else 1.5 * step) and error.mean() < step / 2


@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_those_of_transformers(seed):
    rng = np.random.default_rng(seed)
    for height, width in rng.integers(28, 3000, (200, 2)).tolist():
        assert size_for(height, width, 28, 200_704) == smart_resize(height, width, 28, 200_704, 200_704)
    with pytest.raises(CallError, match="at most 200 times"):
        size_for(1, 201, 28, PIXELS)


def test_a_file_in_half_precision_stays_so_and_its_head_is_single(original, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({key: value.bfloat16() for key, value in original.state_dict().items()}, tmp_path / Hpsv3.FILE)
    model = Hpsv3(tmp_path, PIXELS)
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    images = photos(2, 56, 56).requires_grad_()
    score = model.reward(images, PROMPTS[:2])
    score.sum().backward()
    assert score.dtype == images.grad.dtype == torch.float32 and images.grad.abs().max() > 0


def test_names_of_younger_transformers_are_read_too(original, folder, tmp_path, model):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {key: value.detach().clone() for key, value in original.model.state_dict().items()}
    save_file(weights | original.head, tmp_path / Hpsv3.FILE)
    images = photos(2, 56, 56)
    assert torch.equal(Hpsv3(tmp_path, PIXELS).reward(images, PROMPTS[:2]), model.reward(images, PROMPTS[:2]))


def test_a_prompt_with_a_token_of_its_own_is_refused(model):
    for reserved in ("<|Reward|>", "<|image_pad|>", "<|im_end|>"):
        with pytest.raises(CallError, match=r"a prompt contains <\|"):
            model.reward(photos(1, 56, 56), [f"a cat {reserved}"])
    model.reward(photos(1, 56, 56), ["a {text_prompt} of {braces} and % signs"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (Hpsv3.FILE, None, r"HPSv3\.safetensors is missing"),
        (INSTRUCTION, None, r"instruction\.txt is missing in .*docs/rewards\.md"),
        (INSTRUCTION, b"Rate {text_prompt}", r"holds <\|Reward\|> 0 times"),
        (INSTRUCTION, b"<|Reward|> {text_prompt} {text_prompt}", r"holds \{text_prompt\} 2 times"),
        ("config.json", None, "no Qwen2-VL configuration"),
        ("config.json", b'{"model_type": "qwen3_vl"}', "is of a qwen3_vl, not a qwen2_vl"),
        ("config.json", b"[]", "is no configuration of Qwen2-VL"),
        ("tokenizer.json", None, r"tokenizer\.json .*is missing"),
    ],
)
def test_a_file_that_is_missing_or_none_is_one_sentence(folder, tmp_path, file, change, message):
    for found in folder.iterdir():
        (tmp_path / found.name).write_bytes(found.read_bytes())
    (tmp_path / file).unlink()
    if change is not None:
        (tmp_path / file).write_bytes(change)
    for look in (Hpsv3.check_folder, Hpsv3):
        with pytest.raises(UserError, match=message):
            look(tmp_path)


def test_weights_of_another_model_are_refused(original, folder, tmp_path):
    for found in folder.iterdir():
        (tmp_path / found.name).write_bytes(found.read_bytes())
    weights = original.state_dict()
    save_file({key: value for key, value in weights.items() if not key.startswith("rm_head.3")}, tmp_path / Hpsv3.FILE)
    with pytest.raises(UserError, match=r"missing: head\.3\.bias, head\.3\.weight"):
        Hpsv3(tmp_path)
    save_file(weights | {"model.embed_tokens.weight": torch.zeros(300, 16)}, tmp_path / Hpsv3.FILE)
    with pytest.raises(UserError, match="knows 300 tokens and the tokenizer"):
        Hpsv3(tmp_path)
    save_file(weights, tmp_path / Hpsv3.FILE)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_id": 3}))
    with pytest.raises(UserError, match=r"<\|image_pad\|> is token \d+ of the tokenizer"):
        Hpsv3(tmp_path)
