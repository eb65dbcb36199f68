"""LoRA in every family: fresh it changes nothing, off it is gone to the bit, and exported it gives the trainer's x0."""

import json

import pytest
import torch
from adapted_networks import LORA, adapted, noise, x0_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dipp_ray.models.adapter_files import save_adapter
from dipp_ray.models.adapters import adapter_off, add_adapter, merge_adapter, trained_weights
from dipp_ray.models.export import adapter_error, export_error, write_adapter, write_pipeline
from dipp_ray.models.pipeline import load_denoiser, one_step_of
from tiny_families import FAMILIES, FLOW, PROMPTS


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_exported_merged_and_alone_and_plain_diffusers_gives_the_trainers_x0(name, folders, tmp_path):
    folder = folders(name)
    frame, network = adapted(name, folder)
    # Frozen as an adapter's network is: torch folds a product in another order where a weight asks for gradients.
    z, base = noise(frame), load_denoiser(folder, "fp32", frame=frame).requires_grad_(False)
    for convention in ("unit",) if name in FLOW else ("unit", "sigma"):
        one_step = one_step_of(frame, 1000 if name in FLOW else 440, convention)
        x0 = x0_of(network, frame, folder, one_step, z)
        without = x0_of(base, frame, folder, one_step, z)
        assert (x0 - without).abs().max() > 1e-3 * x0.abs().max(), "the adapter is felt"
        with adapter_off(network):
            assert torch.equal(x0_of(network, frame, folder, one_step, z), without)
        assert torch.equal(x0_of(network, frame, folder, one_step, z), x0)
        out = write_adapter(frame, network.network, one_step, tmp_path / f"adapter-{convention}")
        plain = load_denoiser(folder, "fp32", frame=frame).network
        assert adapter_error(out, plain, PROMPTS, z, x0.numpy(), frame) < 1e-5
    merge_adapter(network.network)
    write_pipeline(frame, network.network, one_step, tmp_path / "merged")
    assert export_error(tmp_path / "merged", PROMPTS, z, x0.numpy()) < 1e-4


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"pixart1024", "flux", "zimage", "sana", "sanasprint"}))
def test_it_is_compared_at_the_size_that_the_folder_is_made_for(name, folders, tmp_path):
    """Where no resolution is set the pipeline's call finds its own, and asks the network for it.

    The tiny folders of SANA are made for a size that their own call refuses.
    """
    folder = folders(name)
    frame, network = adapted(name, folder, resolution=None)
    one_step, z = one_step_of(frame, 1000 if name in FLOW else 440, "unit"), noise(frame)
    x0 = x0_of(network, frame, folder, one_step, z)
    out = write_adapter(frame, network.network, one_step, tmp_path / "adapter")
    plain = load_denoiser(folder, "fp32", frame=frame).network
    assert adapter_error(out, plain, PROMPTS, z, x0.numpy(), frame) < 1e-5


@pytest.mark.parametrize("name", ["sdxl", "pixart", "sd3"])
def test_an_alpha_that_is_lost_on_reload_is_seen(name, folders, tmp_path):
    folder = folders(name)
    frame, network = adapted(name, folder)
    one_step = one_step_of(frame, 1000 if name in FLOW else 440, "unit")
    z = noise(frame)
    x0 = x0_of(network, frame, folder, one_step, z)
    out = write_adapter(frame, network.network, one_step, tmp_path / "adapter")
    if name == "pixart":
        config = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["r"]}))
    else:
        (file,) = out.glob("*.safetensors")
        save_file(load_file(file), file, {"format": "pt"})
    plain = load_denoiser(folder, "fp32", frame=frame).network
    assert adapter_error(out, plain, PROMPTS, z, x0.numpy(), frame) > 1e-3


def test_a_fresh_one_changes_nothing_and_is_drawn_by_the_seed_and_the_role(folders):
    folder = folders("sd15")
    frame, first = adapted("sd15", folder, moved=0)
    one_step, z = one_step_of(frame, 440, "unit"), noise(frame)
    base = load_denoiser(folder, "fp32", frame=frame).requires_grad_(False)
    assert torch.equal(x0_of(first, frame, folder, one_step, z), x0_of(base, frame, folder, one_step, z))
    drawn = []
    for seed, group in ((7, "generator"), (7, "generator"), (8, "generator"), (7, "score")):
        torch.manual_seed(len(drawn))
        network = load_denoiser(folder, "fp32", frame=frame).network
        add_adapter(network, LORA, frame.adapter_targets, seed, group)
        drawn.append(torch.cat([p.flatten() for name, p in trained_weights(network) if ".lora_A." in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])
    assert drawn[0].std().item() == pytest.approx(1 / LORA.rank, rel=0.1)
    assert len(set(drawn[0].tolist())) > 0.9 * len(drawn[0]), "no two matrices are the same"
    trained = [name for name, _ in trained_weights(first)]
    assert trained and all(".lora_" in name for name in trained)


def test_an_exported_file_names_its_alpha(folders, tmp_path):
    frame, network = adapted("sdxl", folders("sdxl"))
    (tmp_path / "out").mkdir()
    save_adapter(network.network, frame, tmp_path / "out")
    with safe_open(tmp_path / "out" / "pytorch_lora_weights.safetensors", "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (said["unet.lora_alpha"], said["unet.r"]) == (8, 2)
