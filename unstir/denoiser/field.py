"""Vector fields: networks that move x_t itself, dx/dt = v(x, t), or along an SDE of the same marginals.

Every regression target of an interpolant is a combination of (x0, y, z), and so is the state:

    field        x0   y    z                          field        x0   y    z
    "velocity"   α'   β'   σ'                         "score"      0    0    −1/σ
    "path"       α'   β'   0                          "data"       1    0    0
    "noise"      0    0    1                          "source"     0    1    0         state  x = α x0 + β y + σ z

A network that outputs some of them therefore knows every other one in the span of its outputs and of the state:
the weights are solved for in float64, once per time. Two outputs are needed where there is a source y
besides the data, one where there is none. (Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, 2023.)

With any ε(t) ≥ 0, chosen when sampling, the SDE that keeps all marginals has the drift v − ε s for falling t:

    X ← X + (t' − t) (v − ε s) + √(2ε (t − t')) z
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._calls import count_call
from ..process import Marginal, Process
from ..process.base import expand, float64
from .denoiser import TIMES, accepts, check_parts, combine, split_output

FIELDS: dict[str, Callable[[Process, Tensor], tuple[Any, Any, Any]]] = {
    "velocity": lambda p, t: (p.dalpha(t), p.dbeta(t), p.dsigma(t)),
    "path": lambda p, t: (p.dalpha(t), p.dbeta(t), 0.0),
    "noise": lambda p, t: (0.0, 0.0, 1.0),
    "score": lambda p, t: (0.0, 0.0, -1 / p.sigma(t)),
    "data": lambda p, t: (1.0, 0.0, 0.0),
    "source": lambda p, t: (0.0, 1.0, 0.0),
}


class Field(nn.Module):
    """A network, a process, and which fields it outputs: field(x, t) -> v(x, t), for "field-…" plans.

    network: network(x, t, **cond) -> one tensor of x's shape per name in `predicts` (a tuple if there are several).
    process: an `Interpolant` or any other process; the field's own is its `Marginal`.
    predicts: a name of `FIELDS` or several. An ordinary denoiser without an anchor is the network of a Field
        with predicts="data": see `Field.of`.
    time: what the network is told of t, as in `Denoiser`.

    x is (B, *); t a number or (B,). Raises ValueError where an asked field does not follow from the outputs.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        process: Process,
        predicts: str | Sequence[str] = "velocity",
        *,
        time: str | Callable[[Process, Tensor], Tensor] = "unit",
        shape: tuple[int, ...] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_parts(network, process, time)
        names = (predicts,) if isinstance(predicts, str) else tuple(predicts)
        if not names or len(set(names)) < len(names) or not set(names) <= set(FIELDS):
            raise ValueError(f"predicts={predicts!r} must be different names out of {', '.join(FIELDS)}")
        self.network, self.predicts, self.time = network, names, time
        self.process = process if isinstance(process, Marginal) else Marginal(process)
        self.shape = tuple(shape) if shape is not None else None
        self.meta: dict[str, Any] = dict(meta or {})
        self._wants_ctx = accepts(network, "ctx")
        self._known: dict[Any, list[Any]] = {}

    @classmethod
    def of(cls, model: Any) -> Field:
        """The field of an ordinary denoiser, v = α' D + σ' (x − αD)/σ."""
        process = getattr(model, "process", None)
        if process is None or process.anchored:
            raise TypeError("a field needs a denoiser with a process of its own, without an anchor")
        return cls(model, process, "data", shape=getattr(model, "shape", None), meta=getattr(model, "meta", {}))

    # -- weights ---------------------------------------------------------------------------------
    def weights(self, want: str, t: Tensor) -> list[Tensor]:
        """[w_x, w_1, …]: the wanted field is w_x x + Σ w_k output_k; each of t's shape, float64."""
        p, t = self.process, float64(t)
        if want not in FIELDS:
            raise ValueError(f"the field {want!r} is unknown; one of {', '.join(FIELDS)}")
        if want in self.predicts:
            return [torch.full_like(t, float(want == name)) for name in ("", *self.predicts)]
        if "score" in (want, *self.predicts) and bool((p.sigma(t) == 0).any()):
            raise ValueError("the score is infinite where σ = 0: keep the plan inside (0, 1), for instance 0.995 … 0.005")
        rows = [(p.alpha(t), p.beta(t), p.sigma(t)), *(FIELDS[name](p, t) for name in self.predicts)]
        basis = torch.stack([_triple(row, t) for row in rows], -1)  # (…, 3, 1 + outputs)
        goal = _triple(FIELDS[want](p, t), t)
        size = basis.norm(dim=-2, keepdim=True).clamp_min(1e-300)
        solution = torch.linalg.pinv(basis / size, rtol=1e-9) @ goal[..., None]
        left = (basis / size @ solution)[..., 0] - goal
        if bool((left.norm(dim=-1) > 1e-7 * goal.norm(dim=-1)).any()):
            raise ValueError(
                f"the {want} does not follow from the state and what the network predicts ({', '.join(self.predicts)}); "
                "train a second output, such as predicts=('path', 'noise')"
            )
        return list((solution[..., 0] / size[..., 0, :]).unbind(-1))

    def _at(self, want: str, t: Tensor | float, x: Tensor) -> list[Any]:
        """`weights` in the form in which one call needs them; those of a common time are kept."""
        if isinstance(t, Tensor) and t.ndim:
            return [expand(w, x) for w in self.weights(want, t.to(x.device))]
        key = (want, float(t))
        if key not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[key] = [float(w) for w in self.weights(want, float64(key[1]))]
        return self._known[key]

    # -- values -----------------------------------------------------------------------------------
    def outputs(self, x: Tensor, t: Tensor | float, **cond: Any) -> list[Tensor]:
        """What the network returns, one tensor (B, *) per name in `predicts`."""
        at = float64(t).to(x.device).expand(len(x))
        told = TIMES[self.time](self.process, at) if isinstance(self.time, str) else self.time(self.process, at)
        out = self.network(x, told.to(x.dtype), **cond)
        if len(self.predicts) == 1:
            found = [split_output(out)[0]]
        elif isinstance(out, tuple | list) and len(out) == len(self.predicts):
            found = list(out)
        else:
            raise ValueError(f"the network must return a tuple of {len(self.predicts)} tensors: {', '.join(self.predicts)}")
        for name, value in zip(self.predicts, found, strict=True):
            if not isinstance(value, Tensor) or value.shape != x.shape:
                raise ValueError(f"the network's {name} must be a tensor of the state's shape {tuple(x.shape)}")
        if not isinstance(self.network, nn.Module) or not hasattr(self.network, "process"):
            count_call(found[0])  # a denoiser counts its own calls
        return found

    def field(self, want: str, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[want | x_t = x], one of `FIELDS`."""
        return combine(list(zip(self._at(want, t, x), [x, *self.outputs(x, t, **cond)], strict=True)))

    def forward(
        self, x: Tensor, t: Tensor | float, ctx: Any = None, *, field: str = "velocity", diffusion: float = 0.0, **cond: Any
    ) -> Tensor:
        """v − ε s with ε = diffusion, or another field: what a row of a "field-…" plan asks for in its kwargs."""
        if ctx is not None and self._wants_ctx:
            cond["ctx"] = ctx
        weights = self._at(field, t, x)
        if diffusion:
            weights = [w - diffusion * s for w, s in zip(weights, self._at("score", t, x), strict=True)]
        return combine(list(zip(weights, [x, *self.outputs(x, t, **cond)], strict=True)))

    def extra_repr(self) -> str:
        return f"process={self.process!r}, predicts={self.predicts!r}, time={self.time!r}"


def _triple(row: tuple[Any, Any, Any], t: Tensor) -> Tensor:
    """(coefficients of x0, y, z), of shape (*t, 3)."""
    return torch.stack([float64(c).to(t.device).expand_as(t) for c in row], -1)


def target(process: Process, name: str, x0: Tensor, y: Tensor | None, z: Tensor, t: Tensor) -> Tensor:
    """The regression target of a field: its combination of (x0, y, z) at times t (B,)."""
    parts = zip(FIELDS[name](process, float64(t)), (x0, y, z), strict=True)
    terms = [expand(_like(c, t), x0) * part for c, part in parts if part is not None and not _zero(c)]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(x0)


def _like(c: Any, t: Tensor) -> Tensor:
    return float64(c).to(t.device).expand(t.shape)


def _zero(c: Any) -> bool:
    return isinstance(c, float) and c == 0
