"""The tracer: rows from a textbook loop, and exact statistics from rows.

A textbook sampler only ever forms linear combinations of the start state, of predictions D_i, of
noises z_k and of constants. Run on vectors of coefficients over that basis instead of on pictures,
it writes down its own table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from ..process import Process
from .plan import Plan
from .row import Row

Key = tuple[str, int]
START: Key = ("x", 0)


class Symbol:
    """A state of a textbook sampler as coefficients over the basis x, D_0, D_1, …, z_0, z_1, …"""

    def __init__(self, terms: dict[Key, float]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Symbol:
        if not isinstance(other, Symbol):
            if other == 0:
                return self
            raise TypeError(f"a traced state was added to {other!r}; only states, predictions and noises can be added")
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms.get(key, 0.0) + value
        return Symbol(terms)

    __radd__ = __add__

    def __mul__(self, weight: Any) -> Symbol:
        return Symbol({key: value * float(weight) for key, value in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, weight: Any) -> Symbol:
        return self * (1 / float(weight))

    def __neg__(self) -> Symbol:
        return self * -1.0

    def __sub__(self, other: Any) -> Symbol:
        return self + (-other)

    def __rsub__(self, other: Any) -> Symbol:
        return other + (-self)

    def __getitem__(self, key: Key) -> float:
        return self.terms.get(key, 0.0)

    def size(self) -> float:
        """The largest coefficient."""
        return max((abs(v) for v in self.terms.values()), default=0.0)


class Tracer:
    """What a textbook loop is given: `trace.denoise(x, t)` and `trace.noise()`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Symbol, float]] = []
        self.noises = 0

    def denoise(self, x: Symbol, t: float) -> Symbol:
        """The data prediction at (x, t)."""
        self.calls.append((x, float(t)))
        return Symbol({("D", len(self.calls) - 1): 1.0})

    def noise(self) -> Symbol:
        """A fresh standard normal."""
        self.noises += 1
        return Symbol({("z", self.noises - 1): 1.0})


def trace(
    loop: Callable[..., Symbol],
    process: Process,
    times: Sequence[float],
    *,
    name: str = "traced",
    order: float | None = None,
    **options: Any,
) -> Plan:
    """The plan of a textbook loop: loop(trace, x, process, times, **options) -> final state.

    Inside, `trace.denoise(x, t)` is the network and `trace.noise()` a fresh normal; states may be
    added and scaled. With V_i the state of call i and V_N the result, the rows follow from
    V_{i+1} = a V_i + Σ b D + c z, where a makes the start's coefficient agree.
    """
    tracer = Tracer()
    end = loop(tracer, Symbol({START: 1.0}), process, [float(t) for t in times], **options)
    if not tracer.calls:
        raise ValueError("the loop made no call of trace.denoise")
    states = [*tracer.calls, (end, float(times[-1]))]
    rows: list[Row] = []
    seen: set[Key] = set()
    first, t0 = states[0]
    if any(key != START for key in first.terms) or first[START] != 1.0:
        rows.append(_row(Symbol({START: 1.0}), first, float(times[0]), t0, -1, 0, seen, evaluate=False))
    skipped = len(rows)
    for i, ((x, t), (following, to)) in enumerate(pairwise(states)):
        rows.append(_row(x, following, t, to, i, skipped, seen))
    return Plan(rows, process, name=name, order=order)


def _row(x: Symbol, y: Symbol, t: float, to: float, i: int, skipped: int, seen: set[Key], *, evaluate: bool = True) -> Row:
    a = y[START] / x[START] if x[START] != 0 else 0.0
    if x[START] == 0 and y[START] != 0:
        raise ValueError(f"call {i + 1} uses the start state again after it was replaced; this loop is not a table")
    kept = x * a
    rest = y - kept
    # What is left of two numbers that should cancel is rounding, relative to those numbers.
    real = {key: v for key, v in rest.terms.items() if abs(v) > 1e-13 * max(abs(y[key]), abs(kept[key]))}
    b = {i - key[1]: value for key, value in real.items() if key[0] == "D"}
    fresh = {key: value for key, value in real.items() if key[0] == "z"}
    if old := set(fresh) & seen:
        raise ValueError(f"call {i + 1} needs the noises {sorted(old)} of an earlier row again; draw fresh noise instead")
    seen.update(fresh)
    return Row(t=t, to=to, a=a, b=b, c=math.sqrt(sum(v * v for v in fresh.values())), evaluate=evaluate)


# -- exact statistics -----------------------------------------------------------------------------
def _at(value: Any, t: float) -> float:
    return float(value(t)) if callable(value) else float(value)  # type: ignore[arg-type]


def _run(plan: Plan, gain: Any, offset: Any, x_mean: float, x_std: float | None) -> Iterator[tuple[float, float, float]]:
    """(mean, standard deviation, size of the largest sum so far) of every state."""
    x = Symbol({("1", 0): x_mean, START: float(plan.process.sigma(plan.start)) if x_std is None else x_std})
    history: dict[int, Symbol] = {}
    largest = 1.0
    if plan.needs():
        raise ValueError(
            f"the plan reads the history of row {plan.needs()[0]}, before its first; ask the whole plan, not a split tail"
        )
    if not all(row.numeric for row in plan.rows):
        raise ValueError("the plan has tensor entries; exact statistics need a table of numbers")
    for i, row in enumerate(plan.rows):
        if row.evaluate:
            data = x * _at(gain, row.t) + Symbol({("1", 0): _at(offset, row.t)})
            history[i] = x * row.p + data * row.q + (history[i - 1] * row.s if row.s != 0 else 0)
        parts = [x * row.a, *(history[i - lag] * w for lag, w in row.b.items())]
        largest = max(largest, sum(part.size() for part in parts))
        x = sum(parts, Symbol({("z", i): float(row.c), ("1", 0): float(row.e)}))
        yield x[("1", 0)], math.sqrt(sum(v * v for key, v in x.terms.items() if key[0] != "1")), largest


def propagate(
    plan: Plan, gain: Any, offset: Any = 0.0, x_mean: float = 0.0, x_std: float | None = None
) -> list[tuple[float, float]]:
    """See `Plan.propagate`."""
    return [(mean, std) for mean, std, _ in _run(plan, gain, offset, x_mean, x_std)]


def invariants(plan: Plan) -> tuple[list[float], list[float]]:
    """See `Plan.invariants`: both by propagation, so that stages, folding and noise are all covered."""
    alphas = [float(plan.process.alpha(row.to)) for row in plan.rows]
    sigmas = [float(plan.process.sigma(row.to)) for row in plan.rows]
    constant = _run(plan, 0.0, 1.0, float(plan.process.alpha(plan.start)), 0.0)
    zero = _run(plan, 0.0, 0.0, 0.0, None)
    one = [abs(mean - alpha) / largest for (mean, _, largest), alpha in zip(constant, alphas, strict=True)]
    two = [abs(std - sigma) / largest for (_, std, largest), sigma in zip(zero, sigmas, strict=True)]
    return one, two
