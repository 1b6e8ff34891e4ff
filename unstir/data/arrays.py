"""Arrays in memory or in .npy/.npz files (memory-mapped, never unpickled)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, encode_labels

VALUES = ("x", "images", "data", "arr_0")
LABELS = ("y", "labels", "label", "arr_1")
_CHANNELS = (1, 3, 4)
_CHUNK = 4096  # rows examined at a time, so that a memory-mapped file streams


def from_file(path: Path, *, layout: str, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """The data set in an .npy or .npz file; see `load`."""
    found = _open(path)
    found_labels = None
    if isinstance(found, dict):
        key = next((k for k in VALUES if k in found), None)
        if key is None:
            raise ValueError(f"{path} has the arrays {', '.join(found) or '(none)'}; name the data one of {', '.join(VALUES)}")
        found_labels = next((found[k] for k in LABELS if k in found and k != key), None)
        values = found[key]
    else:
        values = found
    if isinstance(labels, str | Path) and labels not in ("auto", "none"):
        labels = open_array(Path(labels))
    elif isinstance(labels, str) and labels == "auto":
        labels = found_labels
    return from_array(values, layout=layout, size=size, channels=channels, labels=labels, name=str(path))


def open_array(path: Path) -> np.ndarray:
    """The array of an .npy, or the first of an .npz."""
    loaded = _open(path)
    return next(iter(loaded.values())) if isinstance(loaded, dict) else loaded


class _Chunked:
    """A zarr array with NumPy's rules for rows."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.array.oindex[rows] if isinstance(rows, np.ndarray) else self.array[rows]


def from_zarr(path: Path, *, layout: str, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """The data set in a zarr array, or in the arrays of a group named as those of an .npz; chunks are read when wanted."""
    try:
        import zarr
    except ImportError:
        raise ImportError('reading .zarr needs the library zarr: pip install "unstir[data]"') from None
    try:
        found: Any = zarr.open(str(path), mode="r")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as zarr: {' '.join(str(error).split())}") from None
    names = [] if hasattr(found, "shape") else list(found.array_keys())
    key = next((k for k in VALUES if k in names), None)
    if key is None and not hasattr(found, "shape"):
        raise ValueError(f"{path} has the arrays {', '.join(names) or '(none)'}; name the data one of {', '.join(VALUES)}")
    own = next((k for k in LABELS if k in names and k != key), None)
    if isinstance(labels, str | Path) and labels not in ("auto", "none"):
        labels = open_array(Path(labels))
    elif isinstance(labels, str) and labels == "auto" and own is not None:
        labels = np.asarray(found[own])
    values: Any = _Chunked(found if key is None else found[key])
    return from_array(values, layout=layout, size=size, channels=channels, labels=labels, name=str(path))


def _open(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # numpy raises ValueError, EOFError, BadZipFile, … for corrupt files
        text = " ".join(str(error).split())
        cause = "it holds Python objects (a pickle), which are never loaded" if "pickle" in text.lower() else text
        raise ValueError(f"{path} cannot be read as an array: {cause}") from None


def from_array(
    values: np.ndarray,
    *,
    layout: str,
    size: int | None,
    channels: int | None,
    labels: Any,
    name: str = "array",
    range: tuple[float, float] | None = None,
) -> Dataset:
    """The data set in an array (N, *), uint8 (pictures, mapped to [−1, 1]) or numbers (kept)."""
    if values.ndim < 2:
        raise ValueError(f"{name} has shape {values.shape}; give (N, *), the samples along the first axis")
    if 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}: there is nothing in it")
    if values.dtype.kind not in "fiub" or (values.dtype.itemsize == 1 and values.dtype.kind == "i"):
        raise ValueError(f"{name} has dtype {values.dtype}; give uint8 pictures or real numbers")
    picture = values.dtype == np.uint8
    measured = _measure(values, name)
    axes = _axes(values.shape, layout, channels)
    if layout == "auto" and axes != "raw" and not picture:
        _check_range(values, axes, measured, name)
    convert = _converter(axes, size, channels, name, values.shape)
    rows = convert(_float(values[:1], picture))

    def read(wanted: Sequence[int]) -> Tensor:
        return convert(_float(values[np.asarray(wanted, dtype=np.int64)], picture))

    target, classes = _labels(labels, len(values), name)
    given = range or ((-1.0, 1.0) if picture else measured)
    return Dataset(read, len(values), rows.shape[1:], labels=target, classes=classes, range=given, name=name)


def _float(values: np.ndarray, picture: bool) -> Tensor:
    x = torch.from_numpy(np.array(values, dtype=np.float32))
    return x / 127.5 - 1 if picture else x


def _measure(values: np.ndarray, name: str) -> tuple[float, float]:
    """(min, max); ValueError where a value is not finite."""
    low, high = np.inf, -np.inf
    for start in np.arange(0, len(values), _CHUNK):
        part = np.asarray(values[start : start + _CHUNK])
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            row = start + int(np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(1))[0])
            raise ValueError(f"{name} holds NaN or infinite values, the first in sample {row}; remove or repair them")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    return low, high


def _check_range(values: np.ndarray, axes: str, measured: tuple[float, float], name: str) -> None:
    """ValueError for pictures of whole numbers from 0 to some hundreds or thousands: bytes or 16 bits, in another type."""
    low, high = measured
    first, sides = np.asarray(values[:16], dtype=np.float64), values.shape[1:3] if axes == "hwc" else values.shape[-2:]
    whole = low >= 0 and high > 64 and min(sides) >= 4 and bool((first == np.rint(first)).all())
    if whole and high <= 65535:
        bits, top, remedy = (8, 255, "save it as uint8, or as") if high <= 255 else (16, 65535, "save it as")
        raise ValueError(
            f"{name} has dtype {values.dtype} and whole numbers from {low:g} to {high:g}, like pictures of {bits} bits; "
            f"{remedy} floats x/{top}·2 − 1 in [−1, 1] (layout='raw' takes the numbers as they are)"
        )


def _axes(shape: tuple[int, ...], layout: str, channels: int | None) -> str:
    """ "raw", "chw" or "hwc": what the axes of samples of this shape mean."""
    if layout in ("chw", "hwc") and len(shape) not in (3, 4):
        raise ValueError(f"layout={layout!r} needs 3 or 4 axes, samples first; the array has shape {shape}")
    if layout != "auto":
        return layout
    if len(shape) not in (3, 4):
        return "raw"
    first, last = (shape[1], shape[-1]) if len(shape) == 4 else (1, 0)
    likely = (channels,) if channels in (first, last) else _CHANNELS
    return "hwc" if last in likely and first not in likely else "chw"


def _converter(axes: str, size: int | None, channels: int | None, name: str, shape: tuple[int, ...]) -> Any:
    if axes == "raw":
        if size is not None or channels is not None:
            raise ValueError(f"size= and channels= are for pictures; {name} has shape {shape}, read as raw numbers")
        return lambda x: x

    def convert(x: Tensor) -> Tensor:
        x = x[:, None] if x.ndim == 3 else x.movedim(-1, 1) if axes == "hwc" else x
        if channels is not None and x.shape[1] != channels:
            if x.shape[1] not in _CHANNELS:
                raise ValueError(f"{name} has {x.shape[1]} channels; only 1, 3 or 4 can be turned into channels={channels}")
            x = x[:, :3]
            x = x.mean(1, keepdim=True) if channels == 1 else x.expand(-1, 3, -1, -1)
        if size is not None and x.shape[-2:] != (size, size):
            side = min(x.shape[-2:])
            top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
            x = x[..., top : top + side, left : left + side]
            x = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        return x.contiguous()

    return convert


def _labels(labels: Any, count: int, name: str) -> tuple[Tensor | None, tuple[str, ...]]:
    if labels is None or (isinstance(labels, str) and labels in ("auto", "none")):
        return None, ()
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"labels of {name} have shape {array.shape}; give one per sample, ({count},)")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise ValueError(f"labels of {name} must be whole numbers or names; got dtype {array.dtype} with fractions or NaN")
    if array.dtype.kind not in "fiubUS":
        raise ValueError(f"labels of {name} must be whole numbers or names; got dtype {array.dtype}")
    values = array.astype(np.int64).tolist() if array.dtype.kind in "fiub" else [str(v) for v in array]
    return encode_labels(values)
