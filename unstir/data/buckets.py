"""Pictures of many shapes without square crops: buckets of one size each, all of about one area.

A picture goes to the bucket whose ratio of sides is nearest to its own (in logarithm), is scaled to cover it and loses what
stands out on two sides. A batch comes from one bucket. Which bucket and which rows batch k has is a function of
(seed, k) alone, so a run can be resumed, or shared by any number of processes, without a state: `train.fit` takes
buckets where it takes a data set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._random import mix
from .dataset import Dataset
from .fields import Fields
from .images import PICTURES, folder_labels, gather, is_grey, on_disk, require_pillow
from .pairs import Pairs

_CYCLE, _ROWS = 1, 2


def bucket_sizes(side: int, step: int = 64, ratio: float = 2.0) -> tuple[tuple[int, int], ...]:
    """(height, width) of the buckets: multiples of `step` with an area of at most side², and less than one step below it.

    For every width the greatest height with height · width ≤ side², where 1/ratio ≤ width/height ≤ ratio; and the same with
    the sides exchanged. Sorted from upright to wide. ValueError if side, step or ratio admit none.
    """
    for name, value in (("side", side), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of pixels, at least 1")
    if side < step:
        raise ValueError(f"side={side} is smaller than step={step}; give a side of at least one step")
    if not (isinstance(ratio, int | float) and 1 <= ratio < math.inf):
        raise ValueError(f"ratio={ratio!r} must be a finite number of at least 1")
    found = set()
    for width in range(step, int(side * ratio) + step, step):
        height = side * side // width // step * step
        if height and 1 / ratio <= width / height <= ratio:
            found |= {(height, width), (width, height)}
    return tuple(sorted(found, key=lambda size: size[1] / size[0]))


def nearest(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> int:
    """The number of the bucket for a picture of (height, width): the smallest |log of the quotient of the ratios|."""
    wanted = math.log(size[1] / size[0])
    return min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i][1] / sizes[i][0]) - wanted))


class Buckets:
    """Data sets of one shape each; `batch(seed, k, size)` is the k-th batch of a run.

    parts: a `Dataset` a bucket, with the same classes.  skipped: (file, reason) of every file that could not be used.
    shape: that of the bucket with the most pictures (the first of them);  shapes: one a bucket, in the order of the parts.
    """

    def __init__(self, parts: Sequence[Dataset], name: str = "buckets", skipped: Sequence[tuple[str, str]] = ()) -> None:
        if not parts:
            raise ValueError(f"{name} has no buckets; give at least one data set")
        for part in parts:
            if isinstance(part, Fields | Pairs):
                raise ValueError(f"{part.name} holds {type(part).__name__.lower()}; buckets are of samples that are one tensor")
            if part.classes != parts[0].classes or part.shape[0] != parts[0].shape[0]:
                raise ValueError(f"{part.name} and {parts[0].name} differ in their classes or channels; buckets share both")
            if part.condition_names != parts[0].condition_names:
                raise ValueError(f"{part.name} and {parts[0].name} differ in their named conditions; buckets share them")
        self.parts, self.name, self.skipped = tuple(parts), name, tuple(skipped)
        self.classes, self.shapes = parts[0].classes, tuple(part.shape for part in parts)
        self.shape = max(parts, key=len).shape
        self.range = min(part.range[0] for part in parts), max(part.range[1] for part in parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def rows(self, seed: int, k: int, size: int) -> tuple[int, list[int]]:
        """(bucket, rows in it) of batch k of `size` pictures.

        Buckets take turns in a shuffled cycle in which each has as many batches as its share of the pictures; the batches of
        a bucket go through its pictures in ever new orders, without a rest: in the long run every picture is seen
        equally often, and none is left out at the end of an epoch.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"k={k!r} must be a whole number of batches, at least 0")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size={size!r} must be a whole number of pictures, at least 1")
        counts = tuple(map(len, self.parts))
        turns = np.array(counts) // math.gcd(*counts)
        cycle, place = divmod(k, int(turns.sum()))
        order, before = _cycle(tuple(turns.tolist()), seed, cycle)
        bucket = int(order[place])
        first = (cycle * int(turns[bucket]) + int(before[place])) * size
        count = counts[bucket]
        return bucket, [_shuffled(count, seed, bucket, n // count)[n % count] for n in range(first, first + size)]

    def batch(self, seed: int, k: int, size: int, part: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """(pictures (B, C, h, w), labels) of batch k, or of one process's part of it."""
        bucket, rows = self.rows(seed, k, size)
        return self.parts[bucket].batch(rows[part])

    def split(self, held_out: int, seed: int = 0) -> tuple[Buckets, Buckets]:
        """(the rest, `held_out` pictures), chosen by a hash of (seed, picture) from all buckets; empty buckets are left out."""
        if not 0 < held_out < len(self):
            raise ValueError(f"held_out={held_out} must be between 1 and {len(self) - 1} for {len(self)} pictures")
        out = set(sorted(range(len(self)), key=lambda i: mix(seed, i))[:held_out])
        first, found = 0, ([], [])
        for part in self.parts:
            for place, chosen in enumerate(found):
                rows = [i for i in range(len(part)) if (first + i in out) == bool(place)]
                if rows:
                    chosen.append(part.subset(rows))
            first += len(part)
        rest, test = found
        return Buckets(rest, f"{self.name} (train)", self.skipped), Buckets(test, f"{self.name} (test)", self.skipped)

    def std(self, limit: int = 1024) -> float:
        """Standard deviation of all values of up to `limit` evenly spaced pictures, of every bucket its share."""
        count, total, squares = 0, 0.0, 0.0
        for part in self.parts:
            x = part._read(part._spaced(max(1, limit * len(part) // len(self)))).double()
            count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
        return math.sqrt(max(0.0, squares - total**2 / count) / max(1, count - 1))

    def fingerprint(self) -> str:
        """A short hash of the buckets' own, see `Dataset.fingerprint`."""
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line: how many pictures in how many buckets, and the fullest ones."""
        full = sorted(self.parts, key=len, reverse=True)[:3]
        most = ", ".join(f"{p.shape[2]}×{p.shape[1]} ({len(p)})" for p in full)
        skipped = f", {len(self.skipped)} skipped (first: {': '.join(self.skipped[0])})" if self.skipped else ""
        return f"{self.name}: {len(self)} pictures in {len(self.parts)} buckets, most in {most}{skipped}"


def parts_of(dataset: Dataset | Buckets) -> tuple[Dataset, ...]:
    """The data sets of one shape that this one consists of: the buckets, or itself."""
    return dataset.parts if isinstance(dataset, Buckets) else (dataset,)


@lru_cache(maxsize=4)
def _cycle(turns: tuple[int, ...], seed: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    """(the bucket of every batch of a cycle, how many batches of that bucket came before it in the cycle)."""
    order = np.repeat(np.arange(len(turns)), turns)
    order = order[_permutation(len(order), seed, _CYCLE, cycle)]
    before = np.empty_like(order)
    for bucket, count in enumerate(turns):
        before[order == bucket] = np.arange(count)
    return order, before


@lru_cache(maxsize=256)
def _shuffled(count: int, seed: int, bucket: int, epoch: int) -> list[int]:
    return _permutation(count, seed, _ROWS, bucket, epoch).tolist()


def _permutation(count: int, *keys: int) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(*keys) >> 1)).numpy()


def _unreadable(folder: Path, count: int, skipped: Sequence[tuple[str, str]]) -> ValueError:
    return ValueError(f"folder={str(folder)!r}: none of {count} pictures can be read; the first: {': '.join(skipped[0])}")


def load_buckets(
    folder: str | Path,
    *,
    side: int = 512,
    step: int = 64,
    ratio: float = 2.0,
    channels: int | None = None,
    labels: Any = "auto",
) -> Buckets:
    """The pictures of a folder in buckets (`bucket_sizes`); labels and what is skipped are those of `load`.

    Pictures beyond `ratio` are cut to the widest or the most upright bucket. Buckets without a picture are left out.
    """
    require_pillow()
    sizes, folder = bucket_sizes(side, step, ratio), Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file()) if folder.is_dir() else []
    if not files:
        raise ValueError(f"folder={str(folder)!r} holds no pictures; known endings: {', '.join(PICTURES)}")
    members: dict[int, list[int]] = {}
    skipped, grey = [], True
    for i, file in enumerate(files):
        try:
            with on_disk(file, folder).open() as image:
                grey &= is_grey(image)
                height, width = image.height, image.width
                if image.getexif().get(0x0112, 1) >= 5:  # lies on its side
                    height, width = width, height
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … by format
            skipped.append((str(file.relative_to(folder)), " ".join(str(error).split()) or type(error).__name__))
            continue
        members.setdefault(nearest((height, width), sizes), []).append(i)
    if not members:
        raise _unreadable(folder, len(files), skipped)
    depth, found = channels or (1 if grey else 3), []
    for number, numbers in sorted(members.items()):
        pictures = [on_disk(files[i], folder) for i in numbers]
        try:
            part = gather(pictures, sizes[number], depth, f"folder={str(folder)!r}")
        except ValueError:  # not one of this bucket can be decoded
            skipped += [(picture.name, "cannot be decoded") for picture in pictures]
            continue
        skipped += part.skipped
        found.append(([numbers[k] for k in part.kept], part))
    kept = sorted(i for numbers, _ in found for i in numbers)
    if not kept:
        raise _unreadable(folder, len(files), skipped)
    target, classes = folder_labels(folder, [files[i] for i in kept], labels)
    at = {number: place for place, number in enumerate(kept)}
    parts = [
        Dataset(
            part.read,
            len(numbers),
            part.shape,
            labels=None if target is None else target[[at[i] for i in numbers]],
            classes=classes,
            name=f"{folder} ({part.shape[2]}×{part.shape[1]})",
        )
        for numbers, part in found
    ]
    return Buckets(parts, str(folder), skipped)
