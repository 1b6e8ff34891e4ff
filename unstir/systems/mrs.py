"""MR Sampler: MRS: A Fast Sampler for Mean Reverting Diffusion based on ODE and SDE Solvers (2025).

For people who own a mean-reverting restorer (IR-SDE, Refusion, DA-CLIP) and want 5 to 20 network calls instead of 100.

    dx = θ (y − x) dt + σ∞ √(2θ) dw     ⇒     u = x − (1 − α) y = α x0 + σ z is an ordinary diffusion

so the paper's solvers are those of the catalogue on u, of any order, in data and noise form, for the ODE and the SDE:

    ODE order 1, 2, 3   "ddim", "ab-2", multistep(order=3, kind="taylor")        (form="noise": the other form)
    SDE order 1, 2      "sde", "dpmpp-2m-sde-heun"

and a mean-reverting restorer is a conditional VP model of data divided by σ∞. The published reference samplers on few steps
("posterior", Euler) keep the coefficients of ONE fine step while the next call is many steps away: see `strided`.

Parts: `process.MeanReverting`, any plan, a network that sees y. `mean_reverting_plan` has the paper's defaults.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..evaluate import error_plot, frechet, labelled_rows, save_png
from ..plan import Plan, Row, sample
from ..process import MeanReverting
from ..solvers import multistep
from ._digits import report
from ._pairs import PairNet, digit_pairs, psnr, trained, untrained
from .protocol import Result, at_most

PROCESS = MeanReverting("cosine", sigma_inf=100 / 255, levels=100, first="keep")
SIGMA_DATA = 0.752  # of the pixels
RECIPE = 1  # part of the cache's name: raise it when the network or its training changes


def mean_reverting_plan(
    process: MeanReverting, nfe: int = 20, *, order: int = 2, kind: str = "sde", form: str = "data", clean: bool = False
) -> Plan:
    """The paper's sampler of `nfe` calls on a grid uniform in λ, ending at the process's first level (clean: at t = 0).

    kind: "ode" (order 1, 2 or 3) or "sde" (order 1 or 2).   form: "data" or "noise".
    """
    if kind not in ("ode", "sde"):
        raise ValueError(f"kind={kind!r} must be 'ode' or 'sde'")
    if order not in ((1, 2, 3) if kind == "ode" else (1, 2)):
        raise ValueError(f"order={order} must be 1, 2 or, for the ODE only, 3")
    nodes = grid(process, nfe - clean) + [0.0] * clean
    plan = multistep(process, nodes, order=order, form=form, kind="taylor", eta=float(kind == "sde"))
    return Plan(plan.rows, process, name=f"mrs-{kind}-{order}-{form}", order=order)


def grid(process: MeanReverting, nfe: int) -> list[float]:
    """nfe + 1 times uniform in λ from t = 1 to the first level."""
    last = 1 / process.levels
    low, high = process.logsnr(torch.tensor([1.0, last], dtype=torch.float64)).tolist()
    inner = process.time(torch.linspace(low, high, nfe + 1, dtype=torch.float64)).tolist()
    return [1.0, *inner[1:-1], last]


def strided(process: MeanReverting, nfe: int, method: str = "posterior") -> Plan:
    """The reference code on `nfe` of the T levels: coefficients of the step from a level to the next finer one, but the state
    is then taken to be that of the next node. method: "posterior" or "euler" (reverse SDE); right for nfe = T only.
    """
    labels = np.linspace(process.levels - 1, 0, nfe + 1).round().astype(int)
    rows = []
    for label, following in pairwise(labels):
        t, finer, to = ((n + 1) / process.levels for n in (label, label - 1, following))
        if method == "posterior":
            a, b, c = (float(v) for v in process.posterior(finer, t))
        else:
            step, f, variance = t - finer, float(process.f(finer + 1e-9)), float(process.g(finer + 1e-9)) ** 2
            push = variance * step / float(process.sigma(t)) ** 2
            a, b, c = 1 - f * step - push, push * float(process.alpha(t)), (variance * step) ** 0.5
        rows.append(Row(t=t, to=to, a=a, b={0: b}, c=c))
    return Plan(rows, process, name=f"strided-{method}", frame="residual" if method == "euler" else "centred")


def network(folder: Path, steps: int, device: str = "cpu", seed: int = 0) -> Denoiser:
    """A restorer of digits from their 2 × 2 means: log σ̂ ~ N(−0.4, 1.4²), EDM's weight, batch 192, rate 2e-3."""
    model = untrained(PairNet, PROCESS, "edm", time="c_noise", frame="centred", sigma_data=SIGMA_DATA, shape=(1, 8, 8))
    return trained(
        model, digit_pairs()[0], folder / f"mrs-v{RECIPE}-{steps}-{seed}.safetensors", steps, device=device,
        batch=192, schedule="linear", warmup=0, seed=seed, process="mean-reverting", levels="lognormal:-0.4,1.4", ema=0.995,
    )  # fmt: skip


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Digits restored from a quarter of their pixels: what 10 calls give, against 100 and against the strided baselines.

    large: a network trained for 8000 steps instead of 1657.
    """
    model = network(out.parent, 8000 if large else 1657, device)
    test = digit_pairs()[1]
    x, y = test.all().to(device), test.anchors(range(len(test))).to(device)

    def run(plan: Plan, seed: int = 0) -> Tensor:
        return sample(model, plan, anchor=y, seed=seed)

    full = mean_reverting_plan(PROCESS, 100, order=1)
    plans = {
        "SDE-2 data": lambda n: mean_reverting_plan(PROCESS, n),
        "SDE-1 data": lambda n: mean_reverting_plan(PROCESS, n, order=1),
        "SDE-2 noise": lambda n: mean_reverting_plan(PROCESS, n, form="noise"),
        "ODE-1 data": lambda n: mean_reverting_plan(PROCESS, n, order=1, kind="ode"),
        "ODE-2 data": lambda n: mean_reverting_plan(PROCESS, n, kind="ode"),
        "ODE-3 data": lambda n: mean_reverting_plan(PROCESS, n, order=3, kind="ode"),
        "strided posterior": lambda n: strided(PROCESS, n),
        "strided Euler": lambda n: strided(PROCESS, n, "euler"),
    }
    budgets = (5, 10, 20)
    found = {name: {n: run(make(n)) for n in budgets} for name, make in plans.items()}
    whole = {
        "posterior, 100": run(strided(PROCESS, 100)),
        "Euler, 100": run(strided(PROCESS, 100, "euler")),
        "SDE-1, 100 in λ": run(full),
    }
    distance = {name: {n: _distance(x, v) for n, v in row.items()} for name, row in found.items()}
    far = {name: _distance(x, v) for name, v in whole.items()}
    reference = run(mean_reverting_plan(PROCESS, 400, kind="ode"))
    ode = {
        name: {n: float((found[name][n] - reference).square().mean().sqrt()) for n in budgets}
        for name in plans
        if name.startswith("ODE")
    }
    ten = {name: row[10] for name, row in distance.items()}
    claims = [
        at_most(
            "10 calls: Fréchet distance of SDE-2, against 1.15 of 100 steps", ten["SDE-2 data"], 1.15 * far["posterior, 100"]
        ),
        at_most("10 calls: SDE-2 against 0.3 of the strided posterior", ten["SDE-2 data"], 0.3 * ten["strided posterior"]),
        at_most("10 calls: SDE-2 in data form against ½ of noise form", ten["SDE-2 data"], 0.5 * ten["SDE-2 noise"]),
        at_most(
            "20 calls: distance of ODE-2 to the exact path, against ½ of ODE-1",
            ode["ODE-2 data"][20],
            ode["ODE-1 data"][20] / 2,
        ),
    ]

    page = report(
        "Mean-reverting restoration in a few calls",
        f"{len(x)} digits that the network has not seen, restored from the means of 2 × 2 pixels. "
        f"{PROCESS!r}, times uniform in λ.",
        claims,
    )
    rows = [[name, *(row[n] for n in budgets)] for name, row in distance.items()]
    rows += [[name, None, None, value] for name, value in far.items()]
    page.table(
        rows,
        ["plan", *(f"{n} calls" for n in budgets)],
        caption="Fréchet distance to the true digits (those of 100 calls in the last column).",
    )
    plot = error_plot({name: sorted(row.items()) for name, row in ode.items()}, ylabel="distance to 400 steps of ODE-2")
    (out / "ode.svg").write_bytes(plot)
    page.plot(plot, "The ODE's error falls with the order.")
    shown = {"input y": y, "truth": x, "SDE-2, 10 calls": found["SDE-2 data"][10], "posterior, 100": whole["posterior, 100"]}
    shown |= {"strided posterior, 10": found["strided posterior"][10], "noise form, 10": found["SDE-2 noise"][10]}
    sheet = labelled_rows({name: v[:12].clamp(-1, 1).cpu() for name, v in shown.items()}, value_range=(-1, 1))
    save_png(sheet, out / "digits.png")
    page.picture(sheet, "Held-out digits.")
    page.save(out / "report.html")
    decibels = {name: {n: psnr(v, x) for n, v in row.items()} for name, row in found.items()}
    figures = {"frechet": distance, "frechet, 100 calls": far, "distance to the exact trajectory": ode, "PSNR": decibels}
    return Result(claims, {**figures, "PSNR of 100 posterior steps": psnr(whole["posterior, 100"], x), "PSNR of y": psnr(y, x)})


def _distance(x: Tensor, found: Tensor) -> float:
    """Fréchet distance in 24 principal components; pixels that explode are cut at ± 100."""
    return frechet(x.cpu(), found.nan_to_num(nan=100.0).clamp(-100, 100).cpu(), "pixel-pca:24").value
