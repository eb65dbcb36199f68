import numpy as np
import pytest
import torch
from PIL import Image

from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.reporting.grid import GAP, save_grid


def images(count, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_each_pixel_is_a_square_of_its_colour(tmp_path):
    batch = images(5)
    picture = np.asarray(Image.open(save_grid(batch, tmp_path / "grid.png", columns=3)))
    assert picture.shape == (2 * 96 + GAP, 3 * 96 + 2 * GAP, 4)
    levels = (batch.numpy() * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    for index in range(5):
        x, y = index % 3 * (96 + GAP), index // 3 * (96 + GAP)
        cell = picture[y : y + 96, x : x + 96]
        assert (cell[..., :3] == np.kron(levels[index], np.ones((12, 12, 1), np.uint8))).all()
        assert (cell[..., 3] == 255).all()
    assert (picture[:, 96 : 96 + GAP, 3] == 0).all()  # the gap
    assert (picture[96 + GAP :, 2 * (96 + GAP) :, 3] == 0).all()  # the empty sixth cell


def test_large_images_keep_their_size_and_values_are_clipped(tmp_path):
    batch = torch.full((1, 3, 128, 100), 1.2, dtype=torch.bfloat16)
    batch[:, 1] = -0.1
    picture = np.asarray(Image.open(save_grid(batch, tmp_path / "grid.png", columns=4)))
    assert picture.shape == (128, 100, 4)
    assert (picture == [255, 0, 255, 255]).all()


def test_captions_stand_under_their_own_cell(tmp_path):
    with_text = save_grid(
        images(2), tmp_path / "a.png", 2, ["", "a bold right-slanted handwritten seven, and more " * 3]
    )
    picture = np.asarray(Image.open(with_text))
    below = picture[96:, :, 3]
    assert below[:, : 96 + GAP].max() == 0 and below[:, 96 + GAP :].max() > 0
    assert list(tmp_path.iterdir()) == [with_text]


@pytest.mark.parametrize("side", [8, 256, 512])
def test_captions_are_as_large_beside_any_cell(tmp_path, side):
    """Shrunk to cells of 96 pixels, a grid of large images has the letters of one of small images."""
    picture = Image.open(save_grid(torch.zeros(1, 3, side, side), tmp_path / "grid.png", 1, ["Hxg a bold seven"]))
    cell = max(side, 96)
    letters = np.asarray(picture)[cell:, :, 3] > 100
    height = np.flatnonzero(letters.any(1)).max() - np.flatnonzero(letters.any(1)).min()
    assert 0.08 < height / cell < 0.30
    assert letters.any(0).sum() / cell > 0.5


def test_bad_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\[2, 1, 8, 8\]"):
        save_grid(torch.zeros(2, 1, 8, 8), tmp_path / "grid.png", 2)
    batch = images(3)
    batch[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="1 of 3"):
        save_grid(batch, tmp_path / "grid.png", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_grid(images(1), tmp_path / "file" / "grid.png", 2)
