"""Solvers compile a process and a grid to a plan; they never see a network or a tensor of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plan.plan import Plan
from ..process import Process
from . import catalogue  # noqa: F401  (fills the register)
from .adams import deis, ghvb, heavy_ball, ipndm, plms
from .adaptive import Adaptive, LangevinCorrected
from .analyse import Analysis, analyse, stability_interval, stability_region
from .bridge import bridge, refined, reverse_diffusion
from .corrected import auto, er_sde, flow_adams, sa_solver, unipc
from .ems import Statistics, ems_multistep
from .field import DIFFUSIONS, field_plan
from .grids import GRIDS, Grid, make_grid
from .invertible import inverse, invertible, two_step
from .levels import Levels, phi
from .multistep import multistep
from .onestep import ddim, ddpm, renoise, sde
from .pndm import pndm
from .registry import FIELD_SOLVERS, MODEL_SOLVERS, SOLVERS, Solver, compile_plan, compiler, find, register, split_name
from .singlestep import dpmpp_sde, exp_rk, fast_orders, rho_rk
from .transforms import churn, corrected, restart, reversed_plan


def plan(
    name: str = "auto",
    process: Process | Any = None,
    nfe: int | None = None,
    grid: str | Grid | Sequence[float] = "auto",
    start: float = 1.0,
    end: float = 0.0,
    grid_options: dict[str, float] | None = None,
    **options: Any,
) -> Plan:
    """Compile a named solver to a plan of exactly `nfe` network calls.

    name: see `unstir.solvers.SOLVERS`, or what another tool calls it, with its grid if it has one ("DPM++ 2M Karras");
        "auto" is the measured default (docs/results/auto.md).
    process: a process, or a denoiser, whose process is used.
    grid: a name of `GRIDS`, "auto", a function (process, n, start, end), or the nodes themselves
        (then nfe may be left out).
    start, end: times in [0, 1]; end = 0 is clean data, where the last row returns D exactly.
    options: of the solver, such as eta or order.
    """
    model, process = process, getattr(process, "process", process)
    if not isinstance(process, Process):
        raise TypeError(f"process is {type(process).__name__}; give an unstir.process.Process or a denoiser")
    if name == "auto" and process.anchored and getattr(model, "sees_anchor", True) is False:
        name = "bridge"  # the one step that a network which does not see the anchor allows
    name, named_grid = split_name(name)
    grid = named_grid if named_grid and grid == "auto" else grid
    entry = find(name)
    grid = entry.grid if isinstance(grid, str) and grid == "auto" else grid
    if nfe is None:
        if isinstance(grid, str) or callable(grid):
            raise ValueError("give nfe=, the number of network calls (or grid= with the nodes themselves)")
        nodes = [float(t) for t in grid]
        return compile_plan(entry.name, process, nodes, **options)
    nfe = int(nfe) if isinstance(nfe, np.integer) else nfe
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ValueError(f"nfe={nfe!r} must be an integer of at least 1, the number of network calls")
    stages = entry.stages(nfe, float(process.alpha(start)) == 0, float(process.sigma(end)) == 0)
    nodes = make_grid(grid, process, len(stages), start, end, **(grid_options or {}))
    return compile_plan(entry.name, process, nodes, stages=stages, **options)


__all__ = [
    "DIFFUSIONS",
    "FIELD_SOLVERS",
    "GRIDS",
    "MODEL_SOLVERS",
    "SOLVERS",
    "Adaptive",
    "Analysis",
    "LangevinCorrected",
    "Levels",
    "Solver",
    "Statistics",
    "analyse",
    "auto",
    "bridge",
    "churn",
    "compile_plan",
    "compiler",
    "corrected",
    "ddim",
    "ddpm",
    "deis",
    "dpmpp_sde",
    "ems_multistep",
    "er_sde",
    "exp_rk",
    "fast_orders",
    "field_plan",
    "find",
    "flow_adams",
    "ghvb",
    "heavy_ball",
    "inverse",
    "invertible",
    "ipndm",
    "make_grid",
    "multistep",
    "phi",
    "plan",
    "plms",
    "pndm",
    "refined",
    "register",
    "renoise",
    "restart",
    "reverse_diffusion",
    "reversed_plan",
    "rho_rk",
    "sa_solver",
    "sde",
    "split_name",
    "stability_interval",
    "stability_region",
    "two_step",
    "unipc",
]
