"""One picture file: pixels as float32 in [−1, 1], written back in the form it came in, with what else it said.

Format, depth (8 or 16 bits), transparency, colour profile, EXIF and texts are kept; a JPEG is
written with its own quantisation tables. A picture is turned upright, and its EXIF no longer asks
for that. Pillow comes with the extra `unstir[cli]` and is imported when first needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import atomic_file

_SAVED = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"}


@dataclass(frozen=True)
class Picture:
    """pixels: (C, H, W) in [−1, 1], C = 1 (grey) or 3; alpha: (H, W) uint8 or None; top: 255 or 65535, the white of the file.

    format: Pillow's name; options: what its `save` is given (profile, EXIF, quantisation tables, …).
    """

    pixels: Tensor
    format: str
    top: int = 255
    alpha: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """One line: "256×171, colour, JPEG"."""
        channels, height, width = self.pixels.shape
        kind = "grey" if channels == 1 else "colour"
        return f"{width}×{height}, {kind}{', 16 bits' if self.top > 255 else ''}, {self.format}"


def read_picture(path: str | Path) -> Picture:
    """The picture in a file.

    Raises ValueError, in one line that names the file, if it is missing, damaged, an animation, or
    of a kind that would not come back as it was (CMYK, floating point).
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ImportError('reading pictures needs Pillow: pip install "unstir[cli]"') from None
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing")
    try:
        with Image.open(path) as image:
            # A phone's JPEG often carries a preview, which makes it an "MPO"; the picture is the first.
            kind = "JPEG" if image.format == "MPO" else image.format or ""
            if kind != "JPEG" and getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"it holds {image.n_frames} frames; extract the ones to restore")  # type: ignore[attr-defined]
            options = _options(image, kind)
            image.load()  # a truncated file fails here
            image = ImageOps.exif_transpose(image)
            exif = image.getexif()
            if len(exif):
                options["exif"] = exif.tobytes()
            pixels, alpha, top = _pixels(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be used: it is no picture") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … by format
        text = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be used: {text or type(error).__name__}") from None
    if kind not in _SAVED:
        raise ValueError(f"{path} cannot be used: {kind or 'its format'} cannot be written; convert it to PNG")
    return Picture(torch.from_numpy(pixels) * 2 - 1, kind, top, alpha, options)


def _options(image: Any, kind: str) -> dict[str, Any]:
    """What `save` needs to keep the colour profile, resolution, texts and compression of a file."""
    from PIL import JpegImagePlugin, PngImagePlugin

    found = {name: image.info[name] for name in ("icc_profile", "dpi") if image.info.get(name)}
    if kind == "JPEG":
        found |= {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
        if image.info.get("comment"):
            found["comment"] = image.info["comment"]
    if kind == "PNG" and getattr(image, "text", None):
        texts = PngImagePlugin.PngInfo()
        for name, text in image.text.items():
            texts.add_itxt(name, str(text))
        found["pnginfo"] = texts
    if kind == "WEBP":
        found |= {"quality": 95}
    if kind == "TIFF" and image.info.get("compression"):
        found["compression"] = image.info["compression"]
    return found


def _pixels(image: Any) -> tuple[np.ndarray, Any, int]:
    """(pixels (C, H, W) float32 in [0, 1], alpha or None, white)."""
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("1", "La", "RGBa"):
        image = image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values lie outside 0 … 65535")
        return values[None] / 65535, None, 65535
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise ValueError(f"pixels of kind {image.mode} would not come back as they were; convert it to RGB")
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    alpha = values[..., -1].copy() if image.mode in ("LA", "RGBA") else None
    colours = values if alpha is None else values[..., :-1]
    return np.ascontiguousarray(colours.transpose(2, 0, 1), dtype=np.float32) / 255, alpha, 255


def write_picture(path: str | Path, pixels: Tensor, like: Picture) -> None:
    """Writes pixels (C, H, W) in [−1, 1] atomically, in the form of `like`: round(white (x + 1)/2), clipped to 0 … white.

    What `read_picture` read from a lossless file is written back exactly. Transparency is that of
    `like` where the size is, too.
    """
    from PIL import Image

    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"pixels has shape {tuple(pixels.shape)}; it must be (C, H, W) with C = 1 or 3")
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError("pixels contains NaN or infinite values")
    top = like.top if len(pixels) == 1 else 255
    values = ((pixels.detach().cpu().double() + 1) / 2 * top).round().clamp(0, top).permute(1, 2, 0).numpy()
    if top > 255:
        image = Image.fromarray(values[..., 0].astype(np.uint16))
    else:
        values = values.astype(np.uint8)
        if like.alpha is not None and like.alpha.shape == values.shape[:2]:
            values = np.concatenate([values, like.alpha[..., None]], 2)
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        image.save(file, format=like.format, **like.options)
