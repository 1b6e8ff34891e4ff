"""The batch of images n … n + B − 1, all of it a function of (seed, n): samples, noise, levels, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import Buckets, Dataset, Fields, Pairs, parts_of
from ..denoiser import Denoiser
from ..denoiser.parts import tree
from . import augment, order
from .config import TrainConfig
from .levels import stratified
from .objective import Objective, drop
from .parallel import World


class Batch(NamedTuple):
    """What the loss of some images is a function of, besides the weights; see `Objective.loss` for the entries."""

    x0: Any
    noise: Any
    t: Tensor
    cond: dict[str, Tensor]
    targets: dict[str, Tensor]
    present: dict[str, Tensor]
    twice: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda value: value.to(device))

    def parts(self, count: int) -> Iterator[Batch]:
        """`count` equal parts, in order."""
        size = len(self.t) // count
        for i in range(0, len(self.t), size):
            yield self._each(lambda value, i=i: value[i : i + size])

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        mapped: list[Any] = [None if value is None else tree(function, value) for value in self]
        return Batch(*mapped)


class Conditions:
    """What the network of a model is given beside the state: the labels of a data set under the first name in
    model.meta["null"] that no named condition has, and the named conditions (`Dataset.beside`).

    ValueError if data and model do not fit each other.
    """

    def __init__(self, model: Denoiser, dataset: Dataset, dropout: float | Mapping[str, float] = 0.0) -> None:
        self.dataset, self.null = dataset, dict(model.meta.get("null", {}))
        named = dataset.condition_names
        free = [name for name in self.null if name not in named and name != augment.KEYWORD]
        self.label = free[0] if free and dataset.labels is not None else None
        classes = model.meta.get("classes", [])
        if self.label and classes and len(dataset.classes) != len(classes):
            raise ValueError(f"data has {len(dataset.classes)} classes; the model was made for {len(classes)}")
        self.names = (*([self.label] if self.label else []), *named)
        self.shares = dropout if isinstance(dropout, Mapping) else None  # each on its own; else all together
        self.share = 0.0 if isinstance(dropout, Mapping) else dropout
        for name, share in (self.shares or {}).items():
            if name not in self.names:
                raise ValueError(f"cond_dropout names {name!r}; the conditions are {', '.join(self.names) or 'none'}")
            if share and name not in self.null:
                raise ValueError(
                    f'cond_dropout={share} of {name!r} needs its null: Denoiser(…, meta={{"null": {{"{name}": …}}}})'
                )

    def at(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The conditions of some rows."""
        labels = {self.label: self.dataset.labels[list(rows)]} if self.label and self.dataset.labels is not None else {}
        return labels | self.dataset.conditions(rows)

    def dropped(self, cond: dict[str, Tensor], seed: int, images: range) -> dict[str, Tensor]:
        """The conditions with the null in place of those that these images lose; one without a null is never lost."""
        if self.shares is None:
            lost = order.dropped(seed, images, self.share)
            return {k: drop({k: v}, self.null, lost)[k] if k in self.null else v for k, v in cond.items()}
        lost = {name: order.dropped(seed, images, share, name) for name, share in self.shares.items()}
        return {k: drop({k: v}, self.null, lost[k])[k] if k in lost and k in self.null else v for k, v in cond.items()}


def chosen(source: Dataset | Buckets, seed: int, images: range, part: slice) -> tuple[int, list[int]]:
    """(which bucket, its rows) that a part of a batch sees; bucket 0 of a data set of one shape."""
    if isinstance(source, Buckets):
        bucket, rows = source.rows(seed, images.start // len(images), len(images))
        return bucket, rows[part]
    return 0, order.rows(len(source), seed, images[part])


def drawer(
    model: Denoiser, source: Dataset | Buckets, objective: Objective, config: TrainConfig, world: World
) -> Callable[[int], Batch]:
    """n -> this process's part of the batch of images n … n + B − 1, all of one shape."""
    parts = parts_of(source)
    their_conditions = [Conditions(model, part, objective.cond_dropout) for part in parts]

    def draw(n: int) -> Batch:
        images, seed = range(n, n + config.batch), config.seed
        part = world.part(images)
        own = images[part]
        bucket, rows = chosen(source, seed, images, slice(None) if config.pairing != "none" else part)
        dataset, conditions = parts[bucket], their_conditions[bucket]
        x0: Any = dataset.batch(rows)[0]
        noise = order.noise(seed, images if config.pairing != "none" else own, dataset.shape, model.process)
        if config.pairing != "none":
            # A pairing is of the whole batch, whoever computes which part of it.
            noise = paired(x0, noise)
            x0, noise, rows = x0[part], noise[part], rows[part]
        mirrored = order.flipped(seed, own) if config.flip else None
        if mirrored is not None:
            x0 = tree(lambda u: flipped(u, mirrored), x0)
        t = objective.times(model, stratified(config.batch, order.unit(seed, n)))[part]
        cond = conditions.dropped(conditions.at(rows), seed, own)
        if config.augment:
            x0, cond[augment.KEYWORD] = augment.moved(x0, order.augmenting(seed, own, augment.NUMBERS), config.augment)
        if isinstance(dataset, Pairs):
            y = dataset.anchors(rows)
            cond["anchor"] = y if mirrored is None else flipped(y, mirrored)
        present = dataset.present(rows) if isinstance(dataset, Fields) else {}
        again = order.twice(seed, own, config.self_conditioning) if config.self_conditioning else None
        return Batch(x0, noise, t, cond, dataset.targets(rows), present, again)

    return draw


def flipped(x: Tensor, mirrored: Tensor) -> Tensor:
    """The pictures (B, C, H, W) that are to be mirrored, mirrored; what has fewer axes than a picture stays."""
    return torch.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x) if x.ndim > 3 else x


def paired(x0: Tensor, noise: Tensor) -> Tensor:
    """The noises in the order that minimises Σ ‖x0_i − z_i‖² over the batch; the same order is the target's.

    (Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, 2024.)
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x0.flatten(1).double(), noise.flatten(1).double()) ** 2
    return noise[torch.as_tensor(linear_sum_assignment(cost.numpy())[1])]


@contextmanager
def ahead(draw: Callable[[int], Batch], config: TrainConfig) -> Iterator[Callable[[int], Batch]]:
    """`draw`, with the next batches made by `config.workers` threads while the network works; 0: made when asked for.

    A batch is a function of its number, so nothing depends on the threads.
    """
    if not config.workers:
        yield draw
        return
    made: dict[int, Future[Batch]] = {}
    last = config.steps * config.batch
    with ThreadPoolExecutor(config.workers, "unstir-data") as pool:

        def take(n: int) -> Batch:
            for later in range(n, min(last, n + (config.workers + 1) * config.batch), config.batch):
                if later not in made:
                    made[later] = pool.submit(draw, later)
            return made.pop(n).result()

        try:
            yield take
        finally:
            for future in made.values():
                future.cancel()
