"""A folder of pictures: checked on entry, kept as bytes if they fit into memory, else decoded when wanted."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, Reader, encode_labels

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY = 1 << 25  # bytes; more is decoded when wanted, so that memory does not grow with the folder


class Picture(NamedTuple):
    """A picture that has not been read: what to call it, and how to open it (a PIL image)."""

    name: str
    open: Callable[[], Any]


class Pictures(NamedTuple):
    """Pictures that can be read, as a `Dataset` wants them; `kept`: the numbers of those that could be decoded."""

    read: Reader
    kept: list[int]
    shape: tuple[int, int, int]
    skipped: list[tuple[str, str]]


def from_folder(folder: Path, *, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """The data set in a folder of pictures; see `load`. Subfolders are classes unless a CSV says otherwise."""
    # A link to nothing is a picture that cannot be read, not one that is not there.
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and (p.is_file() or p.is_symlink()))
    if not files:
        raise ValueError(f"source={str(folder)!r} holds no pictures; known endings: {', '.join(PICTURES)}")
    require_pillow()
    found = gather([on_disk(file, folder) for file in files], size, channels, f"source={str(folder)!r}")
    kept = [files[i] for i in found.kept]
    target, classes = folder_labels(folder, kept, labels)
    return Dataset(
        found.read,
        len(kept),
        found.shape,
        labels=target,
        classes=classes,
        captions=_captions(kept),
        name=str(folder),
        skipped=found.skipped,
    )


def gather(pictures: Sequence[Picture], size: int | tuple[int, int] | None, channels: int | None, source: str) -> Pictures:
    """Tries every picture once, cut to size × size or to (height, width); all are kept as bytes if they fit into `IN_MEMORY`.

    Raises ValueError if none can be read, or if their sizes differ and no `size` was given.
    """
    grey, skipped, usable = True, [], []
    for i, picture in enumerate(pictures):
        try:
            with picture.open() as image:
                grey &= is_grey(image)
            usable.append(i)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … by format
            skipped.append((picture.name, " ".join(str(error).split()) or type(error).__name__))
    depth = channels or (1 if grey else 3)
    decoded: list[np.ndarray] = []
    kept: list[int] = []
    total = 0
    sizes: Counter[tuple[int, int]] = Counter()
    for i in usable:
        try:
            pixels = decode(pictures[i].open, size, depth)
        except Exception as error:
            skipped.append((pictures[i].name, " ".join(str(error).split()) or type(error).__name__))
            continue
        kept.append(i)
        sizes[(pixels.shape[2], pixels.shape[1])] += 1
        total += pixels.nbytes
        if total <= IN_MEMORY:
            decoded.append(pixels)
        else:
            decoded.clear()
    if not kept:
        raise ValueError(f"{source}: none of {len(pictures)} pictures can be read; the first: {skipped[0][0]}: {skipped[0][1]}")
    if len(sizes) > 1:
        common = ", ".join(f"{w}×{h} ({n})" for (w, h), n in sizes.most_common(3))
        raise ValueError(f"{source} holds pictures of {len(sizes)} sizes: {common}; give size=")
    memory = torch.from_numpy(np.stack(decoded)) if total <= IN_MEMORY else None
    (width, height), _ = sizes.most_common(1)[0]

    def read(rows: Sequence[int]) -> Tensor:
        if memory is not None:
            pixels = memory[list(rows)]
        else:
            pixels = torch.from_numpy(np.stack([decode(pictures[kept[i]].open, size, depth) for i in rows]))
        return pixels.float() / 127.5 - 1

    return Pictures(read, kept, (depth, height, width), skipped)


def on_disk(file: Path, folder: Path) -> Picture:
    def opened() -> Any:
        from PIL import Image

        return Image.open(file)

    return Picture(str(file.relative_to(folder)), opened)


def _captions(files: Sequence[Path]) -> tuple[str, ...] | None:
    """The text beside every picture, a.txt of a.png; None if no picture has one. "" where one lacks it."""
    beside = [file.with_suffix(".txt") for file in files]
    if not any(text.is_file() for text in beside):
        return None
    return tuple(text.read_text("utf-8", "replace").strip() if text.is_file() else "" for text in beside)


def require_pillow() -> None:
    """ImportError that says what to install, unless Pillow is there."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError('reading pictures needs Pillow: pip install "unstir[cli]"') from None


def is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I") or image.mode == "F"


def decode(opened: Callable[[], Any], size: int | tuple[int, int] | None, channels: int) -> np.ndarray:
    """One picture as uint8 (channels, height, width): upright, transparency on white, first frame of animations."""
    wanted = (size, size) if isinstance(size, int) else (size[1], size[0]) if size else None
    from PIL import Image, ImageOps

    with opened() as image:
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
        if wanted is not None and image.size != wanted:
            image = ImageOps.fit(image, wanted, Image.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def folder_labels(folder: Path, files: list[Path], labels: Any) -> tuple[Tensor | None, tuple[str, ...]]:
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
        file, label = row[0].strip(), row[1].strip()
        if not label:
            raise ValueError(f"{path} line {number} has no label for {file}; give one, or leave the picture out of the folder")
        if table.get(file, label) != label:
            raise ValueError(f"{path} line {number} calls {file} {label!r}, and before {table[file]!r}; keep one of the lines")
        table[file] = label
    names = [file.relative_to(folder).as_posix() for file in files]
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{path} has no label for {len(missing)} of {len(names)} pictures; the first: {missing[0]}")
    return encode_labels([table[name] for name in names])
