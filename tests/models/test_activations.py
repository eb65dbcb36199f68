"""What passes take, found without weights: counted against the tensors that there really are."""

import pytest
import torch

from dipp_ray.models.activations import Alive, decoder_passes, denoiser_passes
from dipp_ray.models.components import empty_model
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.models.text import TextEncoder
from tiny_families import PROMPTS

FP32 = torch.float32


def test_what_is_alive_is_counted_and_what_is_gone_is_not():
    with Alive(on_cpu=False) as alive:
        first = torch.zeros(1000)
        second = first + 1
        assert alive.now == 8000
        first.add_(second)
        view = second[:10]
        assert alive.now == 8000, "neither what is done in place nor a view is memory of its own"
        del second
        assert alive.now == 8000
        del view
        assert (alive.now, alive.most) == (4000, 8000)


def real(folder, frame, embeds, rows, backward, checkpointed=False):
    network = load_denoiser(folder, "fp32", frame=frame).train(backward)
    if checkpointed:
        network.network.enable_gradient_checkpointing()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    t = torch.full((rows,), 500)
    x_t = torch.randn(rows, *frame.latent_shape)
    with Alive(on_cpu=False) as alive, torch.set_grad_enabled(backward):
        out = network(x_t, t, embeds)
        if backward:
            out.backward(torch.empty_like(out))
    return alive.most


@pytest.mark.parametrize("name", ["sd15", "pixart", "flux"])
def test_passes_without_weights_take_what_real_ones_take(name, folders):
    folder = folders(name)
    frame = read_frame(folder, resolution=(32, 32))
    embeds = TextEncoder(folder, torch.device("cpu"), frame=frame)(PROMPTS[:1])
    both = embeds.repeat(2)
    seen = {}
    for checkpointed in (False, True):
        network = empty_model(frame)
        if checkpointed:
            network.enable_gradient_checkpointing()
        passes = denoiser_passes(network, frame, FP32, lambda _: FP32, 2, embeds, True, False)
        assert passes.peak == pytest.approx(real(folder, frame, both, 2, True, checkpointed), rel=0.1)
        seen[checkpointed] = passes
    assert seen[True].graph < 0.5 * seen[False].graph
    passes = denoiser_passes(empty_model(frame), frame, FP32, lambda _: FP32, 2, embeds, False, False)
    assert passes.peak == pytest.approx(real(folder, frame, both, 2, False), rel=0.1) and passes.peak < seen[False].peak


def test_of_a_decoder_too(folders):
    folder = folders("sd15")
    frame = read_frame(folder)
    decoder = LatentDecoder.from_folder(folder)
    latents = torch.randn(2, *frame.latent_shape, requires_grad=True)
    with Alive(on_cpu=False) as alive:
        out = decoder.decode(latents)
        graph = alive.now
        out.backward(torch.empty_like(out))
    found = decoder_passes(LatentDecoder.empty(frame.vae), frame.latent_shape, 2, True, False)
    assert (found.graph, found.peak) == pytest.approx((graph, alive.most), rel=0.1)
    saved = decoder_passes(LatentDecoder.empty(frame.vae, checkpoint=True), frame.latent_shape, 2, True, False)
    assert saved.peak < found.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_on_a_cpu_takes_a_copy_of_its_input(dtype):
    network = torch.nn.Conv2d(2, 1, 3, padding=1, dtype=dtype)
    x = torch.zeros(1, 2, 10, 10, requires_grad=True, dtype=dtype)
    found, each = {}, dtype.itemsize
    for on_cpu in (False, True):
        with Alive(on_cpu) as alive:
            out = network(x)
            forward = alive.most
            out.backward(torch.empty_like(out))
        found[on_cpu] = (forward, alive.most)
    (forward, both), (forward_there, both_there) = found[False], found[True]
    assert forward == 100 * each and forward_there == forward + 200 * each
    # Output, and the gradients of output, input, weight and bias are there at the end of the backward pass.
    assert both == (100 + 100 + 200 + 18 + 1) * each and both_there == both + 200 * each
