"""A schedule: one plan, cut into the iterations of a pipeline. Immutable, so any number of runs may share it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from ...plan.plan import Plan
from ...plan.row import Row
from ...process import Flow, Process, shifted
from ...solvers import compile_plan, find, make_grid
from .convention import Convention, convention, like_of
from .nodes import Nodes, nodes_of, shift
from .peers import own_solver

Config = Mapping[str, Any]
SAME = 1e-7  # relative distance below which two nodes are one (users' sigmas are float32)


class Turn(NamedTuple):
    """One iteration of a pipeline's loop: a row with a call, and the rows without one that follow it.

    D = m x + n raw; scale: of the network's input; release: rows whose F nobody reads any more.
    """

    number: int
    row: Row
    after: tuple[Row, ...]
    m: float
    n: float
    scale: float | None
    release: list[int]


@dataclass(frozen=True)
class Recipe:
    """How a plan was compiled: enough to compile its tail. starts: {row number: node it starts from}."""

    solver: str
    options: dict[str, Any]
    times: list[float]
    stages: list[int] | None
    starts: dict[int, int]


@dataclass(frozen=True)
class Schedule:
    """What `set_timesteps` makes: a plan, the label of every iteration, and how its network speaks."""

    plan: Plan
    labels: list[float]
    convention: Convention
    recipe: Recipe | None = None

    def __deepcopy__(self, memo: Any) -> Schedule:
        return self  # immutable

    @cached_property
    def turns(self) -> list[Turn]:
        return turns_of(self.plan, self.convention)

    @cached_property
    def times(self) -> list[float]:
        """The time of the state that every iteration starts from, and of the end.

        A learned row may tell the network another time than its state's, which is where the row before it led.
        """
        rows = self.plan.rows
        return [float(rows[turn.number - 1].to if turn.number else turn.row.t) for turn in self.turns] + [self.plan.end]

    def begin(self, k: int) -> list[Turn]:
        """The iterations of a run that starts at iteration k, without history; the first k are not in it.

        The solver is compiled again on the nodes that are left (as a fresh start, its first step is of
        order 1). Before the next node, and for a plan without a recipe, the rows are kept and the weight
        of an F that does not exist falls on the newest: constant data land on α all the same.
        """
        if k == 0:
            return self.turns
        if not 0 < k < len(self.turns):
            raise ValueError(f"begin_index={k} must lie in 0 … {len(self.turns) - 1}, the iterations of this schedule")
        first = self.turns[k].number
        rows = self.plan.rows
        if self.recipe is None:
            return turns_of(Plan(rooted(rows, first), self.plan.process), self.convention)
        known = sorted(self.recipe.starts)
        at = bisect.bisect_left(known, first)
        stop = known[at] if at < len(known) else len(rows)
        table = rooted(rows[:stop], first)
        if stop < len(rows):
            j = self.recipe.starts[stop]
            stages = self.recipe.stages
            tail = compile_nodes(
                replace(self.recipe, times=self.recipe.times[j:], stages=stages and stages[j:]), self.plan.process
            )
            table += tail[0].rows
        return turns_of(Plan(table, self.plan.process), self.convention)


def rooted(rows: Sequence[Row], first: int) -> list[Row]:
    """rows[first:] as a table of their own; what it would read from before `first` is read from the newest F."""
    out = []
    for i, row in enumerate(rows[first:]):
        if row.momentum and i == 0:
            raise ValueError("this plan has momentum (s ≠ 0) and cannot begin in its middle; compile one for the shorter run")
        lost = [lag for lag in row.b if lag > i]
        if lost:
            b = {lag: w for lag, w in row.b.items() if lag <= i}
            newest = 0 if row.evaluate else min(b, default=1)
            b[newest] = b.get(newest, 0.0) + sum(row.b[lag] for lag in lost)
            row = replace(row, b=b)
        out.append(row)
    return out


def turns_of(plan: Plan, convention: Convention) -> list[Turn]:
    """The plan's rows, grouped by call, with the numbers that turn a raw output into D."""
    called = [i for i, row in enumerate(plan.rows) if row.evaluate]
    for i, row in enumerate(plan.rows):
        if row.kwargs:
            raise ValueError(f"row {i} gives the network {', '.join(row.kwargs)}; a pipeline's loop has no way to pass it on")
        if not isinstance(row.t, float) or not isinstance(row.to, float):
            raise ValueError(f"row {i} has a time per sample; a pipeline's loop tells all samples the same time")
    if called[:1] != [0]:
        raise ValueError("the plan begins with a row without a call; a pipeline calls its network first")
    m, n, scale = convention.decode(torch.tensor([plan.rows[i].t for i in called], dtype=torch.float64))
    scales = [None] * len(called) if scale is None else scale.tolist()
    out = []
    for place, i in enumerate(called):
        stop = called[place + 1] if place + 1 < len(called) else len(plan.rows)
        release = [old for r in range(i, stop) for old in plan.releases[r]]
        out.append(Turn(i, plan.rows[i], plan.rows[i + 1 : stop], float(m[place]), float(n[place]), scales[place], release))
    return out


# -- making one ------------------------------------------------------------------------------------------------
def make_schedule(
    config: Config,
    n: int | None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
    plan: Plan | None = None,
) -> Schedule:
    """The schedule of a config for n iterations, or on given nodes; see `PlanScheduler.set_timesteps`."""
    heard = convention(config)
    if plan is not None:
        if timesteps is not None or sigmas is not None:
            raise ValueError("timesteps= and sigmas= have no effect on a given plan, whose rows are fixed")
        if n is not None and n != len(plan):
            raise ValueError(
                f"num_inference_steps={n}, but the plan has {len(plan)} calls: pass num_inference_steps={len(plan)}"
            )
        return finish(plan, heard.on(plan.process), {})
    given = timesteps if timesteps is not None else sigmas
    if given is not None:
        n = len(given)
    assert n is not None
    solver, options = config.get("solver", "auto"), dict(config.get("solver_options") or {})
    own = solver == "config"
    if own:
        solver, implied = own_solver(config, n)
        options = {**implied, **options}
    entry, grid = find(solver), config.get("grid", "config")

    def nodes(steps: int) -> Nodes:
        if grid == "config" or given is not None:
            return nodes_of(config, heard, steps, timesteps, sigmas, mu)
        return own_nodes(grid, config, heard, steps, mu)

    found, stages = nodes(n), None
    if given is None and not own:  # n counts calls; a peer's own n counts its steps
        process = heard.process
        blank, clean = float(process.alpha(found.times[0])) == 0, float(process.sigma(found.times[-1])) == 0
        stages = entry.stages(n, blank, clean)
        found = found if len(stages) == n else nodes(len(stages))
    plan, starts = compile_nodes(Recipe(entry.name, options, found.times, stages, {}), heard.process)
    told = dict(zip(found.times, found.labels, strict=False))
    return finish(plan, heard, told, Recipe(entry.name, options, found.times, stages, starts))


def own_nodes(grid: Any, config: Config, heard: Convention, n: int, mu: float | None) -> Nodes:
    """Nodes by one of our grids, from t = 1 to σ = 0; a flow's shift applies to its times."""
    if heard.family == "flow":
        process: Process = shifted(Flow(), shift(config, mu))
        times = process.sigma(torch.tensor(make_grid(grid, process, n, 1.0, 0.0), dtype=torch.float64)).tolist()
    else:
        times = make_grid(grid, heard.process, n, 1.0, 0.0)
    return Nodes(times, heard.label(torch.tensor(times[:-1], dtype=torch.float64)).tolist())


def finish(plan: Plan, heard: Convention, told: Mapping[float, float], recipe: Recipe | None = None) -> Schedule:
    """The schedule of a plan; told: labels of nodes that are not the process's own."""
    times = [row.t for row in plan.rows if row.evaluate]
    own = heard.label(torch.tensor([float(t) for t in times], dtype=torch.float64)).tolist()
    labels = [told.get(t, label) for t, label in zip(times, own, strict=True)]
    # (n + 1)/T · T − 1 is an integer up to rounding
    return Schedule(plan, [float(round(x)) if abs(x - round(x)) < 1e-6 else x for x in labels], heard, recipe)


def compile_nodes(recipe: Recipe, process: Process) -> tuple[Plan, dict[int, int]]:
    """(plan, {row: place in recipe.times of the node it starts from}); a step between equal nodes does nothing."""
    times, distinct, places = recipe.times, [], []
    for place, t in enumerate(times):
        if not math.isfinite(t) or (distinct and t > distinct[-1] * (1 + SAME)):
            raise ValueError(f"the noise levels must decrease; node {place} (t = {t:g}) follows t = {times[place - 1]:g}")
        if distinct and distinct[-1] > 0 and t > distinct[-1] * (1 - SAME):
            places[-1] = place
        else:
            distinct.append(t)
            places.append(place)
    stages, idle = recipe.stages, len(times) - len(distinct)
    if idle and stages is not None:
        stages = [stages[place] for place in places[:-1]]
    rows: list[Row] = []
    starts: dict[int, int] = {}

    def wait(upto: int) -> None:
        """Rows for the equal nodes before place `upto`: called, but X' = X."""
        passed = len(starts) and max(starts.values()) + 1
        rows.extend(Row(t=times[upto], to=times[upto], a=1.0) for _ in range(upto - passed))

    if len(distinct) == 1:
        return Plan([Row(t=t, to=t, a=1.0) for t in times[1:]], process, name=recipe.solver), {}
    compiled = compile_plan(recipe.solver, process, distinct, stages=stages, **recipe.options)
    if not idle:
        firsts = [i for i in range(len(compiled.rows)) if i == 0 or compiled.rows[i - 1].boundary]
        return compiled, dict(zip(firsts, places, strict=False))
    moved: list[int] = []
    for i, row in enumerate(compiled.rows):
        if i == 0 or compiled.rows[i - 1].boundary:
            place = places[min(len(starts), len(places) - 1)]
            wait(place)
            starts[len(rows)] = place
        moved.append(len(rows))
        rows.append(replace(row, b={len(rows) - moved[i - lag]: w for lag, w in row.b.items()}))
    wait(len(times) - 1)
    return Plan(rows, process, name=compiled.name, order=compiled.order), starts


def keeps_noise(config: Config) -> bool:
    """Does clipping change only the data prediction (DDIM), or the noise estimate with it (everybody else)?"""
    return config.get("solver") == "config" and like_of(config) in ("DDIM", "DDIMParallel")
