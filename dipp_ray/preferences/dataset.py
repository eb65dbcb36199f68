"""Preference pairs at the model's size, decoded once into files that every worker maps into memory."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dipp_ray.errors import UserError
from dipp_ray.preferences.config import ColumnSettings
from dipp_ray.preferences.reading import Labels, read_images
from dipp_ray.storage.aside import whole_folder


@dataclass(frozen=True)
class Pairs:
    """N pairs. prompts: the distinct texts; prompt [N]: indices into them; images: uint8 [N, 2, 3, size, size], a then
    b, on disk; label [N]: probability in [0, 1] that a is preferred.
    """

    prompts: list[str]
    prompt: torch.Tensor
    images: np.ndarray
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)

    def both(self, rows: torch.Tensor) -> torch.Tensor:
        """The images of these rows [B]: uint8 [B, 2, 3, size, size], in memory."""
        return torch.from_numpy(self.images[rows.numpy()])


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a prompt is set aside: by a hash of its text alone, so that a growing file keeps its split."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "little") < share * 2**64


def split(labels: Labels, share: float) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out, all pairs of a prompt on one side. Raises UserError if a side is empty."""
    aside = {prompt: is_held_out(prompt, share) for prompt in set(labels.prompts)}
    held_out = [row for row, prompt in enumerate(labels.prompts) if aside[prompt]]
    train = [row for row, prompt in enumerate(labels.prompts) if not aside[prompt]]
    if not train or not held_out:
        raise UserError(
            f"held_out_share={share} puts {'all' if held_out else 'none'} of the {len(aside)} prompts of {labels.path} "
            "aside: change it, or name another file in held_out"
        )
    return train, held_out


def digest(parts: Iterable[Labels]) -> str:
    """SHA-256 of prompts, labels and file sizes, wherever the files lie. The images are known by the size alone."""
    sha = hashlib.sha256()
    for labels in parts:
        sha.update(json.dumps([labels.size, labels.prompts], ensure_ascii=False).encode())
        sha.update(labels.label.tobytes())
    return sha.hexdigest()


def store_pairs(
    folder: Path, labels: Labels, rows: list[int], columns: ColumnSettings, size: int, tick: Callable[[int], None]
) -> None:
    """Decode the images of `rows` to size x size and leave the pairs in `folder`, which appears when it is whole.

    tick(n): n pairs are decoded. Raises UserError for an image that is refused, or a full disk.
    """
    wanted = set(rows)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), 2, 3, size, size)}
    done = 0
    try:
        with whole_folder(folder) as aside:
            # Written from end to end, not through a map: a full disk is then an error instead of a signal.
            with open(aside / "images.npy", "wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
                for images in read_images(labels, columns, size, wanted.__contains__):
                    file.write(images.tobytes())
                    done += len(images)
                    tick(done)
            prompts = [labels.prompts[row] for row in rows]
            distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
            (aside / "prompts.json").write_text(json.dumps(list(distinct)))
            index = torch.tensor([distinct[prompt] for prompt in prompts])
            save_file({"prompt": index, "label": torch.from_numpy(labels.label[rows])}, aside / "pairs.safetensors")
    except OSError as error:
        raise UserError(f"the decoded pairs do not fit in {folder.parent}: {error.strerror or error}") from None


def load_pairs(folder: Path) -> Pairs:
    """The pairs that `store_pairs` left. Raises UserError where this machine does not see the folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not seen on this machine: `out` must lie on a disk that all nodes share")
    tensors = load_file(folder / "pairs.safetensors")
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    return Pairs(json.loads((folder / "prompts.json").read_text()), tensors["prompt"], images, tensors["label"])
