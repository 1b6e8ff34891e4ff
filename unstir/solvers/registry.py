"""The register of solvers: from a name to a plan.

A solver is a function (levels, **options) that yields rows. `compiler` turns it into
(process, times, **options) -> Plan, and `register` gives it a name, an order and its paper.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from ..plan.plan import Plan, Row
from ..process import Process
from .aliases import ALIASES
from .levels import Levels

Stages = Callable[[int, bool, bool], list[int]]


def one_call_each(nfe: int, blank: bool, clean: bool) -> list[int]:
    """Calls per step of a method with one call a step."""
    return [1] * nfe


def calls_per_step(calls: int) -> Stages:
    """Spend a budget on steps of `calls` calls: (nfe, blank, clean) -> calls of each step.

    A step from α = 0 (blank start) or to σ = 0 (clean end) has an infinite length in λ and takes
    one call. What is left over makes one shorter step before the others: early steps are the easy
    ones, since there D hardly depends on the state.
    """

    def stages(nfe: int, blank: bool, clean: bool) -> list[int]:
        if nfe == 1:
            return [1]
        full, rest = divmod(nfe - blank - clean, calls)
        return [1] * blank + [rest] * (rest > 0) + [calls] * full + [1] * clean

    return stages


@dataclass(frozen=True)
class Solver:
    """An entry: how to compile it, its order, its paper, and how a budget of calls becomes steps."""

    name: str
    compile: Callable[..., Plan]
    order: float
    paper: str
    stages: Stages = one_call_each
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peers(self) -> dict[str, str]:
        """{ecosystem: what the method is called there}."""
        named = {eco: [peer for peer, ours in names.items() if ours == self.name] for eco, names in ALIASES.items()}
        return {eco: ", ".join(peers) for eco, peers in named.items() if peers}


SOLVERS: dict[str, Solver] = {}


def compiler(rows: Callable[..., Iterable[Row]]) -> Callable[..., Plan]:
    """Decorator: a function (levels, **options) that yields rows becomes (process, times, **options) -> Plan."""
    known = list(inspect.signature(rows).parameters)[1:]

    @wraps(rows)
    def compile_rows(process: Process, times: Sequence[float], *, ascending: bool = False, **options: Any) -> Plan:
        if unknown := [key for key in options if key not in known]:
            raise ValueError(f"{rows.__name__} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
        return Plan(list(rows(Levels(process, times, ascending), **options)), process, name=rows.__name__)

    compile_rows.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("process", "times")]
        + [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in list(inspect.signature(rows).parameters.values())[1:]]
    )
    return compile_rows


def register(
    name: str,
    compile: Callable[..., Plan],
    order: float,
    paper: str,
    options: Mapping[str, Any] | None = None,
    stages: Stages = one_call_each,
) -> None:
    """Give a compiled solver a name, under which `unstir.plan` and the command line find it.

    options are fixed for that name; stages(nfe, clean) says how a budget of calls becomes steps.
    """
    if name in SOLVERS:
        raise ValueError(f"there is already a solver named {name!r}")
    SOLVERS[name] = Solver(name, compile, order, paper, stages, dict(options or {}))


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().replace("++", "pp") if c.isalnum())


def find(name: str) -> Solver:
    """The entry called `name`, here or in diffusers, k-diffusion, ComfyUI or AUTOMATIC1111 ("DPM++ 2M", "uni_pc_bh2").

    Case and punctuation do not matter. ValueError names the close ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"solver name is {type(name).__name__}; give a string such as 'dpmpp-3m'")
    known = {_plain(peer): ours for names in ALIASES.values() for peer, ours in names.items()}
    known |= {_plain(ours): ours for ours in SOLVERS}
    key = _plain(name)
    if key not in known:
        close = [known[k] for k in difflib.get_close_matches(key, known, 3, 0.5)]
        hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else f"known: {', '.join(sorted(SOLVERS))}"
        raise ValueError(f"unknown solver {name!r}; {hint}")
    return SOLVERS[known[key]]


def compile_plan(
    name: str, process: Process, times: Sequence[float], *, stages: list[int] | None = None, **options: Any
) -> Plan:
    """The plan of a named solver on explicit nodes; its recipe is kept, so `Plan.tail` can compile it again."""
    entry = find(name)
    given = {**entry.options, **options}
    if entry.stages is not one_call_each and stages is not None:
        given["stages"] = stages
    plan = entry.compile(process, times, **given)
    recipe = {"solver": entry.name, "nodes": [float(t) for t in times], "solver_options": options}
    return Plan(plan.rows, process, name=entry.name, options=recipe, order=entry.order)
