"""Row: one line of the table (see `Plan` for the meaning of the letters)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

Coef = float | Tensor


class Frozen(dict):
    """A dict that cannot be changed, and yet can be copied and sent to another process."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a plan is immutable; make a changed copy with Plan.map_rows and dataclasses.replace")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Frozen, (dict(self),)


def _entry(value: Any) -> Any:
    """Numbers as floats (integers and numpy scalars are what users write), tensors as they are."""
    return value if isinstance(value, Tensor) else float(value)


@dataclass(frozen=True, eq=False)
class Row:
    """One row; see the module for the meaning of the letters.

    t: time of X_i, where the denoiser is evaluated; to: time of X_{i+1}.
    b: {lag j: weight of F_{i−j}}. A row with evaluate=False makes no call and has no F of its own.
    boundary: X_{i+1} is a genuine solution value (hooks may edit it), not an inner stage.
    kwargs: keyword arguments for the network in this row (layer skipping, switches).
    """

    t: Any
    to: Any
    a: Coef
    b: Mapping[int, Coef] = field(default_factory=dict)
    c: Coef = 0.0
    p: Coef = 0.0
    q: Coef = 1.0
    s: Coef = 0.0
    e: Coef = 0.0
    evaluate: bool = True
    boundary: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for letter in ("t", "to", "a", "c", "p", "q", "s", "e"):
            object.__setattr__(self, letter, _entry(getattr(self, letter)))
        object.__setattr__(self, "b", Frozen({int(lag): _entry(weight) for lag, weight in self.b.items()}))
        object.__setattr__(self, "kwargs", Frozen(self.kwargs))

    @cached_property
    def noisy(self) -> bool:
        """Does this row add noise?"""
        return isinstance(self.c, Tensor) or self.c != 0

    @cached_property
    def momentum(self) -> bool:
        """Does F_i read F_{i−1} (s ≠ 0)?"""
        return self.evaluate and (isinstance(self.s, Tensor) or self.s != 0)

    @cached_property
    def lags(self) -> tuple[tuple[int, Coef], ...]:
        """The entries of b, newest first."""
        return tuple(sorted(self.b.items(), key=lambda entry: entry[0]))

    @cached_property
    def numeric(self) -> bool:
        """Are all entries numbers (which cannot change the state's shape)?"""
        return not any(isinstance(v, Tensor) for v in (self.a, self.c, self.p, self.q, self.s, self.e, *self.b.values()))

    @cached_property
    def plain(self) -> bool:
        """Is F_i = D_i?"""
        return not self.momentum and isinstance(self.p, float) and isinstance(self.q, float) and (self.p, self.q) == (0.0, 1.0)

    def leaf(self, name: str) -> Row:
        """The row that acts on one leaf of a dict state: this one (`JointRow` has one per leaf)."""
        return self

    @property
    def gain(self) -> Coef:
        """B_i, the total coefficient of D_i in X_{i+1}."""
        return self.b.get(0, 0.0) * self.q


@dataclass(frozen=True)
class JointRow:
    """Row i of several plans at once, one per leaf of a dict state; one network call serves all."""

    rows: Mapping[str, Row]

    def leaf(self, name: str) -> Row:
        if name not in self.rows:
            raise ValueError(f"the state has a leaf {name!r}; the joint plan has {', '.join(self.rows)}")
        return self.rows[name]

    @property
    def _one(self) -> Row:
        return next(iter(self.rows.values()))

    def _shared(self, letter: str) -> Any:
        values = {name: getattr(row, letter) for name, row in self.rows.items()}
        first = next(iter(values.values()))
        return first if all(v == first for v in values.values()) else values

    @property
    def t(self) -> Any:
        """The common time, or {leaf: time} where they differ; the model is called with it."""
        return self._shared("t")

    @property
    def to(self) -> Any:
        return self._shared("to")

    @property
    def evaluate(self) -> bool:
        return self._one.evaluate

    @property
    def boundary(self) -> bool:
        return all(row.boundary for row in self.rows.values())

    @property
    def noisy(self) -> bool:
        return any(row.noisy for row in self.rows.values())

    @property
    def momentum(self) -> bool:
        return any(row.momentum for row in self.rows.values())

    @property
    def numeric(self) -> bool:
        return all(row.numeric for row in self.rows.values())

    @property
    def plain(self) -> bool:
        return all(row.plain for row in self.rows.values())

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return {key: value for row in self.rows.values() for key, value in row.kwargs.items()}
