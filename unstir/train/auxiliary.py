"""Auxiliary losses: what a network is taught besides the data, from what it returns besides its prediction.

A network may return (raw, extras) with extras a dict of named tensors. Sampling drops them; training may hang losses on
them (and on anything else of the batch):

    def context(record): return (record.extras["context"] - neighbours(record.x0)).square().flatten(1).mean(1)

    fit(model, dataset, config, auxiliary={"context": (context, lambda lam: 0.1 * torch.exp(2 * lam).clamp_max(1))})

    L = 1/B Σ_i [ w(λ_i) e₀,i + Σ_k w_k(λ_i) ℓ_k,i ],        ℓ_k = loss_k(record), of shape (B,)

A loss may be an nn.Module with weights of its own, a decoder that only training needs. They are optimised beside the
network's, are in every checkpoint, and never in a model folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .weights import Weight, weight

State = Tensor | dict[str, Tensor]


class Record(NamedTuple):
    """All that is known of a batch where a loss is computed, in float32; what is a `State` is a dict for dict samples.

    x0, noise, x: (B, *), x the stirred state; t, logsnr: (B,) float64; data: D, with gradients; cond: what the network was
    given; targets: the data set's arrays that the network never sees; present: field -> (B,) booleans, false where a sample
    lacks the field; extras: what else the network returned, by name.
    """

    x0: Any
    noise: Any
    x: Any
    t: Tensor
    logsnr: Tensor
    data: Any
    cond: Mapping[str, Any]
    targets: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    extras: dict[str, Any]


class Task(NamedTuple):
    """One part of the training loss: w(λ) ℓ per sample (B,), and the samples (B,) that it applies to, None for all."""

    loss: Tensor
    present: Tensor | None = None


class Auxiliary(NamedTuple):
    """A loss(record) -> ℓ of shape (B,), or (ℓ, (B,) booleans: the samples that it applies to); and its weight.

    weight: a number, a function of λ (the half log-SNR) (B,) -> (B,), or a name of `WEIGHTS` such as "min-snr:1".
    """

    loss: Callable[[Record], Any]
    weight: float | str | Weight = 1.0

    @property
    def described(self) -> float | str:
        """The weight as an identity of a run keeps it; "λ" for a function."""
        return "λ" if callable(self.weight) else self.weight if isinstance(self.weight, str) else float(self.weight)

    def task(self, name: str, record: Record) -> Task:
        """w(λ) ℓ of a batch. ValueError unless ℓ has one value a sample."""
        found = self.loss(record)
        each, present = found if isinstance(found, tuple) else (found, None)
        count = len(record.t)
        for what, value in {"loss": each, "mask": present}.items():
            if value is not None and (not isinstance(value, Tensor) or value.shape != (count,)):
                shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"auxiliary {name!r} returned a {what} of {shape}; one value a sample is needed: ({count},)")
        w = weight(self.weight) if isinstance(self.weight, str) else self.weight
        return Task(each.float() * (w(record.logsnr).to(each.device, torch.float32) if callable(w) else w), present)


def auxiliaries(given: Mapping[str, Any], taken: Sequence[str] = ()) -> dict[str, Auxiliary]:
    """{name: loss or (loss, weight)} as `Auxiliary`; TypeError or ValueError names the one that is wrong."""
    found = {}
    for name, value in given.items():
        made = Auxiliary(*value) if isinstance(value, tuple) else Auxiliary(value)
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            raise ValueError(f"auxiliary {name!r} must be a name of letters, digits and _, and none of {', '.join(taken)}")
        if not callable(made.loss):
            raise TypeError(f"auxiliary {name!r} is {type(made.loss).__name__}; give loss(record) -> (B,), or (loss, weight)")
        if isinstance(made.weight, str):
            weight(made.weight)
        elif not callable(made.weight) and not float(made.weight) >= 0:
            raise ValueError(f"auxiliary {name!r} has the weight {made.weight}; it must be at least 0")
        found[name] = made
    return found


def named(extras: Sequence[Any]) -> dict[str, Any]:
    """The further outputs of a network by name: its dicts joined, anything else under its place, "1", "2", …; float32."""
    found: dict[str, Any] = {}
    for place, extra in enumerate(extras, 1):
        found |= dict(extra) if isinstance(extra, Mapping) else {str(place): extra}
    return {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in found.items()}
