"""The register of solvers: from a name to a plan.

A solver is a function (levels, **options) that yields rows. `compiler` turns it into
(process, times, **options) -> Plan, and `register` gives it a name, an order and its paper.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from ..plan.plan import Plan
from ..plan.row import Row
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
    requires: tuple[str, ...] = ()
    grid: str = "auto"

    @property
    def peers(self) -> dict[str, str]:
        """{ecosystem: what the method is called there}."""
        named = {eco: [peer for peer, ours in names.items() if ours == self.name] for eco, names in ALIASES.items()}
        return {eco: ", ".join(peers) for eco, peers in named.items() if peers}


SOLVERS: dict[str, Solver] = {}  # those that a process alone compiles
MODEL_SOLVERS: dict[str, Solver] = {}  # those that also need something measured on a model
FIELD_SOLVERS: dict[str, Solver] = {}  # those that integrate a vector field in t (`unstir.denoiser.Field`)


def compiler(rows: Callable[..., Iterable[Row]]) -> Callable[..., Plan]:
    """Decorator: a function (levels, **options) that yields rows becomes (process, times, **options) -> Plan.

    Two more options come with it: ascending (a grid towards noise), and exact_end: the last row to
    σ = 0 returns the data prediction exactly, X' = α' D, whatever the method (False keeps the
    method's own last row, as some peers do).
    """
    options_of = dict(list(inspect.signature(rows).parameters.items())[1:])

    @wraps(rows)
    def compile_rows(
        process: Process, times: Sequence[float], *, ascending: bool = False, exact_end: bool = True, **options: Any
    ) -> Plan:
        for key, value in options.items():
            if key not in options_of:
                raise ValueError(f"{rows.__name__} has no option {key!r}; it has {', '.join(options_of) or 'none'}")
            default = options_of[key].default
            if isinstance(default, float) and not callable(value) and not _is_number(value):
                raise ValueError(f"{key}={value!r} must be a finite number")
            if type(default) is int and type(value) is not int:
                raise ValueError(f"{key}={value!r} must be an integer")
        levels = Levels(process, times, ascending)
        stages = options.get("stages")
        if stages is not None and len(stages) != levels.n:
            raise ValueError(f"stages has {len(stages)} entries for {levels.n} steps; give the calls of every step")
        if levels.pinned:
            rest = {**options, "stages": stages[1:]} if stages is not None else options
            table = [restart_row(levels), *(rows(Levels(process, times[1:]), **rest) if levels.n > 1 else ())]
        else:
            table = list(rows(levels, **options))
        if exact_end and levels.clean:
            last = table[-1]
            table[-1] = Row(t=last.t, to=last.to, a=0.0, b={0: levels.alpha[-1]})
        return Plan(table, process, name=rows.__name__)

    return compile_rows


def restart_row(levels: Levels) -> Row:
    """The first row where α = σ = 0, X = 0 in the centred state: X' = α' D + σ' z draws the noise of the next node.

    a = β'/β multiplies that 0, and lets y cancel in x' = a x + α' D + σ' z for networks that do not see it.
    ValueError where x_t − βy still shows the data as t → 1 (λ(1) finite): nothing is known of such a start.
    """
    if levels.lam[0] != -math.inf:
        raise ValueError(
            f"{levels.process!r} is pinned at t = {levels.times[0]:g}, and λ stays finite there ({levels.lam[0]:.3g}): "
            "start the plan below it, from a state that you know"
        )
    beta, beta2 = (float(levels.process.beta(t)) for t in levels.times[:2])
    a = beta2 / beta if beta else 0.0
    return Row(t=levels.times[0], to=levels.times[1], a=a, b={0: levels.alpha[1]}, c=levels.sigma[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def register(
    name: str,
    compile: Callable[..., Plan],
    order: float,
    paper: str,
    options: Mapping[str, Any] | None = None,
    stages: Stages = one_call_each,
    requires: tuple[str, ...] = (),
    grid: str = "auto",
) -> None:
    """Give a compiled solver a name, under which `unstir.plan` and the command line find it.

    options are fixed for that name, requires are those that a caller must give;
    stages(nfe, blank, clean) says how a budget of calls becomes steps; grid="auto" of a plan is `grid`.
    Names that begin with "field-" are of solvers for vector fields.
    """
    if name in SOLVERS or name in MODEL_SOLVERS or name in FIELD_SOLVERS:
        raise ValueError(f"there is already a solver named {name!r}")
    shelf = FIELD_SOLVERS if name.startswith("field-") else MODEL_SOLVERS if requires else SOLVERS
    shelf[name] = Solver(name, compile, order, paper, stages, dict(options or {}), requires, grid)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().replace("++", "pp") if c.isalnum())


def split_name(name: str) -> tuple[str, str | None]:
    """("DPM++ 2M", "karras") of "DPM++ 2M Karras": AUTOMATIC1111 names the grid after the sampler."""
    if isinstance(name, str):
        for grid in ("karras", "exponential", "polyexponential"):
            head = name[: -len(grid)].rstrip(" _-")
            if name.lower().endswith((" " + grid, "_" + grid, "-" + grid)) and head:
                return head, grid
    return name, None


def find(name: str) -> Solver:
    """The entry called `name`, here or in diffusers, k-diffusion, ComfyUI or AUTOMATIC1111 ("DPM++ 2M", "uni_pc_bh2").

    Case and punctuation do not matter. ValueError names the close ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"solver name is {type(name).__name__}; give a string such as 'dpmpp-3m'")
    known = {_plain(peer): ours for names in ALIASES.values() for peer, ours in names.items()}
    entries = SOLVERS | MODEL_SOLVERS | FIELD_SOLVERS
    known |= {_plain(ours): ours for ours in entries}
    key = _plain(name)
    if key not in known:
        close = [known[k] for k in difflib.get_close_matches(key, known, 3, 0.5)]
        hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else f"known: {', '.join(sorted(entries))}"
        raise ValueError(f"unknown solver {name!r}; {hint}")
    return entries[known[key]]


def compile_plan(
    name: str, process: Process, times: Sequence[float], *, stages: list[int] | None = None, **options: Any
) -> Plan:
    """The plan of a named solver on explicit nodes; its recipe is kept, so `Plan.tail` can compile it again."""
    entry = find(name)
    if missing := [key for key in entry.requires if key not in options]:
        raise ValueError(f"solver {entry.name!r} needs {missing[0]}=, measured on a model (unstir.tune.model_statistics)")
    given = {**entry.options, **options}
    if entry.stages is not one_call_each and stages is not None:
        given["stages"] = stages
    plan = entry.compile(process, times, **given)
    recipe = {"solver": entry.name, "nodes": [float(t) for t in times], "solver_options": options}
    return Plan(plan.rows, plan.process, name=entry.name, options=recipe, order=entry.order, frame=plan.frame)
