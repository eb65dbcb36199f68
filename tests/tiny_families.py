"""A small random pipeline of each family's real classes, whose tokenizers are built offline."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

WORDS = ["a", "photo", "of", "cat", "dog", "red", "blue", "on", "the", "table"]
PROMPTS = ["a photo of a red cat", "a blue dog", "the table"]
# One of each family, and what of all pipelines below is a flow.
FAMILIES = (
    "sd15", "sd21v", "sdxl", "pixart", "pixart1024", "pixartsigma", "sd3", "sana", "flux", "qwenimage", "zimage",
    "sanasprint",
)  # fmt: skip
FLOW = ("sd3", "sd3_without_t5", "sana", "sanasprint", "flux", "schnell", "qwenimage", "zimage", "auraflow")


# -- tokenizers: every byte or letter, and most of the words as one token ---------------------------------------------


def clip_tokenizer(pad: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    vocab, merges = letters + [letter + "</w>" for letter in letters], []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            if (pieces[0], pieces[1]) not in merges:
                merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            if pieces[0] not in vocab:
                vocab.append(pieces[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=merges, pad_token=pad, model_max_length=77
    )


def t5_tokenizer(length: int = 512) -> transformers.T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *["▁" + word for word in WORDS], *map(chr, range(33, 127))]
    scores = [(piece, 0.0 if i < 3 else -1.0 if len(piece) > 1 else -5.0) for i, piece in enumerate(pieces)]
    return transformers.T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=length)


def gemma_tokenizer() -> transformers.GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁"]
    pieces += map(chr, range(33, 127))
    merges = [(word[: i - 1], word[i - 1]) for word in WORDS for i in range(2, len(word) + 1)]
    pieces += [first + second for first, second in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(pieces))}
    return transformers.GemmaTokenizer(
        vocab=vocab, merges=list(dict.fromkeys(merges)), add_bos_token=True, model_max_length=512
    )


def qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    vocab = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=[], model_max_length=512
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


# -- text encoders and autoencoders ------------------------------------------------------------------------------------


def clip(tokenizer, projection: bool = False, act: str = "quick_gelu"):
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, projection_dim=32, hidden_act=act,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5(tokenizer, width: int = 32):
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def vae(channels: int = 4, scale: float = 0.18215, shift: float | None = None, quant: bool = True):
    """Two pixels a latent."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=16,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=scale,
        shift_factor=shift, use_quant_conv=quant, use_post_quant_conv=quant,
    )  # fmt: skip


def vae_dc():
    return diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407,
    )  # fmt: skip


def unet(cross: int, **settings):
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, **settings,
    )  # fmt: skip


SCALED_LINEAR = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip


# -- pipelines ---------------------------------------------------------------------------------------------------------


def sd15(prediction_type: str = "epsilon"):
    k = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(k), tokenizer=k, unet=unet(32), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
        scheduler=diffusers.DDIMScheduler(
            **SCALED_LINEAR, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type
        ),
    )  # fmt: skip


def sdxl():
    k, k2 = clip_tokenizer(), clip_tokenizer(pad="!")
    network = unet(
        64, addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
        projection_class_embeddings_input_dim=32 + 6 * 8, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(scale=0.13025), text_encoder=clip(k), text_encoder_2=clip(k2, True, "gelu"), tokenizer=k,
        tokenizer_2=k2, unet=network, scheduler=diffusers.EulerDiscreteScheduler(**SCALED_LINEAR),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def pixart(sigma: bool = False, sample_size: int = 8):
    """With sample_size 128 (1024 pixels, as published) alpha is told resolution and aspect ratio."""
    k = t5_tokenizer()
    network = diffusers.PixArtTransformer2DModel(
        sample_size=sample_size, patch_size=2, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=8,
        num_attention_heads=3, cross_attention_dim=24, caption_channels=32, interpolation_scale=1,
        use_additional_conditions=sample_size == 128 and not sigma,
    )  # fmt: skip
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    return kind(
        tokenizer=k, text_encoder=t5(k), vae=vae(scale=0.13025 if sigma else 0.18215), transformer=network,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )  # fmt: skip


def sd3(with_t5: bool = True):
    k, k2, k3 = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, 1.5305, 0.0609, quant=False), text_encoder=clip(k, True), tokenizer=k,
        text_encoder_2=clip(k2, True, "gelu"), tokenizer_2=k2, text_encoder_3=t5(k3, 64) if with_t5 else None,
        tokenizer_3=k3 if with_t5 else None,
    )  # fmt: skip


SPRINT = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}


def sana(sprint: bool = False):
    """Sprint with norms of queries and keys that are not all ones."""
    k = gemma_tokenizer()
    config = transformers.Gemma2Config(
        vocab_size=len(k), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    network = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16,
        sample_size=8, **SPRINT if sprint else {"timestep_scale": 0.5},
    )  # fmt: skip
    if sprint:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm_q" in name or "norm_k" in name:
                    parameter.normal_(1.0, 0.3)
        return diffusers.SanaSprintPipeline(
            tokenizer=k, text_encoder=transformers.Gemma2Model(config), vae=vae_dc(), transformer=network,
            scheduler=diffusers.SCMScheduler(),
        )  # fmt: skip
    return diffusers.SanaPipeline(
        tokenizer=k, text_encoder=transformers.Gemma2Model(config), vae=vae_dc(), transformer=network,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )  # fmt: skip


def flux(guidance: bool = True):
    k, k2 = clip_tokenizer(), t5_tokenizer(24)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance),
        vae=vae(16, 0.3611, 0.1159, quant=False), text_encoder=clip(k), tokenizer=k, text_encoder_2=t5(k2),
        tokenizer_2=k2, transformer=network,
    )  # fmt: skip


def qwen_image():
    """Its template is some 250 tokens of bytes here, of which the pipeline drops the published 34."""
    k = qwen_tokenizer()
    config = transformers.Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(k), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, bos_token_id=None, eos_token_id=k.eos_token_id, pad_token_id=k.pad_token_id,
            rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}, rope_theta=1e6,
        ),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16),
    )  # fmt: skip
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.3, 1.0],
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=decoder, text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config), tokenizer=k,
        transformer=network,
    )  # fmt: skip


def z_image():
    k = qwen_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=len(k), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, bos_token_id=None, eos_token_id=k.eos_token_id,
    )  # fmt: skip
    network = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():  # they come uninitialised
        network.x_pad_token.zero_()
        network.cap_pad_token.zero_()
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(16, 0.3611, 0.1159),
        text_encoder=transformers.Qwen3Model(config), tokenizer=k, transformer=network,
    )  # fmt: skip


def auraflow():
    """Of no family that the package knows: see own_family.py."""
    k = t5_tokenizer()
    config = transformers.UMT5Config(vocab_size=len(k), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pos_embed_max_size=144,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(
        tokenizer=k, text_encoder=transformers.UMT5EncoderModel(config), vae=vae(), transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


PIPELINES: dict[str, Callable] = {
    "sd15": sd15,
    "sd21v": lambda: sd15("v_prediction"),
    "sdxl": sdxl,
    "pixart": pixart,
    "pixart1024": lambda: pixart(sample_size=128),
    "pixartsigma": lambda: pixart(sigma=True),
    "sd3": sd3,
    "sd3_without_t5": lambda: sd3(with_t5=False),
    "sana": sana,
    "sanasprint": lambda: sana(sprint=True),
    "flux": flux,
    "schnell": lambda: flux(guidance=False),
    "qwenimage": qwen_image,
    "zimage": z_image,
    "auraflow": auraflow,
}
RESOLUTION = (16, 16)  # pixels; latents 8 x 8


def save_family(name: str, folder: Path, seed: int = 0) -> Path:
    """The family's pipeline, with weights from this seed, in a new folder."""
    torch.manual_seed(seed)
    PIPELINES[name]().save_pretrained(folder)
    return folder
