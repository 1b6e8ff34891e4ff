"""One map-style data set for every source: samples of one shape, optionally with class labels and other named arrays."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._random import mix

Reader = Callable[[Sequence[int]], Tensor]


class Dataset:
    """N samples of one shape, read by number; `dataset[i]` is (x, label or None).

    read: rows -> float32 (B, *shape); it may decode files, or look into memory.
    labels: (N,) integers in [0, K), or None;  classes: the K names.
    captions: a text for every sample, or None.
    range: (low, high) of the values: (−1, 1) for pictures, the measured one for raw numbers.
    skipped: (file, reason) of every input that could not be used.

    `beside` adds named arrays with one row a sample: conditions for the network, and targets that only losses see.
    """

    shape: Any  # a tuple of sizes; of `Fields`, a dict of them

    def __init__(
        self,
        read: Reader,
        count: int,
        shape: Sequence[int],
        *,
        labels: Tensor | None = None,
        classes: Sequence[str] = (),
        captions: Sequence[str] | None = None,
        range: tuple[float, float] = (-1.0, 1.0),
        name: str = "data",
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        if count < 1:
            raise ValueError(f"{name} holds no samples; give at least one")
        if labels is not None and labels.shape != (count,):
            raise ValueError(f"labels has shape {tuple(labels.shape)} for {count} samples; give one integer per sample")
        if labels is not None and not bool(((labels >= 0) & (labels < len(classes))).all()):
            raise ValueError(f"labels must lie in 0 … {len(classes) - 1}, one per class; got up to {int(labels.max())}")
        if captions is not None and len(captions) != count:
            raise ValueError(f"captions has {len(captions)} texts for {count} samples; give one per sample")
        self._read, self._count = read, count
        self.captions = None if captions is None else tuple(captions)
        self.shape, self.labels, self.classes = tuple(shape), labels, tuple(classes) if labels is not None else ()
        self.range, self.name, self.skipped = range, name, tuple(skipped)
        self._conditions: dict[str, Reader] = {}
        self._targets: dict[str, Reader] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)}")
        x, labels = self.batch([index % len(self)])
        return x[0], None if labels is None else int(labels[0])

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """(x, labels) of the given rows: (B, *shape) float32 and (B,) integers, or None."""
        return self._read(rows), None if self.labels is None else self.labels[list(rows)]

    def beside(
        self, *, conditions: Mapping[str, Tensor | Reader] | None = None, targets: Mapping[str, Tensor | Reader] | None = None
    ) -> Any:
        """This data set with named arrays (N, *), or functions rows -> (B, *), beside its samples.

        conditions: keyword of the network -> array. What replaces a condition that is dropped is the model's
            meta["null"][keyword], a number or a nested list of the shape of one row.
        targets: name -> array, which training hands to auxiliary losses and never to the network.

        Raises ValueError for an array without one finite row a sample.
        """
        made = copy.copy(self)
        made._conditions = self._conditions | _readers("conditions", conditions, len(self))
        made._targets = self._targets | _readers("targets", targets, len(self))
        return made

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The keywords of the named conditions, without the labels."""
        return tuple(self._conditions)

    def conditions(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """{keyword: (B, *)}: the named conditions of the given rows."""
        return {name: read(rows) for name, read in self._conditions.items()}

    def targets(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """{name: (B, *)}: what only losses see of the given rows."""
        return {name: read(rows) for name, read in self._targets.items()}

    def all(self) -> Tensor:
        """Every sample in one tensor (N, *shape)."""
        return self._read(range(len(self)))

    def subset(self, rows: Sequence[int], name: str | None = None) -> Dataset:
        """The given rows as a data set of their own."""
        rows = list(rows)
        part = Dataset(
            lambda wanted: self._read([rows[i] for i in wanted]),
            len(rows),
            self.shape,
            labels=None if self.labels is None else self.labels[rows],
            classes=self.classes,
            captions=None if self.captions is None else [self.captions[i] for i in rows],
            range=self.range,
            name=name or self.name,
            skipped=self.skipped,
        )
        return self._keep_beside(part, rows)

    def _keep_beside(self, part: Any, rows: Sequence[int]) -> Any:
        """`part`, the given rows of this data set, with their named arrays."""
        for name in ("_conditions", "_targets"):
            setattr(part, name, {k: _at(read, rows) for k, read in getattr(self, name).items()})
        return part

    def split(self, held_out: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(the rest, `held_out` samples), chosen by a hash of (seed, row): the same split for ever."""
        if not 0 < held_out < len(self):
            raise ValueError(f"held_out={held_out} must be between 1 and {len(self) - 1} for {len(self)} samples")
        order = sorted(range(len(self)), key=lambda i: mix(seed, i))
        return (
            self.subset(sorted(order[held_out:]), f"{self.name} (train)"),
            self.subset(sorted(order[:held_out]), f"{self.name} (test)"),
        )

    def std(self, limit: int = 1024) -> float:
        """Standard deviation of all values of up to `limit` evenly spaced samples: σ_data of "edm" models."""
        return float(self._read(self._spaced(limit)).double().std())

    def fingerprint(self) -> str:
        """A short hash of the size, the labels and 64 evenly spaced samples: is this the same data?"""
        digest = hashlib.sha256(repr((len(self), self.shape, self.classes)).encode())
        digest.update(self._read(self._spaced(64)).numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        if self.captions is not None:
            digest.update("\0".join(self.captions).encode())
        for name, read in (self._conditions | self._targets).items():
            digest.update(name.encode() + read(self._spaced(64)).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """One line: name, size, shape, classes, range, and how many inputs were skipped."""
        low, high = self.range
        parts = [f"{len(self)} × {self.shape}", f"values in [{low:g}, {high:g}]"]
        if self.classes:
            parts.insert(1, f"{len(self.classes)} classes")
        if self.captions is not None:
            parts.append(f"{sum(map(bool, self.captions))} captions")
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped (first: {self.skipped[0][0]}: {self.skipped[0][1]})")
        return f"{self.name}: " + ", ".join(parts)

    def __repr__(self) -> str:
        return f"Dataset({self.describe()})"

    def _spaced(self, limit: int) -> list[int]:
        step = max(1, len(self) / limit)
        return [int(i * step) for i in range(min(limit, len(self)))]


def _readers(what: str, given: Mapping[str, Tensor | Reader] | None, count: int) -> dict[str, Reader]:
    """Every array as a function rows -> (B, *), its first and last rows checked if it is a function already."""
    found: dict[str, Reader] = {}
    for name, array in (given or {}).items():
        if not name.isidentifier():
            raise ValueError(f"{what} has the name {name!r}; it must be a word of letters, digits and _")
        if isinstance(array, Tensor) and (array.ndim < 1 or len(array) != count):
            raise ValueError(f"{what}[{name!r}] has shape {tuple(array.shape)} for {count} samples; give one row per sample")
        if not isinstance(array, Tensor) and not callable(array):
            raise TypeError(f"{what}[{name!r}] is {type(array).__name__}; give a tensor (N, *) or a function rows -> (B, *)")
        read = _at(array, range(count))
        tried = array if isinstance(array, Tensor) else read(sorted({0, count - 1}))
        if tried.is_floating_point() and not bool(torch.isfinite(tried).all()):
            raise ValueError(f"{what}[{name!r}] contains NaN or infinite values")
        found[name] = read
    return found


def _at(source: Tensor | Reader, rows: Sequence[int]) -> Reader:
    """wanted -> what `source` has at rows[wanted]."""
    if isinstance(source, Tensor):
        return lambda wanted: source[[rows[i] for i in wanted]]
    return lambda wanted: source([rows[i] for i in wanted])


def encode_labels(values: Sequence[object]) -> tuple[Tensor, tuple[str, ...]]:
    """(labels, classes) of arbitrary label values: classes sorted, numbered without gaps."""
    kinds = sorted(set(values), key=lambda v: (isinstance(v, str), v))  # numbers by size, names by letter
    number = {kind: i for i, kind in enumerate(kinds)}
    return torch.tensor([number[v] for v in values], dtype=torch.int64), tuple(str(kind) for kind in kinds)
