"""Samples that are dicts of named fields: a picture and its mask, its label code, a vector … generated together."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset


class Fields(Dataset):
    """N samples, each a dict of fields of fixed shapes; `shape` is a dict, `batch` gives (dict of (B, *), labels or None).

    fields: name -> (N, *) floating-point array. A model adds noise to all of them alike, so bring them to one scale.
    present: name -> (N,) booleans, false where a sample lacks the field (its values are ignored, and 0 is read instead):
        its loss is left out there. A field without an entry is there everywhere.
    labels, classes, captions, name, skipped: as in `Dataset`; named arrays by `beside`.

    Raises ValueError, in one line, for arrays of different lengths, values that are not finite, a field that every sample
    lacks, and the name "sample", which networks give to their output.
    """

    def __init__(
        self, fields: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None, name: str = "fields", **about: Any
    ) -> None:
        if not fields:
            raise ValueError("fields is empty; give at least one array")
        count = len(next(iter(fields.values())))
        given = dict(present or {})
        for field, mask in given.items():
            if field not in fields:
                raise ValueError(f"present has {field!r}; the fields are {', '.join(fields)}")
            if mask.shape != (count,) or mask.dtype != torch.bool:
                raise ValueError(f"present[{field!r}] has shape {tuple(mask.shape)}, {mask.dtype}; give ({count},) booleans")
            if not bool(mask.any()):
                raise ValueError(f"every sample lacks the field {field!r}; leave it out")
        arrays = {}
        for field, array in fields.items():
            if not field.isidentifier() or field == "sample":
                raise ValueError(f"field {field!r} must have a name of letters, digits and _, other than 'sample'")
            if not array.is_floating_point() or array.ndim < 2 or len(array) != count:
                raise ValueError(
                    f"field {field!r} has shape {tuple(array.shape)}, {array.dtype}; give ({count}, *) floating point"
                )
            if field in given:
                array = torch.where(given[field].reshape(-1, *[1] * (array.ndim - 1)), array, 0.0)
            if not bool(torch.isfinite(array).all()):
                raise ValueError(f"field {field!r} contains NaN or infinite values")
            arrays[field] = array.float()
        low = min(float(a.min()) for a in arrays.values())
        high = max(float(a.max()) for a in arrays.values())
        about = {"range": (low, high)} | about
        super().__init__(self._rows, count, (), name=name, **about)
        self.shape = {field: tuple(array.shape[1:]) for field, array in arrays.items()}
        self._arrays, self._present = arrays, given

    def _rows(self, rows: Sequence[int]) -> Any:
        return {field: array[list(rows)] for field, array in self._arrays.items()}

    def present(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """{field: (B,) booleans} of the fields that some sample lacks."""
        return {field: mask[list(rows)] for field, mask in self._present.items()}

    def subset(self, rows: Sequence[int], name: str | None = None) -> Fields:
        rows = list(rows)
        part = copy.copy(self)
        part._arrays, part._present = self._rows(rows), self.present(rows)  # where all may lack a field
        part._read, part._count, part.name = part._rows, len(rows), name or self.name
        part.labels = None if self.labels is None else self.labels[rows]
        part.captions = None if self.captions is None else tuple(self.captions[i] for i in rows)
        return self._keep_beside(part, rows)

    def std(self, limit: int = 1024) -> float:
        """Root mean square over the fields of their standard deviations, where they are there."""
        rows = self._spaced(limit)
        found = []
        for field, array in self._arrays.items():
            kept = [i for i in rows if field not in self._present or bool(self._present[field][i])] or rows
            found.append(float(array[kept].double().var()))
        return math.sqrt(sum(found) / len(found))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((len(self), self.shape, self.classes)).encode())
        rows = self._spaced(64)
        for arrays in (self._arrays, self._present, {} if self.labels is None else {"labels": self.labels}):
            for array in arrays.values():
                digest.update(array[rows].contiguous().numpy().tobytes())
        for name, read in (self._conditions | self._targets).items():
            digest.update(name.encode() + read(rows).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
