"""Models that are made without weights and filled from their files: the library's own weights, in little memory."""

import weakref

import diffusers
import pytest
import torch
from dressed_folders import as_bin, as_shards
from family_worlds import CALLS

from dipp_ray.errors import UserError
from dipp_ray.models import stored
from dipp_ray.models.adapters import adapter_off, trained_weights
from dipp_ray.models.components import load_model, open_model
from dipp_ray.models.pipeline import frame_of, read_frame
from dipp_ray.models.start import starting_network
from dipp_ray.models.text import TextEncoder
from settings import tiny_config
from tiny import prompt_file
from tiny_families import PROMPTS, save_family

CPU = torch.device("cpu")


def tensors(model):
    """Of parameters and of all buffers, also of those that no file holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_network_and_its_vae_are_the_librarys_to_the_bit(name, dtype, folders):
    folder = folders(name)
    frame = read_frame(folder)
    vae = frame.vae.kind
    for part, kind in ((frame.network_part, frame.network_class), ("vae", vae)):
        ours = load_model(folder / part, "diffusers", kind, dtype)
        theirs = getattr(diffusers, kind).from_pretrained(folder / part, torch_dtype=dtype, low_cpu_mem_usage=False)
        found, wanted = tensors(ours), tensors(theirs)
        assert list(found) == list(wanted) and not ours.training
        for key, value in wanted.items():
            # Where the first tensor of a file has its own precision the library leaves all others as the file has them.
            value = value.to(dtype) if isinstance(value, torch.nn.Parameter) else value
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
            assert found[key].requires_grad == value.requires_grad
        assert dict(ours.config) == dict(theirs.config)


@pytest.mark.parametrize("dress", [as_bin, as_shards])
def test_whatever_the_files_are(dress, tmp_path):
    folder = save_family("pixart", tmp_path / "pipeline")
    kind = read_frame(folder).network_class
    before = load_model(folder / "transformer", "diffusers", kind, torch.float32).state_dict()
    dress(folder)
    after = load_model(folder / "transformer", "diffusers", kind, torch.float32).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_before_it_is_filled_it_has_no_weights_in_memory_and_then_one_more_at_a_time(folders, monkeypatch):
    folder = folders("sd15")
    hollow = open_model(folder / "unet", read_frame(folder).network_class)
    assert all(p.untyped_storage().nbytes() == 4 for p in hollow.parameters.values())
    alive, most, read = [], [], stored._read

    def seen(path, said, start, end):
        values = read(path, said, start, end)
        alive.append(weakref.ref(values))
        most.append(sum(one() is not None for one in alive))
        return values

    monkeypatch.setattr(stored, "_read", seen)
    for name, one in stored.stored(stored.WeightFiles(tuple((folder / "unet").glob("*.safetensors")), True)).items():
        hollow.stored[name] = one
    hollow.fill(lambda _: torch.bfloat16)
    assert len(most) == len(hollow.parameters) and max(most) == 1, "fp32 of the file is gone before the next is read"
    assert {p.dtype for p in hollow.model.parameters()} == {torch.bfloat16}


def test_a_part_of_a_weight_is_read_alone_and_multiplied(folders):
    folder = folders("sd15")
    hollow = open_model(folder / "unet", read_frame(folder).network_class)
    one = hollow.stored["conv_in.weight"]
    whole = one.read(torch.float32)
    assert torch.equal(one.part(3, 11, torch.float32), whole.flatten()[3:11])
    hollow.multiply("conv_in", 0.5)
    hollow.fill(lambda _: torch.float32)
    assert torch.equal(hollow.model.conv_in.weight, 0.5 * whole) and not torch.equal(hollow.model.conv_in.weight, whole)
    assert torch.equal(hollow.model.conv_out.weight, hollow.stored["conv_out.weight"].read(torch.float32))


def test_a_file_that_ends_while_it_is_read_is_said(folders, tmp_path):
    folder = save_family("sd15", tmp_path / "pipeline")
    hollow = open_model(folder / "unet", read_frame(folder).network_class)
    (path,) = (folder / "unet").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="ended while it was read"):
        hollow.fill(lambda _: torch.float32)


# -- frozen weights in bf16 ------------------------------------------------------------------------------------------


def passes(config, folder, frame):
    """What a network with its adapter gives, with it and without, and the adapter's gradients; its weights' bytes."""
    network = starting_network(config, "generator", frame).train()
    torch.manual_seed(0)
    for name, parameter in trained_weights(network):
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    text = TextEncoder(folder, CPU, frame=frame)
    x_t, t = torch.randn(2, *frame.latent_shape), torch.tensor([300, 700])
    out = network(x_t, t, text(PROMPTS[:2]))
    out.square().sum().backward()
    with adapter_off(network):
        without = network(x_t, t, text(PROMPTS[:2]))
    gradients = {name: p.grad for name, p in trained_weights(network)}
    assert all(p.dtype == torch.float32 for p in gradients.values())
    return out, without, gradients, sum(p.nbytes for p in network.parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_frozen_weights_in_bf16_change_no_bit_of_bf16_arithmetic(name, folders, tmp_path):
    folder = folders(name)
    lora = ["adapters.generator={rank: 2}", "roles.generator.dtype=bf16", "model.resolution=[32, 32]"]
    found = []
    for frozen in ("fp32", "bf16"):
        config = tiny_config(tmp_path, folder, prompt_file(tmp_path / "prompts.parquet"), *lora,
                             f"roles.generator.frozen={frozen}")  # fmt: skip
        found.append(passes(config, folder, frame_of(config.model)))
    (out, without, gradients, size), (same, also, equal, half) = found
    assert torch.equal(out, same) and torch.equal(without, also) and not torch.equal(out, without)
    assert gradients and all(torch.equal(equal[key], value) for key, value in gradients.items())
    assert any(value.abs().max() > 0 for value in gradients.values())
    assert half < 0.75 * size, "those of linear and convolutional layers take half"
