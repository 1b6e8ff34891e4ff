"""Cyclic one-way diffusion: one region of a picture survives pixel by pixel, and all the rest grows to suit it.

Noise levels are numbered from 0 (clean) up; three of them matter, t_f < t_1 < t_2. The seed, a picture of which a mask
says what must survive, is taken up by inverting DDIM, and its states s_0 … s_{t_2} are kept. A canvas holding it is taken
up to t_1. Then, C times,

    disturb      jump from t_1 up to t_2 with fresh noise,      X ← (α₂/α₁) X + √(σ₂² − (α₂σ₁/α₁)²) z
    impose       X ← s_l where the mask is 1
    reconstruct  come down from t_2 to t_1 with stochastic rows, and impose after every one

and from t_1 the canvas goes down to 0, imposed once more at t_f. In free rows what is in the region and what is outside
mix both ways; imposing makes it one way, so that with each cycle the outside learns more of the seed.
(Diffusion in Diffusion: Cyclic One-Way Diffusion for Text-Vision-Conditioned Generation, 2024.)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..plan import Plan, sample
from ..plan.hooks import Context
from ..process import Process
from ..solvers import compile_plan, reversed_plan
from ..solvers.transforms import go_up
from .editing import vp_times

CLEAN = 1e-3  # level 0: inversion has to begin above σ = 0


class Impose:
    """A hook on solution values: after the rows of `references`, {row: states (B, *)}, X ← reference where mask is true."""

    def __init__(self, mask: Tensor, references: Mapping[int, Tensor]) -> None:
        self.mask, self.references = mask, dict(references)

    def on_row(self, ctx: Context, x: Tensor) -> Tensor | None:
        known = self.references.get(ctx.index)
        return None if known is None else torch.where(self.mask, known, x)

    def index(self, perm: Tensor) -> None:
        """Particles were resampled: each keeps the references of its parent."""
        self.references = {row: s if len(s) == 1 else s[perm] for row, s in self.references.items()}


class OneWay(NamedTuple):
    """The compiled cycles: the plan, the time of every level from 0 to t_2, and {row: level} of the rows that impose."""

    plan: Plan
    times: list[float]
    imposed: dict[int, int]
    start: int  # t_1


def one_way_plan(
    process: Process,
    nfe: int = 20,
    levels: tuple[float, float, float] = (0.5, 0.7, 0.4),
    cycles: int = 10,
    eta: tuple[float, float] = (1.0, 0.1),
    solver: str = "ddim",
) -> OneWay:
    """The rows of the module: nfe levels uniform in the time of the linear VP process, levels (t_1, t_2, t_f) in shares of it.

    eta: of the rows within a cycle, and of those after. solver: one that takes eta ("ddim", "sde", "dpmpp-2m-sde");
    every way down is compiled by itself, so none reads predictions from before a jump or an edit further up.
    t_f = 0 imposes nothing after the cycles. Raises ValueError unless 0 ≤ t_f ≤ t_1 < t_2 ≤ 1 are levels of their own.
    """
    for name, value, least in (("nfe", nfe, 2), ("cycles", cycles, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    low, high, final = (int(share * nfe + 1e-9) for share in levels)
    if not (0 <= final <= low < high <= nfe and low > 0):
        raise ValueError(f"levels={levels} are the levels {low}, {high}, {final} of {nfe}: need 0 ≤ t_f ≤ t_1 < t_2 ≤ {nfe}")
    if cycles > 1 and eta[0] == 0:
        warnings.warn(f"eta={eta}: without noise on the way down every one of the {cycles} cycles is alike", stacklevel=2)
    t = torch.arange(high + 1, dtype=torch.float64) / nfe
    times = vp_times(process, t.clamp_min(CLEAN))
    rows, imposed = [], {}

    def down(upper: int, lower: int, noise: float, imposing: Sequence[int]) -> None:
        level = upper
        for row in compile_plan(solver, process, times[lower : upper + 1][::-1], eta=noise).rows:
            rows.append(row)
            level -= row.boundary
            if row.boundary and level in imposing:
                imposed[len(rows) - 1] = level

    for _ in range(cycles):
        rows.append(go_up(process, times[low], times[high]))
        imposed[len(rows) - 1] = high
        down(high, low, eta[0], range(low, high))
    down(low, 0, eta[1], [final] if final else [])
    return OneWay(Plan(rows, process, name=f"one-way({solver})", order=1), times, imposed, low)


def climb(model: Any, process: Process, times: Sequence[float], x0: Tensor, **cond: Any) -> list[Tensor]:
    """States of x0 at increasing times by DDIM run upwards, the first being α x0: one forward call a level."""
    states = [float(process.alpha(times[0])) * x0]
    up = reversed_plan(compile_plan("ddim", process, list(times)[::-1]))
    sample(model, up, x=states[0], on_step=lambda step: states.append(step.x), **cond)
    return states


def one_way(
    model: Any,
    seed_image: Tensor,
    mask: Tensor,
    *,
    canvas: Tensor | None = None,
    fill: float = 0.0,
    into: Any = None,
    cycles: int = 10,
    nfe: int = 20,
    levels: tuple[float, float, float] = (0.5, 0.7, 0.4),
    eta: tuple[float, float] = (1.0, 0.1),
    solver: str = "ddim",
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    **cond: Any,
) -> Tensor:
    """Pictures (B, *) under `cond` that keep seed_image (B, *) where mask is true.

    mask: boolean, broadcasting over the pictures.   canvas: what lies around it at the start, by default `fill`, grey.
    into: the model on the way down, if it is not `model`, which inverts: a guided one (`steer.cfg`).
    Other arguments: see `one_way_plan`, which can be printed.

    D is left alone, so nothing is carried; the hook replaces states between rows. Forward calls: t_2 levels for the
    seed, t_1 for the canvas, C (t_2 − t_1) + t_1 down. No backward calls.
    """
    process = getattr(model, "process", None)
    if process is None or process.anchored:
        raise TypeError("one_way needs a model that knows its process (an unstir.Denoiser), without an anchor")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"mask is {getattr(mask, 'dtype', type(mask).__name__)}; give a boolean tensor, true where the seed stays"
        )
    for name, value in {"mask": mask, "canvas": canvas}.items():
        if value is not None and not _fits(value, seed_image):
            raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not fit pictures {tuple(seed_image.shape)}")
    table = one_way_plan(process, nfe, levels, cycles, eta, solver)
    grey = torch.full_like(seed_image, fill)
    known = climb(model, process, table.times, torch.where(mask, seed_image, grey), **cond)
    around = torch.where(mask, seed_image, grey if canvas is None else canvas)
    start = climb(model, process, table.times[: table.start + 1], around, **cond)[-1]
    hook = Impose(mask, {row: known[level] for row, level in table.imposed.items()})
    down = model if into is None else into
    x = sample(down, table.plan, x=start, hooks=hook, seed=seed, index=index, **cond)
    return x / float(process.alpha(table.plan.end))


def _fits(value: Tensor, images: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(value.shape, images.shape) == images.shape
    except RuntimeError:
        return False
