"""What a decoder costs that K models share, against one in front of each of them: time of decoding and of its gradient.

    python jobs/bench_decode.py [--models 3] [--rows 4] [--latent 32] [--width 32] [--rounds 5] [--threads 1]

A VAE of the shape of Stable Diffusion's with random weights (block widths `--width` times 1, 2, 4, 4; 128 is the real
one) decodes latents 4 x `--latent` x `--latent`, and takes K derivatives by its pixels back. `each`: every model
decodes and goes back by itself, as with a service's `vae`. `shared`: one decode, then the sum of the derivatives goes
back once, with another forward pass, as with `vaes`. Both take turns in one process, without Ray, without the models
and without the way of pixels between processes, which `shared` has and `each` has not: `copies` is that many of them.
Seconds are the process's CPU time, so that others on the machine matter less.
"""

import argparse
import statistics
import time

import torch
from diffusers import AutoencoderKL

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.core.scoring import Decoding


def vae(width: int) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=min(32, width),
    )


def each(decoding: Decoding, x: torch.Tensor, slopes: list[torch.Tensor]) -> None:
    for slope in slopes:
        decoding.pull_back(x, slope)  # a decode with its graph, and the way back


def shared(decoding: Decoding, x: torch.Tensor, slopes: list[torch.Tensor]) -> None:
    decoding.images(x, True)
    decoding.pull_back(x, torch.stack(slopes).sum(0))


def copied(pixels: torch.Tensor, models: int) -> None:
    for _ in range(2 * models + 1):  # the images to each model, its derivative from it, and their sum
        pixels.clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 3), ("rows", 4), ("latent", 32), ("width", 32), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    decoding = Decoding(LatentDecoder(vae(given.width)), "cpu")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(given.rows, 4, given.latent, given.latent, generator=generator)
    side = 8 * given.latent
    slopes = [torch.randn(given.rows, 3, side, side, generator=generator) for _ in range(given.models)]
    ways = {
        "each": lambda: each(decoding, x, slopes),
        "shared": lambda: shared(decoding, x, slopes),
        "copies": lambda: copied(slopes[0], given.models),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(given.rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if round_:  # the first one warms up
                seconds[name].append(time.process_time() - began)
    print(f"{given.models} models, {given.rows} images of {side} x {side}, median of {given.rounds} rounds (range)")
    for name, found in seconds.items():
        print(f"{name:>8}  {statistics.median(found):8.3f} CPU s  ({min(found):.3f} to {max(found):.3f})")
    ratios = [b / a for a, b in zip(seconds["each"], seconds["shared"], strict=True)]
    print(f"shared takes {statistics.median(ratios):.2f} of each ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
