"""Data that others hold: data sets of the library `datasets`, and plain iterables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .arrays import from_array
from .dataset import Dataset, encode_labels
from .images import Picture, gather, require_pillow

LARGEST = 1 << 30  # bytes that an iterable may hold: it is kept whole, for only so can it be shuffled and resumed
_CAPTIONS = ("text", "caption", "captions")
_LABELS = ("label", "labels", "y", "class")
_VALUES = ("x", "image", "img", "pixel_values", "data")


def is_table(source: Any) -> bool:
    """Is it a data set of `datasets` (or anything with its column_names and rows by number)?"""
    return hasattr(source, "column_names") and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def from_table(table: Any, *, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """A data set of `datasets`: its first column of pictures, its label column, its captions; rows are decoded when wanted.

    Raises ValueError without a column of pictures.
    """
    require_pillow()
    first, columns = table[0], list(table.column_names)
    column = next((c for c in columns if hasattr(first[c], "convert") and hasattr(first[c], "mode")), None)
    if column is None:
        kinds = ", ".join(f"{c} ({type(first[c]).__name__})" for c in columns)
        raise ValueError(f"source has no column of pictures among {kinds}; cast one to datasets.Image, or pass an array")
    found = gather(
        [Picture(f"row {i}", lambda i=i: table[i][column]) for i in range(len(table))], size, channels, f"column {column!r}"
    )
    target, classes = None, ()
    wanted = next((c for c in _LABELS if c in columns), None)
    if wanted is not None and isinstance(labels, str) and labels == "auto":
        values = table[wanted]
        target, classes = encode_labels([values[i] for i in found.kept])
        names = getattr(getattr(table, "features", {}).get(wanted), "names", None)
        classes = tuple(names[int(c)] for c in classes) if names else classes
    caption = next((c for c in _CAPTIONS if c in columns), None)
    texts = table[caption] if caption else None
    return Dataset(
        found.read,
        len(found.kept),
        found.shape,
        labels=target,
        classes=classes,
        captions=[str(texts[i]) for i in found.kept] if texts is not None else None,
        name=f"table of {len(table)} rows",
        skipped=found.skipped,
    )


def from_iterable(source: Iterable[Any], *, layout: str, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """An iterable of samples x, of (x, label), or of {"x": …, "label": …}; read to its end, and kept in memory.

    Raises ValueError when it is empty, when shapes differ, or beyond `LARGEST` bytes (an endless one ends here).
    """
    values: list[np.ndarray] = []
    found: list[Any] = []
    total = 0
    for i, item in enumerate(source):
        x, label = _sample(item, i)
        array = np.asarray(x)
        if values and array.shape != values[0].shape:
            raise ValueError(f"sample {i} of the iterable has shape {array.shape}; the first has {values[0].shape}")
        values.append(array)
        found.append(label)
        total += array.nbytes
        if total > LARGEST:
            raise ValueError(f"the iterable holds more than {LARGEST >> 30} GiB; write it to an .npy file and pass its path")
    if not values:
        raise ValueError("the iterable is empty; give at least one sample")
    known = isinstance(labels, str) and labels == "auto" and all(label is not None for label in found)
    return from_array(
        np.stack(values), layout=layout, size=size, channels=channels, labels=found if known else labels, name="iterable"
    )


def _sample(item: Any, number: int) -> tuple[Any, Any]:
    if isinstance(item, dict):
        key = next((k for k in _VALUES if k in item), None)
        if key is None:
            raise ValueError(f"sample {number} of the iterable has the keys {', '.join(item)}; name the values {_VALUES[0]!r}")
        return item[key], next((item[k] for k in _LABELS if k in item), None)
    if isinstance(item, tuple) and len(item) == 2:
        return item
    return item, None
