"""A batch of images as one PNG: cells in rows, small images enlarged without blur, captions if wished."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dipp_ray.errors import NonFiniteError
from dipp_ray.storage.aside import whole_file

CELL = 96  # smallest width of a cell, pixels
GAP = 6  # between cells, pixels
CAPTION_LINES = 4
CAPTION_SIZE = 11  # pixels, under a cell of CELL; it grows with the cell, so that it reads when the grid is shrunk
CAPTION_COLOUR = (118, 118, 118, 255)  # readable on white and on black


def save_grid(images, path: Path, columns: int, captions: list[str] | None = None) -> Path:
    """Write `images` (tensor or array, [N, 3, H, W], values in [0, 1], clipped to it) as a PNG with `columns` columns.

    Each pixel becomes a square of ceil(96 / W) pixels; the gaps are transparent. `captions` (N texts) are wrapped under
    the cells and cut after four lines, in letters as large beside a cell as 11 pixels are beside 96. The file is
    written aside and renamed.
    Raises ValueError for a wrong shape, NonFiniteError for a value that is not finite, UserError if the file cannot
    be written.
    """
    pixels = _pixels(images)
    count, height, width, _ = pixels.shape
    if columns < 1 or (captions is not None and len(captions) != count):
        raise ValueError(f"{count} images, {columns} columns, {len(captions or [])} captions do not fit together")
    scale = math.ceil(CELL / width)
    cell_width, cell_height = width * scale, height * scale
    size = round(CAPTION_SIZE * max(1.0, cell_width / CELL))
    font = ImageFont.load_default(size)
    lines = [_wrap(caption, font, cell_width) for caption in captions or [""] * count]
    line_height = round(size * 1.3)
    pitch_x = cell_width + GAP
    pitch_y = cell_height + GAP + line_height * max(map(len, lines))

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    canvas = Image.new("RGBA", (columns * pitch_x - GAP, rows * pitch_y - GAP), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for index in range(count):
        x, y = index % columns * pitch_x, index // columns * pitch_y
        cell = pixels[index].repeat(scale, axis=0).repeat(scale, axis=1)
        canvas.paste(Image.fromarray(cell, "RGB"), (x, y))
        for number, line in enumerate(lines[index]):
            draw.text((x, y + cell_height + 2 + number * line_height), line, CAPTION_COLOUR, font)
    with whole_file(Path(path)) as aside:
        canvas.save(aside, format="PNG", optimize=True)
    return Path(path)


def _pixels(images) -> np.ndarray:
    """[N, 3, H, W] in [0, 1] to [N, H, W, 3] uint8, rounded to the nearest level."""
    if hasattr(images, "detach"):  # a torch tensor of any float type, on any device
        images = images.detach().float().cpu().numpy()
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or images.shape[1] != 3 or images.size == 0:
        raise ValueError(f"a grid needs images of shape [N, 3, H, W], N >= 1, not {list(images.shape)}")
    bad = int((~np.isfinite(images)).any(axis=(1, 2, 3)).sum())
    if bad:
        raise NonFiniteError(f"sample grid: {bad} of {len(images)} images hold values that are not finite")
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _wrap(text: str, font, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, at most CAPTION_LINES of them; the cut is marked by an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    kept = lines[:CAPTION_LINES]
    if len(lines) > len(kept):
        kept[-1] += "…"
    return [_cut(line, font, width) for line in kept]


def _cut(line: str, font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
