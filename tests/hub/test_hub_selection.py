"""Which files of a repository are chosen, from the names of repositories as they are published."""

import pytest

from dipp_ray.hub.selection import configurations, of_reward, weights_but_of, weights_of, whole

INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SMALL = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/merges.txt",
    "tokenizer/vocab.json", "unet/config.json", "vae/config.json",
]  # fmt: skip
# What else lies in such repositories.
OTHERS = [
    "sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors", "01.png", "README.md", "pipeline.py",
    "text_encoder/flax_model.msgpack", "text_encoder/model.onnx", "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors", "unet/model.onnx_data", "unet/openvino_model.xml",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.ckpt", "unet/modeling.py", "vae/diffusion_pytorch_model.fp16.bin",
    "vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.safetensors", "lora/a/adapter.safetensors",
]  # fmt: skip
UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def test_of_a_pipeline_only_what_its_loader_reads_is_chosen():
    assert whole([*SMALL, *OTHERS, UNET, VAE, TEXT], INDEX) == sorted([*SMALL, UNET, VAE, TEXT])


@pytest.mark.parametrize(
    ("choice", "weights"),
    [
        (configurations, []),
        (weights_of("unet"), [UNET]),
        (weights_but_of("unet", "vae"), [TEXT]),
    ],
)
def test_a_role_is_given_its_parts_alone(choice, weights):
    assert choice([*SMALL, *OTHERS, UNET, VAE, TEXT], INDEX) == sorted([*SMALL, *weights])


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], [0]),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"], [0]),
        (["diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.non_ema.ckpt"], [0]),
        (
            [
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
                "diffusion_pytorch_model-00001-of-00002.bin",
            ],
            [0, 1, 2],
        ),
        (
            [
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
                "diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
                "diffusion_pytorch_model.bin",
            ],
            [0, 1, 2],
        ),
    ],
)
def test_of_several_kinds_of_weights_one_is_chosen(there, chosen):
    found = whole(["config.json", *there], None)
    assert found == sorted(["config.json", *(there[i] for i in chosen)])


def test_of_a_reward_what_its_class_reads_is_chosen():
    clip = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md"]
    assert of_reward(None)(clip, None) == ["config.json", "model.safetensors", "tokenizer.json"]
    hps = ["HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt", "tokenizer.json", "train.py"]
    assert of_reward("HPS_v2_compressed.pt")(hps, None) == ["tokenizer.json", "HPS_v2_compressed.pt"]
    assert of_reward(None)(["my.pt", "my.ckpt", "config.json"], None) == ["config.json", "my.pt"]
