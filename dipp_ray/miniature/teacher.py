"""The miniature's teacher: a genuine PixArt-alpha pipeline, small, trained on the train part of the scans."""

import string
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from dipp_ray.miniature.autoencoder import encode
from dipp_ray.miniature.digits import ALL_PROMPTS, Scans
from dipp_ray.miniature.ranks import on_ranks
from dipp_ray.miniature.stages import Progress, seeded
from dipp_ray.reporting.pace import Ticker

# "a", ink, slant, "handwritten", digit and </s>: the longest prompt, and with it all that padding needs.
PROMPT_TOKENS = 6
SAMPLE_CHUNK = 256


@dataclass(frozen=True)
class Captioned:
    """What the teacher is trained on. latents [N, C, h, w]; prompt_of [N], rows of embeds [P, PROMPT_TOKENS, D] and
    masks [P, PROMPT_TOKENS], whose last row is the null prompt's; alpha_bar [T]."""

    latents: Tensor
    prompt_of: Tensor
    embeds: Tensor
    masks: Tensor
    alpha_bar: Tensor


@dataclass(frozen=True)
class TeacherRecipe:
    seed: int = 12
    steps: int = 3200
    batch: int = 64
    lr: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema: float = 0.995
    null_share: float = 0.1  # of a batch, trained with the null prompt
    ranks: int = 2  # processes that share each batch: another number rounds its gradients otherwise
    layers: int = 4
    heads: int = 4
    head_width: int = 24
    text_width: int = 64
    text_layers: int = 2


def noise_scheduler() -> DDIMScheduler:
    """The linear variance-preserving schedule of PixArt-alpha, sampled by DDIM from the last timestep on."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        prediction_type="epsilon",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def prompt_tokenizer() -> T5Tokenizer:
    """Whole words as pieces; other words become letters."""
    words = sorted({word for prompt in ALL_PROMPTS for word in prompt.split()})
    letters = [letter for letter in ("▁", *string.ascii_lowercase, "-") if letter not in words]
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(f"▁{word}", -1.0) for word in words] + [(letter, -10.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def untrained_pipeline(vae: AutoencoderKL, recipe: TeacherRecipe) -> PixArtAlphaPipeline:
    """The pipeline around a trained autoencoder, with random text encoder and transformer.

    The text encoder stays as it is: random embeddings of thirty words are as good as orthogonal, which is all that
    the cross-attention needs.
    """
    tokenizer = prompt_tokenizer()
    with seeded(recipe.seed):
        text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=recipe.text_width,
                d_kv=recipe.text_width // 4,
                num_heads=4,
                d_ff=2 * recipe.text_width,
                num_layers=recipe.text_layers,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )
        transformer = PixArtTransformer2DModel(
            num_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            attention_head_dim=recipe.head_width,
            cross_attention_dim=recipe.heads * recipe.head_width,
            caption_channels=recipe.text_width,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            sample_size=vae.config.sample_size,
            patch_size=2,
            interpolation_scale=1,
            use_additional_conditions=False,
        )
    text_encoder.eval().requires_grad_(False)
    pipeline = PixArtAlphaPipeline(tokenizer, text_encoder, vae, transformer, noise_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def train_teacher(vae: AutoencoderKL, scans: Scans, recipe: TeacherRecipe, progress: Progress) -> PixArtAlphaPipeline:
    """Fit the transformer to predict epsilon on the scans' latents; the average of its weights is what is returned."""
    pipeline = untrained_pipeline(vae, recipe)
    texts = list(ALL_PROMPTS)
    embeds, masks = encode_prompts(pipeline, [*texts, ""])
    place = {text: index for index, text in enumerate(texts)}
    prompt_of = torch.tensor([place[text] for text in scans.prompts])
    data = Captioned(encode(vae, scans.images), prompt_of, embeds, masks, pipeline.scheduler.alphas_cumprod)
    on_ranks(recipe.ranks, partial(fit, pipeline.transformer, data, recipe), progress)
    pipeline.transformer.eval().requires_grad_(False)
    return pipeline


def fit(
    transformer: PixArtTransformer2DModel, data: Captioned, recipe: TeacherRecipe, rank: int, progress: Progress
) -> None:
    """Train the transformer, by gradients of this rank's share of each batch and the mean over ranks, and give it the
    average of its weights over the steps. All ranks draw the same whole batches, and make the same steps."""
    if rank > 0:  # what was sent here lies in the memory of rank 0
        transformer = deepcopy(transformer)
    average = torch.optim.swa_utils.AveragedModel(
        transformer.train(), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema)
    )
    shared = DistributedDataParallel(transformer)
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    schedule = warm_cosine(optimiser, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    batch, latents, null = recipe.batch, data.latents, len(data.embeds) - 1
    share = slice(rank, batch, recipe.ranks)
    ticker = Ticker(progress, "miniature: teacher step", recipe.steps)
    for step in range(1, recipe.steps + 1):
        rows = torch.randint(len(latents), (batch,), generator=generator)
        prompts = torch.where(torch.rand(batch, generator=generator) < recipe.null_share, null, data.prompt_of[rows])
        # One time from each of `batch` equal parts of the schedule: uniform as a whole, and less noisy a gradient.
        times = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        times = (times * len(data.alpha_bar)).long().clamp_max(len(data.alpha_bar) - 1)
        noise = torch.randn(latents[rows].shape, generator=generator)
        signal = data.alpha_bar[times][:, None, None, None]
        noisy = signal.sqrt() * latents[rows] + (1 - signal).sqrt() * noise
        predicted = shared(
            noisy[share],
            encoder_hidden_states=data.embeds[prompts[share]],
            encoder_attention_mask=data.masks[prompts[share]],
            timestep=times[share],
        ).sample
        loss = (predicted - noise[share]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), recipe.grad_clip)
        optimiser.step()
        schedule.step()
        average.update_parameters(transformer)
        ticker.tick(step, f"loss {loss.item():.3f}")
    transformer.load_state_dict(average.module.state_dict())


def warm_cosine(optimiser: torch.optim.Optimizer, recipe: TeacherRecipe) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then half a cosine down to 0."""
    warmup = min(recipe.warmup_steps, recipe.steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = torch.tensor((step - warmup) / (recipe.steps - warmup))
        return (0.5 * (1 + torch.cos(torch.pi * share))).item()

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


@torch.no_grad()
def encode_prompts(pipeline: PixArtAlphaPipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings [B, PROMPT_TOKENS, D] and mask [B, PROMPT_TOKENS]; "" is the null prompt, one </s>."""
    embeds, mask, _, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=PROMPT_TOKENS
    )
    return embeds, mask


@torch.no_grad()
def sample_teacher(
    pipeline: PixArtAlphaPipeline, prompts: list[str], seed: int, steps: int, guidance_scale: float
) -> Tensor:
    """Images [B, 3, 8, 8] in [0, 1], one a prompt, by the pipeline's own call; guidance_scale 1 is no guidance."""
    size, channels = pipeline.transformer.config.sample_size, pipeline.transformer.config.in_channels
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(prompts), channels, size, size, generator=generator)
    images = [
        pipeline(
            prompt=prompts[start : start + SAMPLE_CHUNK],
            latents=noise[start : start + SAMPLE_CHUNK],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=size,
            width=size,
            max_sequence_length=PROMPT_TOKENS,
            use_resolution_binning=False,
            clean_caption=False,
            output_type="pt",
        ).images
        for start in range(0, len(prompts), SAMPLE_CHUNK)
    ]
    return torch.cat(images)
