"""A folder of pictures: checked on entry, kept as bytes if they fit into memory, else decoded when wanted."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, encode_labels

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY = 1 << 30  # bytes


def from_folder(folder: Path, *, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """The data set in a folder of pictures; see `load`. Subfolders are classes unless a CSV says otherwise."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if not files:
        raise ValueError(f"source={str(folder)!r} holds no pictures; known endings: {', '.join(PICTURES)}")
    _require_pillow()
    grey, skipped, usable = True, [], []
    for file in files:
        try:
            grey &= _is_grey(file)
            usable.append(file)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … by format
            skipped.append((str(file.relative_to(folder)), " ".join(str(error).split()) or type(error).__name__))
    channels = channels or (1 if grey else 3)
    decoded: list[np.ndarray] = []
    kept: list[Path] = []
    total = 0
    sizes: Counter[tuple[int, int]] = Counter()
    for file in usable:
        try:
            pixels = decode(file, size, channels)
        except Exception as error:
            skipped.append((str(file.relative_to(folder)), " ".join(str(error).split()) or type(error).__name__))
            continue
        kept.append(file)
        sizes[(pixels.shape[2], pixels.shape[1])] += 1
        total += pixels.nbytes
        if total <= IN_MEMORY:
            decoded.append(pixels)
    if not kept:
        raise ValueError(
            f"source={str(folder)!r}: none of {len(files)} pictures can be read; the first: {skipped[0][0]}: {skipped[0][1]}"
        )
    if len(sizes) > 1:
        common = ", ".join(f"{w}×{h} ({n})" for (w, h), n in sizes.most_common(3))
        raise ValueError(f"source={str(folder)!r} holds pictures of {len(sizes)} sizes: {common}; give size=")
    memory = torch.from_numpy(np.stack(decoded)) if total <= IN_MEMORY else None
    (width, height), _ = sizes.most_common(1)[0]

    def read(rows: Sequence[int]) -> Tensor:
        if memory is not None:
            pixels = memory[list(rows)]
        else:
            pixels = torch.from_numpy(np.stack([decode(kept[i], size, channels) for i in rows]))
        return pixels.float() / 127.5 - 1

    target, classes = _labels(folder, kept, labels)
    return Dataset(
        read, len(kept), (channels, height, width), labels=target, classes=classes, name=str(folder), skipped=skipped
    )


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError('reading pictures needs Pillow: pip install "unstir[cli]"') from None


def _is_grey(file: Path) -> bool:
    from PIL import Image

    with Image.open(file) as image:
        return image.mode in ("1", "L", "LA") or image.mode.startswith("I") or image.mode == "F"


def decode(file: Path, size: int | None, channels: int) -> np.ndarray:
    """One picture as uint8 (channels, height, width): upright, transparency on white, first frame of animations."""
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image.load()  # a truncated file fails here
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            # 16 and 32 bits: Pillow would clip at 255 instead of scaling.
            values = np.asarray(image, dtype=np.float64)
            top = 65535.0 if image.mode.startswith("I") else 1.0
            if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
                raise ValueError(f"{image.mode} values outside 0 … {top:g}")
            image = Image.fromarray((values * (255 / top)).round().astype(np.uint8))
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _labels(folder: Path, files: list[Path], labels: Any) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels of the files: from a CSV, from labels.csv in the folder, or from the first subfolder of each."""
    if labels is None or (isinstance(labels, str) and labels == "none"):
        return None, ()
    if isinstance(labels, str | Path) and labels != "auto":
        return _from_csv(Path(labels), folder, files)
    if not isinstance(labels, str):
        raise TypeError(f"labels is {type(labels).__name__}; for a folder give 'auto', 'none' or the path of a CSV")
    if (folder / "labels.csv").is_file():
        return _from_csv(folder / "labels.csv", folder, files)
    parts = [file.relative_to(folder).parts for file in files]
    if all(len(p) == 1 for p in parts):
        return None, ()
    loose = [p[0] for p in parts if len(p) == 1]
    if loose:
        raise ValueError(
            f"source={str(folder)!r}: {len(loose)} pictures lie outside the class subfolders (first: {loose[0]}); "
            "move them into one, or pass labels='none'"
        )
    return encode_labels([p[0] for p in parts])


def _from_csv(path: Path, folder: Path, files: list[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """Columns file, label (a first row that names no picture is a header)."""
    if not path.is_file():
        raise ValueError(f"labels={str(path)!r} is missing")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    table: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise ValueError(f"{path} line {number} has {len(row)} column; two are needed: file,label")
        if number == 1 and Path(row[0]).suffix.lower() not in PICTURES:
            continue
        table[row[0].strip()] = row[1].strip()
    names = [file.relative_to(folder).as_posix() for file in files]
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{path} has no label for {len(missing)} of {len(names)} pictures; the first: {missing[0]}")
    return encode_labels([table[name] for name in names])
