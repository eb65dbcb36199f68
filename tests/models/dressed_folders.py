"""Copies of tiny pipeline folders, dressed and harmed as those that people hold."""

import json

import torch
from safetensors.torch import load_file, save_file

PARTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def edited(path, leave_out=(), **settings):
    given = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in given.items() if key not in leave_out}))


def as_bin(folder):
    for part, name in PARTS.items():
        weights = load_file(folder / part / name)
        (folder / part / name).unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(weights, folder / part / name)


def as_shards(folder):
    for part, name in PARTS.items():
        weights, stem = load_file(folder / part / name), name.removesuffix(".safetensors")
        (folder / part / name).unlink()
        shards = [f"{stem}-0000{i + 1}-of-00002.safetensors" for i in range(2)]
        where = {key: shards[i % 2] for i, key in enumerate(weights)}
        for shard in shards:
            save_file(
                {key: weights[key] for key in weights if where[key] == shard}, folder / part / shard, {"format": "pt"}
            )
        (folder / part / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
