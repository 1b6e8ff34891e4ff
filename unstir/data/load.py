"""`load`: from a name, a path or an array to a `Dataset`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import from_array, from_file, from_zarr
from .dataset import Dataset
from .images import PICTURES, from_folder
from .rows import from_iterable, from_table, is_table
from .tar import from_tars

ARRAYS = (".npy", ".npz")
SPLITS = ("train", "test", "all")
LAYOUTS = ("auto", "raw", "chw", "hwc")


def load(
    source: Any,
    *,
    size: int | None = None,
    channels: int | None = None,
    labels: Any = "auto",
    split: str = "all",
    layout: str = "auto",
) -> Dataset:
    """The data set behind a bundled name, a path, an array, a table of the library `datasets`, or an iterable.

    source: "digits"; a folder of pictures (captions in .txt files beside them), or of WebDataset shards (.tar); one shard;
        an .npy, .npz or .zarr array; a NumPy array or tensor; a `datasets.Dataset` with a column of pictures; an iterable
        of x, (x, label) or {"x": …, "label": …}, which is read to its end.
    size: pictures are cropped to a centred square and resized to size × size; needed when their sizes differ.
    channels: 1 (grey) or 3 (colour) for pictures; by default grey if all of them are.
    labels: "auto" takes what the source has: the bundled labels; the subfolders of a folder, or
        its labels.csv (columns file, label); the array y or labels of an .npz. "none" takes
        nothing. A path names a CSV (folders) or an .npy (arrays); an array gives the labels.
    split: "train", "test" (a sixth, at least 1; the same for ever) or "all".
    layout: how arrays are read. "auto": uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) are pictures
        and map to [−1, 1]; floats keep their values, with the same rules for the axes; any other
        number of axes is (N, *). "chw" and "hwc" say where the channels are, "raw" changes no axis.

    Values are float32, pictures in [−1, 1] with shape (C, H, W). Nothing is ever unpickled. Raises
    ValueError, in one line, for an unknown name, a missing path, an empty or wholly unreadable
    folder, NaN, mixed sizes, wrong labels; single unreadable files are listed in `.skipped`.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size={size!r} must be a whole number of pixels, at least 1")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r} must be 1 (grey) or 3 (colour), or None to keep what is there")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; one of {', '.join(SPLITS)}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; one of {', '.join(LAYOUTS)}")
    options: dict[str, Any] = {"size": size, "channels": channels, "labels": labels}
    if isinstance(source, np.ndarray | Tensor):
        whole = from_array(np.asarray(source), layout=layout, **options)
    elif isinstance(source, str) and source in BUNDLED:
        whole = BUNDLED[source](**options)
    elif isinstance(source, str | Path):
        whole = _from_path(Path(source), str(source), layout, options)
    elif is_table(source):
        whole = from_table(source, **options)
    elif isinstance(source, Iterable):
        whole = from_iterable(source, layout=layout, **options)
    else:
        raise TypeError(f"source is {type(source).__name__}; give a name, a path, an array, a table or an iterable")
    if split == "all":
        return whole
    train, test = whole.split(max(1, round(len(whole) * 297 / 1797)))  # 1500 + 297 of the digits
    return train if split == "train" else test


def _from_path(path: Path, given: str, layout: str, options: dict[str, Any]) -> Dataset:
    if path.suffix.lower() == ".zarr" and path.is_dir():
        return from_zarr(path, layout=layout, **options)
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        loose = shards and any(p.suffix.lower() in PICTURES for p in path.rglob("*"))
        if loose:
            raise ValueError(f"source={given!r} holds both .tar shards and pictures; keep them in folders of their own")
        return from_tars(shards, **options) if shards else from_folder(path, **options)
    if path.is_file():
        if path.suffix.lower() == ".tar":
            return from_tars([path], **options)
        if path.suffix.lower() not in ARRAYS:
            raise ValueError(
                f"source={given!r} is a file of unknown kind {path.suffix!r}; "
                "give a folder of pictures, an .npy, .npz or .zarr array, or a .tar of pictures"
            )
        return from_file(path, layout=layout, **options)
    raise ValueError(f"source={given!r} is neither an existing path nor a bundled name; bundled: {', '.join(BUNDLED)}")


def _digits(size: int | None, channels: int | None, labels: Any) -> Dataset:
    """Handwritten digits of the UCI repository as scikit-learn ships them: 1797 × 8 × 8, x = pixel/8 − 1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError('source="digits" needs scikit-learn, which carries the data: pip install "unstir[cli]"') from None
    bunch: Any = load_digits()
    pixels = np.asarray(bunch.images, dtype=np.float32)[:, None] / 8 - 1
    target = torch.as_tensor(bunch.target) if isinstance(labels, str) and labels == "auto" else labels
    return from_array(pixels, layout="chw", size=size, channels=channels, labels=target, name="digits", range=(-1.0, 1.0))


BUNDLED = {"digits": _digits}
