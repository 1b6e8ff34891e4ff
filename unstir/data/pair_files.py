"""The files of pairs: pictures cut into windows, sounds into spectrograms. See `pairs`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .images import IN_MEMORY, decode, is_grey, require_pillow
from .sound import faults, form_of, read_part
from .spectrogram import Spectrogram

FRAMES = 64  # of a spectrogram that is a sample


class File(NamedTuple):
    """Two partners, and the name they share."""

    name: str
    degraded: Path
    true: Path


Read = Callable[[Sequence[int], int], Tensor]
Made = tuple[Read, int, tuple[int, ...], list[int], Spectrogram | None]


def from_pictures(files: list[File], skipped: list[tuple[str, str]], size: int | None, channels: int | None) -> Made | None:
    require_pillow()
    from PIL import Image

    def load(path: Path, depth: int) -> np.ndarray:
        return decode(lambda: Image.open(path), None, depth)

    usable, grey = [], True
    for file in files:
        try:
            for path in file[1:]:
                with Image.open(path) as image:
                    grey &= is_grey(image)
            usable.append(file)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … by format
            skipped.append((file.name, _line(error)))
    depth = channels or (1 if grey else 3)
    kept: list[File] = []
    memory: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    cuts: list[tuple[int, int, int]] = []  # file, top, left
    total = 0
    for file in usable:
        try:
            both = (load(file.degraded, depth), load(file.true, depth))
        except Exception as error:
            skipped.append((file.name, _line(error)))
            continue
        (_, h, w), (_, height, width) = both[0].shape, both[1].shape
        if (h, w) != (height, width):
            skipped.append((file.name, f"the degraded picture has {w}×{h} pixels, the true one {width}×{height}"))
        elif size is not None and min(h, w) < size:
            skipped.append((file.name, f"{w}×{h} pixels are less than size={size}"))
        else:
            number = len(kept)
            kept.append(file)
            sizes[(h, w)] += 1
            cuts += [(number, top, left) for top in _places(h, size or h) for left in _places(w, size or w)]
            total += both[0].nbytes + both[1].nbytes
            memory[number] = both
            if total > 2 * IN_MEMORY:
                memory.clear()
    if not kept:
        return None
    if size is None and len(sizes) > 1:
        common = ", ".join(f"{w}×{h} ({n})" for (h, w), n in sizes.most_common(3))
        raise ValueError(f"pairs: the pictures have {len(sizes)} sizes: {common}; give size=, the side of windows to cut")
    high, wide = (size, size) if size is not None else next(iter(sizes))
    held = memory if total <= 2 * IN_MEMORY else None

    @lru_cache(maxsize=16)
    def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
        return (load(kept[number].degraded, depth), load(kept[number].true, depth))

    def read(rows: Sequence[int], side: int) -> Tensor:
        windows = []
        for number, top, left in (cuts[row] for row in rows):
            pixels = (held[number] if held is not None else picture(number))[side]
            windows.append(pixels[:, top : top + high, left : left + wide])
        return torch.from_numpy(np.stack(windows)).float() / 127.5 - 1

    return read, len(cuts), (depth, high, wide), [c[0] for c in cuts], None


def _places(length: int, size: int) -> list[int]:
    """Where windows of `size` begin that cover `length`, evenly spread, as few as that takes."""
    count = -(-length // size)
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


def from_sounds(files: list[File], skipped: list[tuple[str, str]]) -> Made | None:
    kept: list[File] = []
    rates: Counter[int] = Counter()
    for file in files:
        try:
            forms = [form_of(path) for path in file[1:]]
            for what, unit in (("rate", "Hz"), ("channels", "channels"), ("length", "samples")):
                pair = [getattr(form, what) for form in forms]
                if pair[0] != pair[1]:
                    raise ValueError(f"the degraded sound has {pair[0]} {unit}, the true one {pair[1]}")
            wrong = [faults(read_part(path, 0, form.length)) for path, form in zip(file[1:], forms, strict=True)]
            if ["silent"] in wrong:
                raise ValueError("silent")
            if clipped := [fault for fault in wrong[1] if fault.startswith("clipped")]:
                raise ValueError(f"the true sound is {clipped[0]}")
        except (ValueError, OSError) as error:
            skipped.append((file.name, _line(error)))
            continue
        rates[forms[0].rate] += 1
        kept.append(file)
    if not kept:
        return None
    if len(rates) > 1:
        found = ", ".join(f"{rate} Hz ({n})" for rate, n in rates.most_common(3))
        raise ValueError(f"pairs: the sounds have {len(rates)} rates: {found}; resample them to one")
    transform = spectrogram_of(next(iter(rates)))
    length = (FRAMES - 1) * transform.hop

    @lru_cache(maxsize=64)
    def sound(number: int) -> tuple[Tensor, Tensor]:
        """(degraded, true) of a file, mono."""
        form = form_of(kept[number].true)
        return tuple(read_part(path, 0, form.length).mean(0) for path in kept[number][1:])  # type: ignore[return-value]

    cuts = []
    for number in range(len(kept)):
        begins = range(0, max(1, len(sound(number)[0]) - length // 4), length)
        heard = [all(bool(part[i : i + length].any()) for part in sound(number)) for i in begins]
        cuts += [(number, i) for i, both in zip(begins, heard, strict=True) if both]  # pauses teach nothing

    def read(rows: Sequence[int], side: int) -> Tensor:
        windows = torch.zeros(len(rows), length)
        for i, (number, start) in enumerate(cuts[row] for row in rows):
            both = [part[start : start + length] for part in sound(number)]
            windows[i, : len(both[side])] = both[side] / both[0].abs().max()  # in units of the degraded one's peak
        return transform(windows)

    return read, len(cuts), transform.shape(length), [c[0] for c in cuts], transform


def spectrogram_of(rate: int) -> Spectrogram:
    """The transform for sounds at `rate` Hz: windows of about 32 ms (510 samples at 16 kHz), a quarter of one per step."""
    frequencies = max(32, 2 ** round(math.log2(0.016 * rate)))
    return Spectrogram(rate, 2 * frequencies - 2, frequencies // 2, fold=2, frames=FRAMES)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
