"""Plan: a sampler as a table, one row per network evaluation. Row i means

    evaluate   D_i = denoiser(X_i, t_i)
    remember   F_i = p_i X_i + q_i D_i + s_i F_{i−1}
    advance    X_{i+1} = a_i X_i + Σ_j b_ij F_{i−j} + e_i + c_i z_i,      z_i ~ N(0, I)

Entries are float64 numbers, or tensors that broadcast over the state. A plan holds no run state, so
one plan serves any number of threads; rows are addressed by number and never searched by time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..process import FRAMES, Process
from .row import Row

if TYPE_CHECKING:
    from pathlib import Path


class Plan:
    """An immutable table of rows, and where it came from.

    len(plan) is the NFE: the number of rows that call the network. `offset` is the number of the
    first row (not 0 for the tail of a split plan, whose lags reach into the head); `keep` are the
    rows whose F must outlive the plan, because the tail reads them. `frame`: what the rows act on, see `frames`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        process: Process,
        *,
        name: str = "custom",
        options: Mapping[str, Any] = MappingProxyType({}),
        order: float | None = None,
        offset: int = 0,
        keep: frozenset[int] = frozenset(),
        frame: str = "centred",
    ) -> None:
        if frame not in FRAMES:
            raise ValueError(f"frame={frame!r} must be one of {', '.join(FRAMES)}")
        self.rows = tuple(rows)
        self.process, self.keep, self.frame = process, keep, frame
        self.name, self.options, self.order, self.offset = name, MappingProxyType(dict(options)), order, offset
        if not self.rows:
            raise ValueError("a plan needs at least one row")
        for i, row in enumerate(self.rows):
            self._check(i, row)

    def _check(self, i: int, row: Row) -> None:
        if 0 in row.b and not row.evaluate:
            raise ValueError(f"row {i} makes no call, so it has no F_{i}; its lags must be at least 1")
        for letter in "abcpqse":
            entry = getattr(row, letter)
            for value in entry.values() if isinstance(entry, Mapping) else (entry,):
                if not (bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else math.isfinite(value)):
                    raise ValueError(
                        f"row {i}: {letter} is not finite ({value}); the grid or the process does not fit the solver"
                    )
        if row.noisy and math.isfinite(self.process.tails):
            raise ValueError(
                f"row {i} adds Gaussian noise, and the noise of {self.process!r} is heavy-tailed: such a process has no SDE, "
                "ancestral step or churn; use a deterministic solver such as 'heun'"
            )
        first = i + self.offset == 0
        if row.momentum and (first or (i > 0 and not self.rows[i - 1].evaluate)):
            raise ValueError(f"row {i}: s ≠ 0 needs the F of the row before it, which does not exist")
        for lag in row.b:
            source = i - lag
            if lag < 0 or source < -self.offset:
                raise ValueError(f"row {i}: lag {lag} reaches row {source}, which does not exist")
            if source >= 0 and not self.rows[source].evaluate:
                raise ValueError(f"row {i}: lag {lag} reaches row {source}, which makes no call")

    # -- the table as a sequence --------------------------------------------------------------
    def __len__(self) -> int:
        return sum(row.evaluate for row in self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, i: int) -> Row:
        return self.rows[i]

    @property
    def nfe(self) -> int:
        """Network calls of one run, the same as len(plan)."""
        return len(self)

    @property
    def times(self) -> list[float]:
        """t of every row and of the final state."""
        return [row.t for row in self.rows] + [self.rows[-1].to]

    @property
    def start(self) -> Any:
        """Time of the state that the plan starts from."""
        return self.rows[0].t

    @property
    def end(self) -> Any:
        """Time of the state that the plan ends with."""
        return self.rows[-1].to

    @property
    def stochastic(self) -> bool:
        """Does any row add noise?"""
        return any(row.noisy for row in self.rows)

    @property
    def history(self) -> int:
        """The largest lag: how many past predictions are kept."""
        return max((lag for row in self.rows for lag in row.b), default=0)

    def last_use(self) -> dict[int, int]:
        """{row whose F is remembered: last row that reads it}; F_i is also read by an s in row i + 1."""
        use: dict[int, int] = {}
        for i, row in enumerate(self.rows, self.offset):
            for lag in row.b:
                use[i - lag] = i
            if row.momentum:
                use[i - 1] = i
        return {**use, **dict.fromkeys(self.keep, self.offset + len(self.rows))}

    @cached_property
    def releases(self) -> list[list[int]]:
        """Per row, the rows whose F nobody reads after it."""
        return releases(self)

    def needs(self) -> list[int]:
        """Rows before the first whose F is read: empty unless this is the tail of a split plan."""
        return sorted(i for i in self.last_use() if i < self.offset)

    # -- pieces ----------------------------------------------------------------------------------
    def split(self, row: int | None = None, *, t: float | None = None) -> tuple[Plan, Plan]:
        """(head, tail): the rows before `row` and from it on, or cut at the first boundary not above time t.

        The tail reads the head's history: pass the `State` that `unstir.sample(..., full=True)` of
        the head returns as the `x` of the tail; the result is bitwise that of the whole plan.
        """
        if (row is None) == (t is None):
            raise ValueError("give exactly one of row= and t=")
        if row is None:
            cuts = [i + 1 for i, r in enumerate(self.rows) if r.boundary and r.to <= t and i + 1 < len(self.rows)]
            if not cuts:
                raise ValueError(f"t={t}: no boundary of the plan lies at or below it")
            row = cuts[0]
        if not 0 < row < len(self.rows):
            raise ValueError(f"row={row} must lie in 1 … {len(self.rows) - 1}")
        if not self.rows[row - 1].boundary:
            raise ValueError(f"row={row} begins at an inner stage; split where the previous row has boundary=True")
        cut = self.offset + row
        # A piece is no longer what its recipe says, so it keeps none.
        tail = self._with(self.rows[row:], offset=cut, options={})
        return self._with(self.rows[:row], keep=frozenset(tail.needs()), options={}), tail

    def tail(self, start: float) -> Plan:
        """The same solver compiled on the part of the grid at and below time `start`, without history.

        `start` itself becomes the first node: what image-to-image (`strength`), restoration that
        starts from a stirred picture, and resuming with another model need.
        """
        from ..solvers.registry import compile_plan  # a plan knows its recipe, the solvers room carries it out
        from ..solvers.transforms import recipe

        solver, nodes, options = recipe(self)
        below = [u for u in nodes if u < start * (1 - 1e-12)]
        if not below or start > nodes[0] * (1 + 1e-12):
            raise ValueError(f"start={start} must lie above the last node and at or below {nodes[0]}")
        return compile_plan(solver, self.process, [start, *below], **options)

    def _with(self, rows: Sequence[Row], **changes: Any) -> Plan:
        same = {"name": self.name, "options": self.options, "order": self.order, "offset": self.offset, "keep": self.keep}
        return Plan(rows, self.process, **{**same, "frame": self.frame, **changes})

    def map_rows(self, change: Any) -> Plan:
        """A plan with change(i, row) for every row; the recipe is dropped, since the table is no longer its."""
        rows = [change(i, row) for i, row in enumerate(self.rows)]
        return self._with(rows, options={})

    # -- exact properties ------------------------------------------------------------------------
    def propagate(
        self, gain: Any, offset: Any = 0.0, x_mean: float = 0.0, x_std: float | None = None
    ) -> list[tuple[float, float]]:
        """Exact mean and standard deviation of every state, for a linear scalar denoiser D = g(t) x + o(t).

        gain, offset: numbers or functions of t. The start has mean `x_mean` and standard deviation
        `x_std` (σ(start) by default). No sampling: a state is a vector of coefficients over
        (1, start noise, z_0, z_1, …), so Gaussian data give weak errors from the rows alone.
        """
        from .trace import propagate

        return propagate(self, gain, offset, x_mean, x_std)

    def invariants(self) -> tuple[list[float], list[float]]:
        """Residuals (I1, I2) of the two universal row invariants, relative to the sums they come from, one per row.

        I1 constant data: with X = α and D = 1 every row lands on α.   I2 zero data: with D = 0 and
        X ~ N(0, σ²) every row lands on standard deviation σ (for deterministic rows: on σ itself).
        Every deterministic method and every stochastic data-form method satisfies both.
        """
        from .trace import invariants

        return invariants(self)

    # -- text ---------------------------------------------------------------------------------------
    def __str__(self) -> str:
        from .text import table

        return table(self)

    def __repr__(self) -> str:
        return f"Plan({self.name!r}, nfe={len(self)}, {self.process!r}, t {_short(self.start)} → {_short(self.end)})"

    def fingerprint(self) -> str:
        """A short hash of every number of the table and of the process; equal tables have equal fingerprints."""
        from .text import fingerprint

        return fingerprint(self)

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, atomically."""
        from .text import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan written by `save`. ValueError if the file is not one, or was altered."""
        from .text import load

        return load(path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        return hash(self.fingerprint())


def releases(plan: Any) -> list[list[int]]:
    """Per row of a plan, the rows whose F nobody reads after it."""
    rows = [[] for _ in plan.rows]
    use = plan.last_use()
    unread = {i: i for i, row in enumerate(plan.rows, plan.offset) if row.evaluate and i not in use}
    for i, last in {**use, **unread}.items():
        if last - plan.offset < len(rows):
            rows[last - plan.offset].append(i)
    return rows


def _short(t: Any) -> str:
    return f"{t:.4g}" if isinstance(t, float | int) else "per sample"
