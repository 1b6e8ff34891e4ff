"""DDS2M: Self-Supervised Denoising Diffusion Spatio-Spectral Model for Hyperspectral Image Restoration (2023).

For people in remote sensing with ONE degraded hyperspectral cube (noise, missing entries, low resolution) and no training
data at all. The chain of a diffusion model carries the cube from noise to data; in the place of a trained denoiser is an
untrained generator of low rank that learns the chain's own state, one step a row:

    D(x, t) ← average of g(θ),   θ ← Adam(∇ mean |α g(θ) − x|²),   g(θ) = 2 Σ_r U_r v_r − 1

and the rows of DDRM, in the singular basis of the measurement, put the data into the state:

    x̄' = ȳ + √(σ̂'² − σ_y²/s²) z    where s > 0 and σ̂' ≥ σ_y/s,    D̄ and noise of share η elsewhere.

Down to σ̂' = σ_y the generator is fitted to y under fresh noise in every row, and where nothing was measured to its own
average; below, to its average alone. So it stops before it knows the noise of y by heart, as it does in the end when it is
fitted to y itself (deep image prior).

Parts: `unstir.nets.low_rank`, `unstir.steer.SelfTrained`, `unstir.steer.posterior(…, "ddrm")`. `restore` is for your cube.
It is for cubes with gaps or of half the size; where every entry was measured, try the truncated singular value decomposition
first. With few updates D, an average of the last 1/(1 − ema) outputs, lags behind a generator that still learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._random import normal
from ..evaluate import error_plot, labelled_rows, save_png
from ..nets.low_rank import LowRank, low_rank
from ..plan import Plan, sample
from ..process import from_betas
from ..solvers import compile_plan
from ..steer import SelfTrained, ValueRange, operators, posterior
from ._cubes import VIEWS, check_values, halve, observed, scene, views
from ._cubes import Scaling as Scaling  # for users of `restore`
from ._cubes import quantile_scaling as quantile_scaling
from ._digits import report
from ._restore import psnr
from .protocol import Result, at_least

UNITS = ValueRange(0, 1, -1, 1)  # of cubes and of the model
OnStep = Callable[[int, Tensor], None]


class Task(NamedTuple):
    """T levels whose betas run from 1e-4 to 5e-3 and η, the share of noise in what is not seen, both as published.

    rows and start make it short: 1000 updates from the published level on, for completion from higher up.
    """

    levels: int
    eta: float
    rows: int
    start: int


TASKS = {
    "completion": Task(3000, 0.95, 1500, 500),
    "denoise": Task(2000, 1.0, 2000, 1000),
    "sr2": Task(1000, 0.95, 2000, 1000),
}


# -- the parts ------------------------------------------------------------------------------------------------------
def chain(task: str, rows: int | None = None, start: int | None = None) -> Plan:
    """The last rows − start rows of a chain of `rows` levels, whose Σβ is the published one of the task; it ends at σ = 0.

    β_n runs from 1e-4 T/rows to 5e-3 T/rows. The first `start` levels, at which nothing can be learned, are left out (as
    published they run with D = x, which only carries noise): with 500 of 1500, completion starts at σ̂ = 5.6. By default
    both are those of `TASKS`.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; one of {', '.join(TASKS)}")
    rows, start = TASKS[task].rows if rows is None else rows, TASKS[task].start if start is None else start
    stretch = TASKS[task].levels / rows if rows > 0 else math.inf
    if not 5e-3 * stretch < 0.9:
        raise ValueError(f"rows={rows} must be at least {math.ceil(TASKS[task].levels * 5e-3 / 0.9) + 1} for task={task!r}")
    if not 0 <= start < rows:
        raise ValueError(f"start={start} must lie in [0, rows={rows}): that many levels are left out")
    process = from_betas(torch.linspace(1e-4, 5e-3, rows, dtype=torch.float64) * stretch)
    return compile_plan("ddim", process, [n / rows for n in range(rows - start, -1, -1)])


def descend(net: LowRank, operator: Any, y: Tensor, noise: float, plan: Plan, eta: float, **options: Any) -> Tensor:
    """The restored cube (1, S, H, W) in [−1, 1]: y = A x + σ_y n and an untrained generator through the rows of DDRM.

    options: ema and rate of `SelfTrained`; seed of the rows' noise; on_step(number of the row, D).
    """
    seed, on_step = options.pop("seed", 0), options.pop("on_step", None)
    model = SelfTrained(net, plan.process, clip=(-1.0, 1.0), **options)
    guided = posterior(model, operator, y, "ddrm", noise, eta=eta)
    watch = None if on_step is None else (lambda step: on_step(step.index + 1, step.data))
    return sample(guided, plan, shape=1, seed=seed, on_step=watch, device=y.device)


def deep_image_prior(
    net: LowRank, operator: Any, y: Tensor, updates: int, rate: float, on_step: OnStep | None = None
) -> Tensor:
    """The baseline: the same generator fitted to the measurement itself, θ ← Adam(∇ mean |A g(θ) − y|²); the last g(θ).

    on_step(number of the update, g(θ)).   (Deep Image Prior, 2018.)
    """
    adam = torch.optim.Adam(net.parameters(), rate, fused=True)
    for i in range(updates):
        made = net()
        loss = (operator.A(made) - y).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if on_step is not None:
            on_step(i + 1, made.detach())
    with torch.no_grad():
        return net()


# -- for a user's cube ----------------------------------------------------------------------------------------------
def restore(
    cube: Any,
    *,
    noise: float,
    mask: Any = None,
    task: str | None = None,
    rank: int | None = None,
    rows: int | None = None,
    start: int | None = None,
    eta: float | None = None,
    rate: float = 5e-3,
    ema: float = 0.95,
    width: int = 24,
    scales: int = 3,
    seed: int = 0,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> np.ndarray:
    """One hyperspectral cube restored from itself alone:

        from unstir.systems import dds2m

        raw = np.load("scene.npy").astype(float)               # (H, W, S), any sizes; NaN where nothing was measured
        seen = np.isfinite(raw)
        scaling = dds2m.quantile_scaling(raw, seen)             # reflectances or counts to [0, 1], band by band
        clean = dds2m.restore(scaling.unit(raw), mask=seen, noise=0.1)
        np.save("clean.npy", scaling.back(clean))

    cube: (H, W, S) with values in [0, 1] but for noise, an array or a tensor. What the mask leaves out is not read.
    noise: σ_y, the standard deviation of the noise in these units. 0 keeps what was measured to the last digit.
    mask: True where the cube was measured, (H, W, S), or (H, W) for all bands.
    task: "completion" (the default with a mask), "denoise" (without one), or "sr2": the cube is the bicubic half of what is
        wanted, which is (2 H, 2 W, S).
    rank: R, the number of maps and spectra; by default 10, or S if that is less. The scene's own rank is best.
    rows, start: of `chain`; rows − start updates are made, by default 1000; with 200 the scene of `reproduce` loses 1.5 dB.
    eta: share of noise in what is not seen, by default the published one of the task.
    rate, ema: of `SelfTrained`.   width, scales: of the generator (`nets.low_rank`).
    seed: of generator and noise.   on_step: called with (row, D (1, S, H, W) in [−1, 1]).

    Returns (H, W, S), float32, in [0, 1] (but for measured values, if noise=0).

    Raises ValueError for a band of which nothing was measured, for NaN and values far outside of [0, 1] among what was, for
    a rank the cube cannot have, and for start ≥ rows.
    """
    task = task or ("denoise" if mask is None else "completion")
    plan = chain(task, rows, start)
    if task != "completion" and mask is not None:
        raise ValueError(f"task={task!r} takes no mask; a cube with missing entries is for task='completion'")
    if not (isinstance(noise, Real) and math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise={noise!r} must be a finite number of at least 0, the standard deviation in units of [0, 1]")
    if task == "denoise" and noise == 0:
        raise ValueError("noise=0 leaves nothing to do for task='denoise'; give the standard deviation in units of [0, 1]")
    seen = observed(cube, mask)
    values = np.where(seen, np.asarray(cube, dtype=np.float64), 0.0)
    check_values(values, seen, float(noise))
    y = torch.as_tensor(values, dtype=torch.float32, device=device).permute(2, 0, 1)[None]
    bands, high, wide = y.shape[1:]
    if task == "sr2":
        high, wide = 2 * high, 2 * wide
        operator = halve(high, wide)
    else:
        operator = operators.mask(torch.as_tensor(seen.copy()).permute(2, 0, 1))
    net = low_rank((bands, high, wide), min(10, bands) if rank is None else rank, width, scales, seed=seed).to(device)
    problem = UNITS.problem(operator, y, float(noise), y.new_zeros(1, bands, high, wide))
    x = descend(
        net, operator, problem.y, problem.noise, plan, TASKS[task].eta if eta is None else eta,
        rate=rate, ema=ema, seed=seed, on_step=on_step,
    )  # fmt: skip
    return UNITS.user(x)[0].permute(1, 2, 0).cpu().numpy()


# -- the claim ------------------------------------------------------------------------------------------------------
NOISE, RATE, EMA = 0.1, 5e-3, 0.95
OURS, THEIRS = "DDS2M", "deep image prior"
REMARK = """With gaps the chain is worth a decibel, and it knows when to stop. Where every entry was measured the low rank alone
holds the noise off: in so few updates the generator does not learn it by heart, more of them help either method, and the plain
singular value decomposition is better than both."""


class Compared(NamedTuple):
    """Both methods on one measurement: decibels by name, errors on the way (`_thin`), cubes (1, S, H, W) in [0, 1]."""

    scores: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    cubes: dict[str, Tensor]


def compare(x: Tensor, task: str, keep: Tensor, rank: int, plan: Plan, updates: tuple[int, int]) -> Compared:
    """x (1, S, H, W) in [−1, 1] with noise, restored by `plan` and by the deep image prior with either number of updates.

    Generator, optimiser, rate and first θ are the same. "at its best": the best output the prior ever had, which nobody can
    pick who does not know x. "averaged": its outputs averaged as those of DDS2M are. Of a complete cube also what the
    truncated singular value decomposition of the same rank makes.
    """
    operator = operators.mask(keep)
    y = operator.A(x + 2 * NOISE * normal(tuple(x.shape), seed=7, device=x.device))
    track: dict[str, list[float]] = {OURS: [], THEIRS: [], "averaged": []}
    mean = [x.new_zeros(())]

    def watch(i: int, made: Tensor) -> None:
        mean[0] = made if i == 1 else EMA * mean[0] + (1 - EMA) * made
        track[THEIRS].append(_decibels(made, x))
        track["averaged"].append(_decibels(mean[0], x))

    ours = descend(
        low_rank(x.shape[1:], rank).to(x.device), operator, y, 2 * NOISE, plan, TASKS[task].eta,
        rate=RATE, ema=EMA, on_step=lambda i, made: track[OURS].append(_decibels(made, x)),
    )  # fmt: skip
    theirs = deep_image_prior(low_rank(x.shape[1:], rank).to(x.device), operator, y, max(updates), RATE, watch)

    seen = keep.to(y)
    filled = torch.where(seen > 0, y, y.sum((2, 3), keepdim=True) / seen.sum((1, 2), keepdim=True))
    scores = {"measured, gaps at the mean of the band": _decibels(filled, x)}
    if bool(keep.all()):
        u, s, v = torch.linalg.svd(y[0].flatten(1) + 1, full_matrices=False)
        scores["singular value decomposition"] = _decibels(((u[:, :rank] * s[:rank]) @ v[:rank] - 1).reshape(x.shape), x)
    for n in updates:
        scores[f"{THEIRS}, {n} updates"] = track[THEIRS][n - 1]
        scores[f"{THEIRS}, {n} updates, averaged"] = track["averaged"][n - 1]
    scores |= {f"{THEIRS}, at its best": max(track[THEIRS]), OURS: _decibels(ours, x)}
    curves = {name: _thin(track[name]) for name in (OURS, THEIRS)}
    cubes = {"measured": UNITS.user(y) * seen, OURS: UNITS.user(ours), THEIRS: UNITS.user(theirs)}
    return Compared(scores, curves, cubes)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """30 % of the entries of a real cube with noise 0.1, and all of them with noise 0.1, beside the deep image prior.

    48 × 48 pixels, 16 bands, R = 5; 1000 updates, the deep image prior also 3000. large: 96 × 96 pixels, 20 bands, R = 10,
    all updates doubled.
    """
    truth = torch.as_tensor(scene(96, 20) if large else scene(), dtype=torch.float32, device=device).permute(2, 0, 1)[None]
    x, rank, k = UNITS.model(truth), 10 if large else 5, 2 if large else 1
    shape, updates = tuple(x.shape[1:]), (1000 * k, 3000 * k)
    keep = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    masks = {"completion": keep, "denoise": torch.ones(shape)}
    plans = {task: chain(task, k * TASKS[task].rows, k * TASKS[task].start) for task in masks}
    found = {task: compare(x, task, mask, rank, plans[task], updates) for task, mask in masks.items()}

    def over(task: str, other: str) -> float:
        return found[task].scores[OURS] - found[task].scores[f"{THEIRS}, {other}"]

    first, last = (f"{n} updates" for n in updates)
    claims = [
        at_least(f"30 % of the entries: over the deep image prior of {first}, dB", over("completion", first), 0.8),
        at_least(f"30 % of the entries: over the deep image prior of {last}, dB", over("completion", last), 1.0),
        at_least("30 % of the entries: over the deep image prior at its best, dB", over("completion", "at its best"), -0.4),
    ]
    about = f"Indian Pines, {shape[1]} × {shape[2]} pixels, {shape[0]} bands scaled to [0, 1], noise {NOISE}, rank {rank}."
    page = report("DDS2M", about, claims)
    names = dict.fromkeys(name for c in found.values() for name in c.scores)
    rows = [[name, *(c.scores.get(name) for c in found.values())] for name in names]
    page.table(rows, ["method", *found], best=dict.fromkeys(found, "max"), caption="PSNR in dB.").text(REMARK)
    for task, c in found.items():
        plot = error_plot(c.curves, xlabel="updates", ylabel="RMSE (0.1 is a PSNR of 20 dB)")
        (out / f"psnr-{task}.svg").write_bytes(plot)
        sheet = labelled_rows({name: views(cube) for name, cube in {"truth": truth, **c.cubes}.items()}, 3, (0, 1), VIEWS)
        save_png(sheet, out / f"{task}.png")
        page.picture(sheet, f"{task}: the deep image prior after {last}.").plot(plot, f"{task}: PSNR on the way.")
    page.save(out / "report.html")
    return Result(claims, {"PSNR": {task: c.scores for task, c in found.items()}})


def _decibels(made: Tensor, x: Tensor) -> float:
    """PSNR in dB of the whole cube, values clipped to the range."""
    return psnr(made.clamp(-1, 1), x)


def _thin(values: list[float], points: int = 25) -> list[tuple[int, float]]:
    """(update, RMSE of values in [0, 1]) at about `points` places, evenly on a logarithmic axis: PSNR = −20 log10 RMSE."""
    places = sorted({round(v) for v in np.geomspace(10, len(values), points)})
    return [(i, 10 ** (-values[i - 1] / 20)) for i in places]
