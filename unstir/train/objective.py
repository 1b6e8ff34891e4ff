"""The training objective: a weight w(λ) and a level density p(λ), for any network and process.

    L = E_{λ ~ p} [ w(λ) ‖D(x_t, t) − x0‖² ]        (mean over the values of a sample)

The network is asked for `raw`, and D = m x_t + n raw with the same m, n for the target at D = x0.
So D − x0 = n (raw − target), and the loss is computed as w n² ‖raw − target‖²: a product of moderate
numbers where x0-units alone would be 0 · ∞, at σ → 0 and at α → 0.

A dict sample has such an error for every field, and a network that returns more than its prediction may be taught more
(`auxiliary`); all parts are summed, or balanced by learned weights (`uncertainty`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..denoiser.parts import tree
from ..process.base import expand, float64
from ..process.frames import enter
from .auxiliary import Record, State, Task, auxiliaries, named
from .levels import Levels, levels, times
from .uncertainty import KINDS, Uncertainty
from .weights import Weight, weight

DATA = "data"  # the part of the loss that is the error of a tensor's data; of a dict sample every field is a part


def target(model: Denoiser, t: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) of the raw target c x0 + d z, from the line R raw = P x_t + Q x0 and x_t = α x0 + σ z:

    c = (P α + Q)/R,   d = P σ/R        (coefficients in float64: no cancellation in the state)

    On an anchored process this is in the frame of the network, where x0 is x0 or x0 − y.
    """
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    p, q, r = model.prediction.line(alpha, sigma)
    return (p * alpha + q) / r, p * sigma / r


class Evaluation(NamedTuple):
    """A network call in training: raw − target (float32), n with D − x0 = n (raw − target), the state, the conditions that
    the network was given, and what else it returned."""

    error: Any
    n: Tensor
    x: Any
    cond: dict[str, Any]
    extras: tuple[Any, ...]


def evaluate(
    model: Denoiser, x0: State, noise: State, t: Tensor, cond: Mapping[str, Any], twice: Tensor | None = None
) -> Evaluation:
    """The network on x_t; x0, noise: (B, *) or dicts of such; t: (B,) float64 with |λ(t)| ≤ 12; see `residual`.

    twice: (B,) booleans: the samples whose network sees a first estimate of its own, for a model that `sees_previous`; the
    others see zeros. That estimate is a constant: no gradient flows through it.
    """
    process, frame, cond = model.process, model.frame, dict(cond)
    anchor = cond.get("anchor")
    if process.anchored and not model.sees_anchor:
        cond.pop("anchor", None)
    x = tree(lambda u, z: process.stir(u, t, z, anchor), x0, noise)
    if model.sees_previous and twice is not None:
        cond["previous"] = _estimate(model, x, t, cond, twice)
    seen = x if isinstance(x, dict) else enter(process, frame, x, t, anchor)
    decoder = model.decoder(t)
    like = next(iter(x.values())) if isinstance(x, dict) else x
    scale = None if decoder.scale is None else tree(lambda u: expand(decoder.scale, u), x)
    raw, extras = model.call(seen, decoder.time.to(like.dtype), scale, cond)
    c, d = target(model, t)

    def error(raw: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
        data = x0 - anchor if frame == "residual" and anchor is not None else x0
        goal = expand(c, x0) * data + expand(d, x0) * noise
        if anchor is not None and frame == "raw":  # whose state contains β y
            p, _, r = model.prediction.line(process.alpha(t), process.sigma(t))
            goal = goal + expand(p / r * process.beta(t), x0) * anchor
        return raw.float() - goal

    return Evaluation(tree(error, raw, x0, noise), decoder.n.expand(len(like)), x, cond, extras)


@torch.no_grad()
def _estimate(model: Denoiser, x: State, t: Tensor, cond: Mapping[str, Any], chosen: Tensor) -> State:
    """D of the chosen samples, zeros for the others."""
    rows = chosen.nonzero().flatten()
    if not len(rows):  # the processes of a run must call a network that they share equally often
        rows = torch.zeros(1, dtype=torch.int64, device=chosen.device)
    own = {name: value[rows] for name, value in cond.items()}
    data = model(tree(lambda u: u[rows], x), t[rows], **own)
    torch.clear_autocast_cache()  # which holds casts of the weights that know no gradient

    def spread(u: Tensor, found: Tensor) -> Tensor:
        out = torch.zeros_like(u).index_copy(0, rows, found.to(u.dtype))
        return torch.where(chosen.reshape(-1, *[1] * (u.ndim - 1)), out, 0.0)

    return tree(spread, x, data)


def residual(model: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
    """(‖raw − target‖², n) per sample: mean square over the sample's values, shape (B,), and D − x0 = n (raw − target).

    x0, noise: (B, *); t: (B,) float64 with |λ(t)| ≤ 12; cond: for the network, and on an anchored process `anchor`, the y of
    every x0. The square is float32, n float64.
    """
    found = evaluate(model, x0, noise, t, cond)
    return _square(found.error), found.n


def data_error(model: Denoiser, x0: State, noise: State, t: Tensor, **cond: Any) -> Tensor:
    """e₀ = ‖D − x0‖² per sample (mean square over its values, the sum over fields), float64 of shape (B,)."""
    found = evaluate(model, x0, noise, t, cond)
    errors = found.error.values() if isinstance(found.error, dict) else [found.error]
    return found.n**2 * torch.stack([_square(error).double() for error in errors]).sum(0)


def _square(error: Tensor) -> Tensor:
    return error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class Objective:
    """A weight and a level density, by name (see `WEIGHTS`, `LEVELS`) or as functions, and what is learned besides.

    weight: "raw" (the default) is 1/n², so that the loss is ‖raw − target‖²: each kind of
        prediction's own published loss. Otherwise w(λ) in x0 units.
    levels: "uniform", "lognormal:-1.2,1.2", …
    cond_dropout: share of samples whose conditions are all replaced by their nulls; or {condition: share}: each on its own.
    fields: {field: weight}, for dict samples: a number or a function of λ by which the field's error is multiplied (1).
    auxiliary: {name: loss or (loss, weight)}, see `auxiliary`.
    uncertainty: "levels" or "tasks": parts and levels are balanced by learned weights, see `uncertainty`.
    """

    weight: str | Weight = "raw"
    levels: str | Levels = "uniform"
    cond_dropout: float | Mapping[str, float] = 0.0
    fields: Mapping[str, float | Weight] = field(default_factory=dict)
    auxiliary: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: str = "none"

    def __post_init__(self) -> None:
        # Reading the names here means that a wrong one fails before any data is touched.
        if isinstance(self.weight, str) and self.weight != "raw":
            weight(self.weight)
        if isinstance(self.levels, str):
            levels(self.levels)
        shares = self.cond_dropout if isinstance(self.cond_dropout, Mapping) else {"": self.cond_dropout}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"cond_dropout={share}{f' of {name}' if name else ''} must be a share, 0 … 1")
        for name, w in self.fields.items():
            if not callable(w) and not float(w) >= 0:
                raise ValueError(f"fields: the weight of {name!r} is {w}; it must be at least 0")
        if self.uncertainty not in KINDS:
            raise ValueError(f"uncertainty={self.uncertainty!r} is unknown; one of {', '.join(KINDS)}")
        object.__setattr__(self, "auxiliary", auxiliaries(self.auxiliary, (DATA, *self.fields)))
        weights = {**self.fields, **{name: auxiliary.weight for name, auxiliary in self.auxiliary.items()}}
        for name, w in weights.items():
            if self.uncertainty != "none" and not callable(w) and w == 0:  # s would fall for ever, until e^{−s} overflows
                raise ValueError(
                    f"uncertainty={self.uncertainty!r} divides by the expected loss, and {name!r} has the weight 0"
                )

    @property
    def described(self) -> dict[str, Any]:
        """All but the auxiliary losses, as an identity of a run keeps it; of a function only that it is one."""
        shares = self.cond_dropout
        return {
            "weight": "λ" if callable(self.weight) else self.weight,
            "levels": self.levels if isinstance(self.levels, str) else "functions",
            "cond_dropout": dict(shares) if isinstance(shares, Mapping) else float(shares),
            "fields": {name: "λ" if callable(w) else float(w) for name, w in self.fields.items()},
            "uncertainty": self.uncertainty,
        }

    def times(self, model: Denoiser, u: Tensor) -> Tensor:
        """The times (B,) of uniform numbers u (B,)."""
        return times(levels(self.levels) if isinstance(self.levels, str) else self.levels, model.process, u)

    def factor(self, model: Denoiser, t: Tensor, n: Tensor) -> Tensor:
        """w(λ) n², by which ‖raw − target‖² is multiplied."""
        if self.weight == "raw":
            return torch.ones_like(n)
        w = weight(self.weight) if isinstance(self.weight, str) else self.weight
        return w(model.process.logsnr(t)) * n**2

    def parts(self, shape: Any) -> tuple[str, ...]:
        """The names of the parts of the loss for samples of this shape: the fields, or "data", and the auxiliary losses.

        ValueError for a weight of a field that is not there, or an auxiliary loss named like a field.
        """
        own = tuple(shape) if isinstance(shape, Mapping) else (DATA,)
        for name in self.fields:
            if name not in own:
                raise ValueError(f"fields has a weight for {name!r}; the samples have the fields {', '.join(own)}")
        auxiliaries(self.auxiliary, own)
        return (*own, *self.auxiliary)

    def loss(
        self,
        model: Denoiser,
        x0: State,
        noise: State,
        t: Tensor,
        cond: Mapping[str, Any] | None = None,
        *,
        targets: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        twice: Tensor | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """(L, details): the mean loss, and per sample the weighted loss and e₀; and "parts", the mean of every part.

        x0, noise: (B, *), or dicts of them; t: (B,); cond: keywords for the network; targets: for auxiliary losses; present:
        field -> (B,), false where a sample lacks it; twice: see `evaluate`; uncertainty: learned weights, which are in L only.
        """
        _check_noise(x0, noise)
        device = next(iter(x0.values())).device if isinstance(x0, dict) else x0.device
        t, present = float64(t).to(device), present or {}
        found = evaluate(model, x0, noise, t, cond or {}, twice)
        n, lam = found.n, model.process.logsnr(t)
        factor = self.factor(model, t, n)
        errors = found.error if isinstance(found.error, dict) else {DATA: found.error}
        squares = {name: _square(error) for name, error in errors.items()}
        tasks = {}
        for name, square in squares.items():
            w = self.fields.get(name, 1.0)
            w = factor * w(lam) if callable(w) else factor * w if w != 1 else factor
            tasks[name] = Task(w.to(square.dtype) * square, present.get(name))
        s: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            if self.auxiliary:
                data = tree(lambda u, e: u + expand(n, e) * e, x0, found.error)
                extras = named(found.extras)
                record = Record(x0, noise, found.x, t, lam, data, found.cond, targets or {}, present, extras)
                tasks |= {name: auxiliary.task(name, record) for name, auxiliary in self.auxiliary.items()}
            if uncertainty is not None:
                s = uncertainty(lam)
        each = _sum([_kept(task, task.loss * torch.exp(-s[k]) + s[k] if s else task.loss) for k, task in tasks.items()])
        plain = {name: _kept(task, task.loss.detach()) for name, task in tasks.items()}
        data_errors = _sum([_kept(tasks[name], n**2 * square.detach().double()) for name, square in squares.items()])
        parts = {name: value.mean() for name, value in plain.items()}
        return each.mean(), {"loss": _sum(list(plain.values())), "data_error": data_errors, "parts": parts}


def _check_noise(x0: State, noise: State) -> None:
    shapes = [tree(lambda u: tuple(u.shape), state) for state in (noise, x0)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"noise has shape {shapes[0]}; x0 has {shapes[1]}")


def _kept(task: Task, values: Tensor) -> Tensor:
    """The values of samples to which a part applies, 0 for the others."""
    return values if task.present is None else torch.where(task.present.to(values.device), values, 0.0)


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def drop(cond: Mapping[str, Tensor], null: Mapping[str, Any], dropped: Tensor) -> dict[str, Tensor]:
    """The conditions with their null value where `dropped` (B,) is true; all of them are dropped together."""
    return {
        name: torch.where(
            dropped.reshape(-1, *[1] * (value.ndim - 1)).to(value.device),
            torch.as_tensor(null[name], dtype=value.dtype, device=value.device),
            value,
        )
        for name, value in cond.items()
    }
