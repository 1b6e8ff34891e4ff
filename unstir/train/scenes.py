"""Measured scenes: observations of signals that nobody has seen, and the visits to them that training is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .._random import _mixed as mixed


class Views(NamedTuple):
    """B visits to scenes: in each a target, K observations at hand and M novel ones, all of one signal.

    target: (B, *observation), phi: (B, *φ); context: (B, K, *observation), phi_context: (B, K, *φ); novel and phi_novel
    likewise with M.
    """

    target: Tensor
    phi: Tensor
    context: Tensor
    phi_context: Tensor
    novel: Tensor
    phi_novel: Tensor


class Visits(Protocol):
    """What `fit_measurements` learns from: `Scenes`, or your own class that measures on the fly or reads files."""

    def __len__(self) -> int: ...

    def views(self, rows: Sequence[int], keys: Sequence[int]) -> Views:
        """A visit to each of the scenes `rows`; which observations play which part is a function of the integer key."""
        ...


class Scenes:
    """Measured scenes in memory: each a list of (observation, φ) of one signal, which is not given.

    context, novel: how many observations of a visit are at hand, and how many are novel; one more is the target. All are
        different ones, drawn at random.
    first: if > 0, contexts are drawn from the first so many observations of a scene, target and novel ones from the others.

    Raises ValueError naming the scene that has too few observations, or one of another shape.
    """

    def __init__(
        self, scenes: Iterable[Sequence[tuple[Tensor, Tensor]]], *, context: int = 1, novel: int = 1, first: int = 0
    ) -> None:
        for name, value, least in (("context", context, 1), ("novel", novel, 0), ("first", first, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")
        if 0 < first < context:
            raise ValueError(f"first={first} observations cannot give context={context}")
        self.context, self.novel, self.first = context, novel, first
        starts = [0]
        seen: list[Tensor] = []
        phis: list[Tensor] = []
        for n, scene in enumerate(scenes):
            needs = (first or context) + 1 + novel
            if len(scene) < needs:
                raise ValueError(
                    f"scene {n} has {len(scene)} observations; context={context}, a target and novel={novel} need {needs}"
                )
            for observation, phi in scene:
                for name, value, like in (("observation", observation, seen), ("φ", phi, phis)):
                    if not isinstance(value, Tensor):
                        raise TypeError(f"scene {n}: its {name} is {type(value).__name__}; give pairs of tensors")
                    if like and value.shape != like[0].shape:
                        raise ValueError(f"scene {n}: its {name} has shape {tuple(value.shape)}; others {tuple(like[0].shape)}")
                seen.append(observation)
                phis.append(phi)
            starts.append(len(seen))
        if not seen:
            raise ValueError("scenes is empty; give lists of (observation, φ)")
        self._seen, self._phis, self._starts = torch.stack(seen), torch.stack(phis), np.array(starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def views(self, rows: Sequence[int], keys: Sequence[int]) -> Views:
        """See `Visits`."""
        k, first = self.context, self.first
        low, high = self._starts[list(rows)], self._starts[[row + 1 for row in rows]]
        if first:
            parts = distinct(keys, np.full(len(low), first), k), first + distinct(keys, high - low - first, 1 + self.novel, k)
        else:
            parts = (distinct(keys, high - low, k + 1 + self.novel),)
        places = torch.from_numpy(low[:, None] + np.concatenate(parts, 1))
        seen, phi = self._seen[places], self._phis[places]  # contexts, target, novel
        return Views(seen[:, k], phi[:, k], seen[:, :k], phi[:, :k], seen[:, k + 1 :], phi[:, k + 1 :])


def distinct(keys: Sequence[int], counts: np.ndarray, k: int, stream: int = 0) -> np.ndarray:
    """(B, k) different places in each row, row b out of 0 … counts[b] − 1, a function of (keys[b], stream).

    The j-th is one of those that are left, counted past the ones that are taken.
    """
    taken = np.empty((len(keys), 0), np.int64)
    for j in range(k):
        place = (np.array(mixed(keys, stream + j), np.uint64) % (counts - j).astype(np.uint64)).astype(np.int64)
        for other in np.sort(taken, 1).T:
            place = place + (place >= other)
        taken = np.column_stack([taken, place])
    return taken
