"""Several modalities of one object in one state: what is stirred is the sum of their codes.

A picture, its label, its mask or a representation of it are each encoded in the shape of the state, e_i = E_i(x^(i)) of unit
variance, and

    x0 = Σ_i c_i e_i,   Σ c_i² = 1,        x_t = α x0 + σ z

is an ordinary process: all plans, guidance and steering serve it as they are. (The published chain adds w_t^(i) e_i at every
step t; with w_1 = √ā_1 c and none later its marginal is the line above. Sums that do not have unit variance shift the noise
levels that the network was made for.) One network with a head for every modality predicts x0 and, beside it, what each
modality is; where some are known, their true codes replace the heads':

    D = Σ_known c_k e_k + Σ_others c_i ê_i,        ê_i = the code that head i expects

which is what the others say of x0 given the state alone: they learn of what is known as the state fills with it.

(Diffusion Models for Multi-Task Generative Modeling, 2024; no code was published.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .denoiser import Denoiser


class Modality(NamedTuple):
    """How values of one kind become codes, and outputs of their head codes and values.

    encode: values (B, …) -> e (B, *shape).   estimate: outputs of the head -> ê (B, *shape), the mean code that they stand for.
    read: outputs of the head -> values.   null: the code (*shape) of a value that is not there: the mean of all.
    """

    encode: Callable[[Tensor], Tensor]
    estimate: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor]
    null: Tensor


def continuous(mean: Tensor, std: float) -> Modality:
    """Pictures, maps or vectors of the state's shape: e = (x − mean)/std; the head outputs e."""
    if not std > 0:
        raise ValueError(f"std={std} must be positive")
    return Modality(
        lambda x: (x - mean.to(x)) / std, lambda out: out, lambda out: mean.to(out) + std * out, torch.zeros_like(mean)
    )


def categorical(codes: Tensor) -> Modality:
    """Labels 0 … K − 1 with fixed codes (K, *shape) of unit mean square; the head outputs K logits, ê = Σ_k softmax_k codes_k.

    Codes are not learned: with nothing to hold them they would shrink to one. See `orthogonal_codes`.
    """
    size = codes.flatten(1).square().mean(1)
    if not bool(((size - 1).abs() < 1e-3).all()):
        raise ValueError(f"codes have mean squares from {float(size.min()):.3g} to {float(size.max()):.3g}; scale each to 1")

    def encode(labels: Tensor) -> Tensor:
        if labels.is_floating_point() or bool(((labels < 0) | (labels >= len(codes))).any()):
            raise ValueError(f"labels must be integers in 0 … {len(codes) - 1}, one for each code")
        return codes.to(labels.device)[labels]

    def estimate(logits: Tensor) -> Tensor:
        return (logits.softmax(1) @ codes.to(logits).flatten(1)).reshape(len(logits), *codes.shape[1:])

    return Modality(encode, estimate, lambda logits: logits.argmax(1), codes.mean(0))


def orthogonal_codes(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """(count, *shape): orthogonal codes of mean square 1. ValueError for more than the shape has dimensions."""
    size = math.prod(shape)
    if count > size:
        raise ValueError(f"count={count} orthogonal codes need a shape of at least as many values; {shape} has {size}")
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, count, generator=g, dtype=torch.float64)).Q
    return (basis.T * math.sqrt(size)).float().reshape(count, *shape)


class Aggregate:
    """x0 = Σ c_i e_i of named modalities.

    coefficients: c_i by name, equal ones by default; scaled to Σ c_i² = 1 unless normalise=False, which warns if they are not.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], coefficients: Mapping[str, float] | None = None, *, normalise: bool = True
    ) -> None:
        if not modalities:
            raise ValueError("modalities is empty; give at least one")
        given = dict.fromkeys(modalities, 1.0) if coefficients is None else {k: float(v) for k, v in coefficients.items()}
        if given.keys() != modalities.keys() or not all(c > 0 for c in given.values()):
            raise ValueError(f"coefficients={given} must be positive, one for each of {', '.join(modalities)}")
        shapes = {name: tuple(m.null.shape) for name, m in modalities.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the codes have different shapes: {shapes}; encode all in the state's")
        norm = math.sqrt(sum(c * c for c in given.values()))
        if not normalise and abs(norm - 1) > 1e-6:
            warnings.warn(
                f"Σ c² = {norm**2:.3g} is not 1: every log-SNR shifts by {math.log(norm):+.2f} against unit variance",
                stacklevel=2,
            )
        self.modalities = dict(modalities)
        self.coefficients = {name: c / norm if normalise else c for name, c in given.items()}
        self.shape = next(iter(shapes.values()))

    def state(self, values: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        """x0 (B, *shape) of values by name; what is missing, or where present[name] (B,) is False, has its null code."""
        self.check(values)
        first = next(iter(values.values()))
        total: Any = 0
        for name, modality in self.modalities.items():
            code = modality.null.to(first.device).expand(len(first), *self.shape)
            if name in values:
                own = modality.encode(values[name])
                there = None if present is None else present.get(name)
                code = own if there is None else torch.where(there.reshape(-1, *[1] * len(self.shape)), own, code.to(own))
            total = total + self.coefficients[name] * code
        return total

    def expected(self, heads: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Tensor:
        """Σ_known c_k e_k + Σ_others c_i ê_i."""
        total: Any = 0
        for name, modality in self.modalities.items():
            code = modality.encode(known[name]) if name in known else modality.estimate(heads[name])
            total = total + self.coefficients[name] * code
        return total

    def read(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values that outputs of the heads stand for, for example `State.aux` at the end of a run."""
        return {name: modality.read(heads[name]) for name, modality in self.modalities.items()}

    def check(self, values: Mapping[str, Any]) -> None:
        """ValueError unless these are values of modalities that exist, equally many."""
        wrong = [name for name in values if name not in self.modalities]
        if wrong or not values:
            raise ValueError(f"unknown modality {', '.join(wrong) or '(none given)'}; there are {', '.join(self.modalities)}")
        if len({len(v) for v in values.values()}) > 1:
            raise ValueError(f"values of different numbers: { {name: len(v) for name, v in values.items()} }")


class Joint(Denoiser):
    """A denoiser of sums whose network returns (raw, {modality: output of its head}), see `nets.MultiHead`.

    A run hands out the heads of its last evaluation:

        state = unstir.sample(model, plan, shape=(16, *model.shape), full=True)
        values = model.aggregate.read(state.aux)                              # {"image": …, "label": …}
        model.known(label=labels)                                             # the denoiser where these labels are known
    """

    def __init__(
        self, network: Callable[..., Any], process: Any, aggregate: Aggregate, predicts: str = "velocity", **options: Any
    ):
        super().__init__(network, process, predicts, shape=aggregate.shape, **options)
        self.aggregate = aggregate
        self._wants_ctx = True  # to hand out the heads

    def heads(self, x: Tensor, t: Any, ctx: Any = None, **cond: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(D, outputs of the heads), which a run is given. ValueError names a head that the network did not return."""
        data, extras = self.outputs(x, t, ctx, **cond)
        found = {name: value for extra in extras for name, value in extra.items()}
        missing = [name for name in self.aggregate.modalities if name not in found]
        if missing:
            raise ValueError(f"the network returned no {', '.join(missing)}: each modality needs a head (nets.MultiHead)")
        if ctx is not None:
            ctx.give(**found)
        return data, found

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Tensor:
        """D(x, t); a run is given what the heads say."""
        return self.heads(x, t, ctx, **cond)[0]

    def known(self, scale: float = 1.0, **values: Tensor) -> Known:
        """The denoiser given some modalities, D = D_u + scale (D_known − D_u); scale 1 is the replacement itself."""
        self.aggregate.check(values)
        return Known(self, values, scale)


class Known(nn.Module):
    """`Joint.known`: values (B or 1, …) of one batch."""

    def __init__(self, model: Joint, values: Mapping[str, Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.model, self.values, self.scale = model, dict(values), scale
        self.process, self.shape = model.process, model.shape

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Tensor:
        data, heads = self.model.heads(x, t, ctx, **cond)
        found = self.model.aggregate.expected(heads, self.values).to(x.dtype)
        return found.expand_as(x) if self.scale == 1 else data + self.scale * (found - data)
