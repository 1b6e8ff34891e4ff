"""Latents on disk: a data set is encoded once and then read as quickly as numbers are.

What could be frozen by that is not. Of every picture the law's mean *and* standard deviation are kept, so that ℓ is drawn anew;
and its mirror image is encoded as a second copy, for an encoder does not commute with mirroring, and a coin thrown when
the cache is filled would show half of the pictures mirrored for ever. Row r of the data set is

    draw  r div (c N),    copy  (r div N) mod c,    picture  r mod N,        z = m + s ζ,  ζ a function of r,

N pictures, c = 2 copies: a pure function of r, so that training resumes bit for bit. Random crops cannot be cached.

    folder/<key>/   mean.npy  std.npy   (c, N, d, h, w), memory-mapped       cache.json

The key is a hash of all values of all pictures (so of files and size) and of the codec's weights, shift and scale: another
codec never meets these latents. To know the key the pictures are read, but not encoded, once at every start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import atomic_folder, settle, write_json
from .._random import draw as normal
from .._random import mix
from ..data import Dataset
from .codec import Codec
from .folder import fingerprint

DRAWS = 8  # of a law, before they repeat
_STREAM = 0x1A7E47  # apart from the seeds of training


class Cached(Dataset):
    """The latents of N pictures as a data set of c·N·draws rows; see the module. `cache` makes one.

    picture: row -> number of its picture.   pictures: one line about the data that was encoded.
    `range` is that of the pictures which decoded samples are.
    """

    def __init__(self, folder: Path, source: Dataset, draws: int) -> None:
        mean, std = (np.load(folder / name, mmap_mode="r") for name in ("mean.npy", "std.npy"))
        copies, pictures = mean.shape[:2]
        if not bool(np.any(std[:, 0])):  # no law: one draw says it all
            draws = 1
        self.folder, self.copies, self.draws, self.pictures = folder, copies, draws, source.describe()
        self.picture = np.tile(np.arange(pictures), copies * draws)

        def read(rows: Sequence[int]) -> Tensor:
            at = np.asarray(list(rows))
            where = (at // pictures % copies, at % pictures)
            m, s = (torch.from_numpy(np.ascontiguousarray(v[where])) for v in (mean, std))
            return m + s * noise(rows, mean.shape[2:])

        super().__init__(
            read,
            copies * pictures * draws,
            mean.shape[2:],
            labels=None if source.labels is None else source.labels.repeat(copies * draws),
            classes=source.classes,
            captions=None if source.captions is None else source.captions * (copies * draws),
            range=source.range,
            name=f"latents of {source.name}",
            skipped=source.skipped,
        )
        source._keep_beside(self, self.picture)  # type: ignore[arg-type]

    def split(self, held_out: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(the rest, all rows of `held_out` pictures): no picture is on both sides."""
        pictures = len(self.picture) // (self.copies * self.draws)
        if not 0 < held_out < pictures:
            raise ValueError(f"held_out={held_out} must be between 1 and {pictures - 1} for {pictures} pictures")
        out = np.isin(self.picture, sorted(range(pictures), key=lambda i: mix(seed, i))[:held_out])
        parts = (np.flatnonzero(~out), "train"), (np.flatnonzero(out), "test")
        kept, apart = (self.subset(rows.tolist(), f"{self.name} ({name})") for rows, name in parts)
        return kept, apart

    def describe(self) -> str:
        return f"latents {self.shape} of {self.pictures}" + (", and of their mirror images" if self.copies == 2 else "")


def noise(rows: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """ζ of the rows of a cache, (B, *shape)."""
    return normal([mix(_STREAM, int(r)) for r in rows], shape, 0)


def cache(
    dataset: Dataset,
    codec: Codec,
    folder: str | Path,
    *,
    flips: bool = True,
    draws: int = DRAWS,
    batch: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> Cached:
    """The latents of a data set, from `folder` if they are there, else encoded now, `batch` pictures at a time.

    flips: encode every picture's mirror image, too.   draws: how many of each law the data set has rows for.
    progress: called with the number of pictures encoded so far.

    Raises ValueError for pictures that the codec does not take, and for conditions with a picture's axes beside flips.
    """
    if draws < 1 or batch < 1:
        raise ValueError(f"draws={draws} and batch={batch} must be at least 1")
    spatial = [name for name, value in dataset.conditions([0]).items() if value.ndim > 3]
    if flips and spatial:
        raise ValueError(
            f"flips=True would mirror the pictures, but not their conditions {', '.join(spatial)}; pass flips=False"
        )
    digest = hashlib.sha256(f"{fingerprint(codec)} {len(dataset)} {dataset.shape} {flips}".encode())
    for rows in _parts(len(dataset), batch):
        digest.update(dataset.batch(rows)[0].contiguous().numpy().tobytes())
    key = digest.hexdigest()[:16]
    path = Path(folder) / key
    settle(path)
    if not path.is_dir():
        _fill(dataset, codec, path, flips, batch, progress)
    return Cached(path, dataset, draws)


@torch.no_grad()
def _fill(dataset: Dataset, codec: Codec, path: Path, flips: bool, batch: int, progress: Callable[[int], Any] | None) -> None:
    device = codec.scale.device
    with atomic_folder(path) as new:
        files: list[Any] = []
        for rows in _parts(len(dataset), batch):
            x = dataset.batch(rows)[0].to(device)
            for copy, seen in enumerate((x, x.flip(-1)) if flips else (x,)):
                codec.check(seen)
                mean, std = codec.posterior(seen)
                values = codec.normalise(mean), std * codec.scale.reshape(1, -1, 1, 1)
                if not files:
                    shape = (1 + flips, len(dataset), *mean.shape[1:])
                    files = [_array(new / name, shape) for name in ("mean.npy", "std.npy")]
                for file, value in zip(files, values, strict=True):
                    file[copy, rows.start : rows.stop] = value.float().cpu().numpy()
            if progress is not None:
                progress(rows.stop)
        for file in files:
            file.flush()
        write_json(new / "cache.json", {"codec": fingerprint(codec), "pictures": dataset.describe(), "flips": flips})


def _array(file: Path, shape: tuple[int, ...]) -> Any:
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)


def _parts(count: int, size: int) -> list[range]:
    return [range(i, min(count, i + size)) for i in range(0, count, size)]
