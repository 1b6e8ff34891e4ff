"""Sheets of pictures, as PIL images: `grid` and `labelled_rows`.

Small pictures are enlarged by whole numbers, each pixel becoming a square, so that what is seen is
what was generated. Pillow comes with the extra `unstir[cli]` and is imported when first needed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .._extras import need
from .._files import atomic_file
from .samples import check_samples

Image = Any  # PIL.Image.Image, which may not be installed
META = "unstir"  # the name of the text in a PNG file that says how the picture came about
GAP, PAPER, INK = 2, (255, 255, 255), (36, 41, 47)


def tiles(images: Any, scale: int | None = None, value_range: tuple[float, float] | None = None, name: str = "images") -> Any:
    """Pictures (B, C, H, W), C = 1 or 3, as a uint8 array (B, scale·H, scale·W, 3).

        pixel = round(255 (v − lo)/(hi − lo)),   clipped to 0 … 255

    `value_range` (lo, hi) is (−1, 1) for floats and (0, 255) for integers unless given; `scale` by
    default makes the longer side about 64 pixels.
    """
    x = check_samples(images, name, 1)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, C, H, W) with C = 1 or 3")
    if scale is None:
        scale = max(1, round(64 / max(x.shape[2:])))
    if not (isinstance(scale, int) and scale >= 1):
        raise ValueError(f"scale={scale!r} must be an integer ≥ 1")
    lo, hi = value_range or ((-1.0, 1.0) if x.is_floating_point() else (0.0, 255.0))
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"value_range={value_range!r} must be (lo, hi) with lo < hi")
    pixels = (255 * (x.cpu().double() - lo) / (hi - lo)).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2).numpy()


def grid(
    images: Any, columns: int | None = None, scale: int | None = None, value_range: tuple[float, float] | None = None
) -> Image:
    """One PIL image of B pictures (B, C, H, W), row by row, 2 pixels of white between and around them.

    Picture i has its upper left corner at x = 2 + (i mod columns)(scale·W + 2), y = 2 + ⌊i/columns⌋(scale·H + 2).
    `columns` by default makes the sheet about square; for `scale` and `value_range` see `tiles`.
    """
    cells = tiles(images, scale, value_range)
    if columns is None:
        columns = math.ceil(math.sqrt(len(cells)))
    if not (isinstance(columns, int) and columns >= 1):
        raise ValueError(f"columns={columns!r} must be an integer ≥ 1")
    _, height, width, _ = cells.shape
    columns, rows = min(columns, len(cells)), math.ceil(len(cells) / columns)
    sheet = need("PIL.Image").new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + GAP)), PAPER)
    for i, cell in enumerate(cells):
        _paste(sheet, cell, GAP + i % columns * (width + GAP), GAP + i // columns * (height + GAP))
    return sheet


def labelled_rows(
    rows: Mapping[str, Any],
    scale: int | None = None,
    value_range: tuple[float, float] | None = None,
    header: Sequence[str] | None = None,
) -> Image:
    """A sheet with one row of pictures a label: {"ddim, 5 evaluations": (B, C, H, W), …}, the label at the left.

    Rows may differ in B and in picture size; `header` puts a text above each column.
    """
    if not rows:
        raise ValueError("rows is empty; give {label: pictures (B, C, H, W)}")
    cells = {label: tiles(images, scale, value_range, f"rows[{label!r}]") for label, images in rows.items()}
    heights = [row.shape[1] for row in cells.values()]
    widths = [max(row.shape[2] for row in cells.values())] * max(len(row) for row in cells.values())
    if header is not None and len(header) > len(widths):
        raise ValueError(f"header has {len(header)} entries for {len(widths)} columns")
    draw_on, font = need("PIL.ImageDraw").Draw, need("PIL.ImageFont").load_default(size=14)
    left = math.ceil(max(font.getlength(label) for label in cells)) + 16
    top = 24 if header else GAP
    size = (left + sum(w + GAP for w in widths), top + sum(h + GAP for h in heights))
    sheet = need("PIL.Image").new("RGB", size, PAPER)
    pen = draw_on(sheet)
    for j, text in enumerate(header or ()):
        pen.text((left + j * (widths[0] + GAP) + widths[0] / 2, top / 2), text, INK, font, anchor="mm")
    y = top
    for (label, row), height in zip(cells.items(), heights, strict=True):
        pen.text((left - 8, y + height / 2), label, INK, font, anchor="rm")
        for j, cell in enumerate(row):
            _paste(sheet, cell, left + j * (widths[0] + GAP), y)
        y += height + GAP
    return sheet


def _paste(sheet: Image, cell: Any, x: int, y: int) -> None:
    sheet.paste(need("PIL.Image").fromarray(cell), (x, y))


def png(image: Image, meta: Mapping[str, Any] | None = None) -> bytes:
    """The PNG file of a PIL image (lossless: JPEG would change what a metric sees); for `meta` see `save_png`."""
    texts, buffer = need("PIL.PngImagePlugin").PngInfo(), io.BytesIO()
    if meta is not None:
        texts.add_itxt(META, json.dumps(meta, ensure_ascii=False, allow_nan=False))
    image.save(buffer, format="PNG", optimize=True, pnginfo=texts)
    return buffer.getvalue()


def save_png(image: Image, path: str | Path, meta: Mapping[str, Any] | None = None) -> None:
    """Writes a PIL image to `path` atomically.

    meta: how it came about (model, seed, fingerprint of the plan, …), kept in the file as JSON under the name "unstir"
    and read by `read_meta`; anything that JSON has.
    """
    with atomic_file(file_name(path)) as temporary:
        temporary.write_bytes(png(image, meta))


def read_meta(path: str | Path) -> dict[str, Any] | None:
    """What `save_png` was told in `meta`; None for a picture without it. ValueError if the file is no picture."""
    try:
        with need("PIL.Image").open(path) as image:
            image.load()  # texts may follow the pixels
            told = json.loads(getattr(image, "text", {}).get(META, "null"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"path={str(path)!r} cannot be read as a picture: {' '.join(str(error).split())}") from None
    return told if isinstance(told, dict) else None


def file_name(path: str | Path) -> Path:
    """`path`, refused if it is a folder."""
    if Path(path).is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; give the name of a file in it")
    return Path(path)
