"""Pairs of degraded and true data, for models that restore: folders with equal names, or arrays.

    LQ/a.png  GT/a.png      pictures of equal sizes, used whole or in windows of `size` × `size`
    noisy/a.wav  clean/a.wav      sounds of equal lengths and one rate, as windows of spectrograms
    lq.npy gt.npy, or one .npz of two arrays (named as in `NAMES`, or the degraded one first)

What cannot be used is skipped and named, with the reason, in `.skipped`: a file without a partner, partners of
different sizes, lengths or rates, damaged files, pictures smaller than `size`, silence, a true sound that is clipped.
Nothing usable at all, or sounds of several rates, is an error.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .._random import mix
from .arrays import _open, from_array
from .dataset import Dataset, Reader
from .images import PICTURES
from .pair_files import File, from_pictures, from_sounds
from .sound import SOUNDS
from .spectrogram import Spectrogram

NAMES = (("lq", "y", "degraded", "noisy", "input"), ("gt", "x", "truth", "clean", "target"))


class Pairs(Dataset):
    """A `Dataset` of true samples x0, each with its degraded copy y of the same shape (`anchors`).

    groups: (N,) the file that each sample was cut from: `split` holds out whole files.
    sound: the transform whose spectrograms the samples are, None for pictures and numbers.
    """

    def __init__(
        self,
        read: Reader,
        degraded: Reader,
        count: int,
        shape: Sequence[int],
        *,
        groups: Sequence[int] | None = None,
        sound: Spectrogram | None = None,
        **about: Any,
    ) -> None:
        super().__init__(read, count, shape, **about)
        self._degraded, self.groups, self.sound = degraded, list(range(count) if groups is None else groups), sound

    def anchors(self, rows: Sequence[int]) -> Tensor:
        """The degraded copies y of the given rows: (B, *shape) float32."""
        return self._degraded(rows)

    def subset(self, rows: Sequence[int], name: str | None = None) -> Pairs:
        rows = list(rows)
        part = Pairs(
            lambda wanted: self._read([rows[i] for i in wanted]),
            lambda wanted: self._degraded([rows[i] for i in wanted]),
            len(rows),
            self.shape,
            groups=[self.groups[i] for i in rows],
            sound=self.sound,
            range=self.range,
            name=name or self.name,
            skipped=self.skipped,
        )
        return self._keep_beside(part, rows)

    def split(self, held_out: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(the rest, at least `held_out` samples) of different files, chosen by a hash of (seed, file).

        Samples of one file are cut apart only where there is but one file.
        """
        files = sorted(set(self.groups), key=lambda g: mix(seed, g))
        if len(files) < 2:
            return super().split(held_out, seed)
        sizes, out, total = Counter(self.groups), set(), 0
        for file in files[:-1]:
            if total >= held_out:
                break
            out.add(file)
            total += sizes[file]
        kept = [i for i, g in enumerate(self.groups) if g not in out]
        return (
            self.subset(kept, f"{self.name} (train)"),
            self.subset([i for i, g in enumerate(self.groups) if g in out], f"{self.name} (test)"),
        )

    def std(self, limit: int = 1024) -> float:
        """Root mean square of x0 − y: what a model in the residual frame has for data."""
        rows = self._spaced(limit)
        return float((self._read(rows) - self._degraded(rows)).double().square().mean().sqrt())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        digest.update(self._degraded(self._spaced(64)).numpy().tobytes())
        return digest.hexdigest()[:16]


def load_pairs(
    source: Sequence[Any] | str | Path, *, size: int | None = None, channels: int | None = None, split: str = "all"
) -> Pairs:
    """The pairs in `source`: (degraded, true) as two folders, two .npy files or two arrays (N, *), or one .npz of both.

    size: cut pictures into windows of size × size, without resizing.   channels: 1 or 3, as in `load`.
    split: "train", "test" (a sixth of the samples, whole files) or "all".

    Raises ValueError, in one line; see the module for what is skipped instead.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size={size!r} must be a whole number of pixels, at least 1")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r} must be 1 (grey) or 3 (colour), or None to keep what is there")
    if split not in ("all", "train", "test"):
        raise ValueError(f"split={split!r} is unknown; one of train, test, all")
    sides = [source] if isinstance(source, str | Path) else list(source)
    if len(sides) not in (1, 2):
        raise ValueError(f"pairs has {len(sides)} entries; give two, LQ and GT, or one .npz of both")
    folders = [Path(side) for side in sides if isinstance(side, str | Path) and Path(side).is_dir()]
    if len(folders) == 2:
        whole = _from_folders(folders[0], folders[1], size, channels)
    elif folders:
        raise ValueError(f"pairs={str(folders[0])!r} is a folder; its partner must be one, too")
    elif size is not None:
        raise ValueError("size= cuts pictures in folders; arrays are used whole")
    else:
        whole = _from_arrays(sides, channels)
    if split == "all":
        return whole
    if len(whole) < 2:
        raise ValueError(f"{whole.name} holds 1 pair, of which none can be held out; give more, or split='all'")
    train, test = whole.split(max(1, round(len(whole) / 6)))
    return train if split == "train" else test  # type: ignore[return-value]


# -- arrays -------------------------------------------------------------------------------------------------
def _from_arrays(sides: Sequence[Any], channels: int | None) -> Pairs:
    if len(sides) == 1:
        if not Path(sides[0]).is_file():
            raise ValueError(f"pairs={str(sides[0])!r} must be two folders or arrays, or one .npz that exists")
        found = _open(Path(sides[0]))
        if not isinstance(found, dict) or len(found) < 2:
            raise ValueError(f"pairs={str(sides[0])!r} holds one array; give an .npz of two, or a second file")
        named = [next((k for k in names if k in found), "") for names in NAMES]
        keys = named if all(named) else list(found)
        if len(keys) != 2:
            raise ValueError(f"{sides[0]} has the arrays {', '.join(found)}; name them {NAMES[0][0]!r} and {NAMES[1][0]!r}")
        sides, names = [found[k] for k in keys], [f"{sides[0]}:{k}" for k in keys]
    else:
        names = [str(side) if isinstance(side, str | Path) else f"array {i}" for i, side in enumerate(sides, 1)]
        sides = [_array(side) for side in sides]
    y, x = (from_array(np.asarray(s), layout="auto", size=None, channels=channels, labels=None, name=n)
            for s, n in zip(sides, names, strict=True))  # fmt: skip
    if len(y) != len(x) or y.shape != x.shape:
        raise ValueError(f"{names[0]} is {len(y)} × {y.shape} and {names[1]} {len(x)} × {x.shape}; pairs need equal shapes")
    low, high = min(x.range[0], y.range[0]), max(x.range[1], y.range[1])
    return Pairs(x._read, y._read, len(x), x.shape, range=(low, high), name=f"{names[0]} → {names[1]}")


def _array(side: Any) -> Any:
    if not isinstance(side, str | Path):
        return side
    path = Path(side)
    if not path.is_file() or path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"pairs={str(side)!r} is neither a folder nor an .npy or .npz file")
    found = _open(path)
    return next(iter(found.values())) if isinstance(found, dict) else found


# -- folders ------------------------------------------------------------------------------------------------
def _from_folders(degraded: Path, true: Path, size: int | None, channels: int | None) -> Pairs:
    kinds = {}
    for folder in (degraded, true):
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        kinds[folder] = {k for k, endings in (("pictures", PICTURES), ("sounds", SOUNDS)) for p in files
                         if p.suffix.lower() in endings}  # fmt: skip
        if len(kinds[folder]) != 1:
            held = " and ".join(sorted(kinds[folder])) or "neither pictures nor sounds"
            raise ValueError(f"pairs: {str(folder)!r} holds {held}; it must hold one kind")
    if kinds[degraded] != kinds[true]:
        raise ValueError(f"pairs: {str(degraded)!r} holds {kinds[degraded].pop()}, {str(true)!r} {kinds[true].pop()}")
    sounds = kinds[true] == {"sounds"}
    files, skipped = _match(degraded, true, SOUNDS if sounds else PICTURES)
    if sounds and (size is not None or channels is not None):
        raise ValueError("size= and channels= are for pictures; these pairs are sounds")
    make = from_sounds(files, skipped) if sounds else from_pictures(files, skipped, size, channels)
    if make is None:
        raise ValueError(
            f"pairs: no usable pair in {str(degraded)!r} and {str(true)!r}, {len(skipped)} skipped; "
            f"the first: {skipped[0][0]}: {skipped[0][1]}"
        )
    read, count, shape, groups, sound = make
    name = f"{degraded} → {true}"
    return Pairs(
        lambda rows: read(rows, 1),
        lambda rows: read(rows, 0),
        count,
        shape,
        groups=groups,
        sound=sound,
        name=name,
        skipped=skipped,
    )


def _match(degraded: Path, true: Path, endings: Sequence[str]) -> tuple[list[File], list[tuple[str, str]]]:
    """Files of the two folders with equal names (the endings may differ), and those without a partner."""
    sides = [
        {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*")) if p.suffix.lower() in endings}
        for folder in (degraded, true)
    ]
    skipped = [
        (str(sides[i][name]), f"no partner in {other}")
        for i, other in ((0, true), (1, degraded))
        for name in sides[i]
        if name not in sides[1 - i]
    ]
    return [File(name, sides[0][name], sides[1][name]) for name in sides[0] if name in sides[1]], skipped
