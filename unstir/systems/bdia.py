"""Exact Diffusion Inversion via Bi-directional Integration Approximation (2024): BDIA, beside O-BELM and EDICT.

For image editors who need latent ↔ picture round trips without error at the cost of DDIM, and a more accurate
ODE sampler for free. With T the DDIM map of a step, evaluated at (X_i, t_i),

    X_{i+1} = γ X_{i−1} − γ T_{i→i−1}(X_i) + T_{i→i+1}(X_i),

which is solved for X_{i−1} with the same one call. In x̂ = x/α it is momentum with a negative sign; O-BELM (2024) is
the member of the family of order 2, EDICT (2023) couples two states at two calls a step.

Parts: `unstir.solvers.two_step` and `inverse` (the column s of a plan), `unstir.steer.invert` and `regenerate`, `edict`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..data import load
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, Symbol, Tracer, sample, trace
from ..process import EDM, VP, Process
from ..process.base import float64
from ..solvers import make_grid, plan
from ..solvers.invertible import amplification
from ..steer import ddim_invert, edict, edict_invert, invert, regenerate
from ._digits import error_section, errors, report, trained
from .protocol import Result, at_least, at_most

START, END = 0.98, 0.02


def bdia(process: Process, nfe: int, gamma: float = 0.96, start: float = START, end: float = END) -> Plan:
    """BDIA-DDIM on the grid uniform in t. γ = 1 is the most accurate; 0.92 … 0.96 damp oscillations when editing."""
    return plan("bdia", process, nfe, "uniform", start, end, gamma=gamma)


def obelm(process: Process, nfe: int, start: float = START, end: float = END) -> Plan:
    """O-BELM on the grid uniform in t: order 2, no γ."""
    return plan("obelm", process, nfe, "uniform", start, end)


# -- BDIA on Heun steps -------------------------------------------------------------------------------------------
def _bidirectional_heun(tracer: Tracer, x: Symbol, process: Process, times: list[float], gamma: float) -> Symbol:
    """v' = v + γ (v₋ − v) − γ ½ (σ̂₋ − σ̂)(d + d₋) + ½ h (d + d̃) in v = x/α; ₋ is the step before. The last is Euler's."""
    alpha, ratio = process.alpha(float64(times)).tolist(), process.noise_ratio(float64(times)).tolist()
    v, before = x / alpha[0], None

    def slope(v: Symbol, i: int) -> Symbol:
        return (v - tracer.denoise(v * alpha[i], times[i])) / ratio[i]

    for i in range(len(times) - 1):
        h, d = ratio[i + 1] - ratio[i], slope(v, i)
        if ratio[i + 1] == 0:
            return v + h * d
        step = (d + slope(v + h * d, i + 1)) * (h / 2)
        if before is not None:
            v_before, d_before, h_before = before
            step = step + gamma * (v_before - v) + (d + d_before) * (gamma * h_before / 2)
        v, before = v + step, (v, d, h)
    return v * alpha[-1]


def bdia_heun(process: Process, steps: int, gamma: float = 0.5) -> Plan:
    """BDIA-EDM on the grid of EDM: Heun steps forward, a trapezoid of stored slopes backward, 2 N − 1 calls. Sampling only."""
    nodes = make_grid("karras", process, steps, 1.0, 0.0)
    return trace(_bidirectional_heun, process, nodes, name="bdia-heun", order=1, gamma=gamma)


# -- the claims -----------------------------------------------------------------------------------------------------
def distance(x: Tensor, reference: Tensor) -> float:
    """mean |x − reference|."""
    return float((x - reference).abs().mean())


def worst(x: Tensor, reference: Tensor) -> float:
    """max |x − reference|."""
    return float((x - reference).abs().max())


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Round trips of real digits, accuracy as a sampler, and BDIA on Heun steps, all in float64.

    large: 1000 digits instead of 64 and a network trained for 4800 steps instead of 1500.
    """
    process, count = VP(), 1000 if large else 64
    net = trained(process, out.parent, 4800 if large else 1500).double().to(device)
    budgets = (10, 20, 40)
    ddim = {n: plan("ddim", process, n, "uniform", START, END) for n in budgets}

    # Round trips: digit -> latent -> digit.
    digits = load("digits").all()[:count].double().to(device)
    trips: dict[str, dict[int, float]] = {
        "DDIM inversion": {},
        "BDIA (γ 0.96)": {},
        "O-BELM": {},
        "EDICT (p 0.93, twice the calls)": {},
    }
    shown = {"digits": digits[:10].cpu()}
    deviation = {}
    for n in budgets:
        back = sample(net, ddim[n], x=ddim_invert(net, ddim[n], digits))
        trips["DDIM inversion"][n] = worst(back, digits)
        shown[f"DDIM inversion, {n}"] = back[:10].cpu()
        for name, table in (("BDIA (γ 0.96)", bdia(process, n)), ("O-BELM", obelm(process, n))):
            latent = invert(net, table, digits)
            trips[name][n] = worst(regenerate(net, table, latent), digits)
            deviation[f"{name}, {n}"] = [float(latent.x.std()), amplification(table)]
        pair = edict_invert(net, process, ddim[n].times, digits, digits)
        trips["EDICT (p 0.93, twice the calls)"][n] = worst(edict(net, process, ddim[n].times, *pair)[0], digits)
    shown["BDIA, 10"] = regenerate(net, bdia(process, 10), invert(net, bdia(process, 10), digits[:10])).cpu()

    # Accuracy: the same plans as samplers.
    x = process.prior((count, 1, 8, 8), t=START, dtype=torch.float64, device=device)
    plans = {
        "DDIM": lambda n: ddim[n],
        "BDIA (γ 0.5)": lambda n: bdia(process, n, 0.5),
        "BDIA (γ 0.96)": lambda n: bdia(process, n),
        "BDIA (γ 1)": lambda n: bdia(process, n, 1.0),
        "O-BELM": lambda n: obelm(process, n),
    }
    found = errors(net, plans, budgets, x, sample(net, obelm(process, 400), x=x), distance)

    # BDIA on Heun's method, on EDM's process and grid.
    edm = EDM()
    model = trained(edm, out.parent, 4800 if large else 1500).double().to(device)
    x = edm.prior((count, 1, 8, 8), dtype=torch.float64, device=device)
    heun = {f"γ = {g}": lambda n, g=g: bdia_heun(edm, (n + 1) // 2, g) for g in (0.0, 0.2, 0.5, 1.0)}
    steps = errors(model, heun, (19, 35, 79), x, sample(model, plan("dpmpp-3m", edm, 400, "karras"), x=x), distance)

    lost, kept = trips["DDIM inversion"], trips["BDIA (γ 0.96)"]
    base, half, one = found["DDIM"], found["BDIA (γ 0.5)"], found["BDIA (γ 1)"]
    claims = [
        at_most("round trip of BDIA, largest error at 10, 20, 40 calls", max(kept.values()), 1e-9),
        at_least("the error of DDIM inversion over BDIA's, least factor", min(lost[n] / kept[n] for n in budgets), 1e3),
        at_most("round trip of EDICT at twice the calls", max(trips["EDICT (p 0.93, twice the calls)"].values()), 1e-9),
        at_most("10 calls: the error of BDIA with γ = 0.5, against 0.8 of DDIM's", half[10], 0.8 * base[10]),
        at_most("20 calls: BDIA with γ = 1, against 0.4 of DDIM", one[20], 0.4 * base[20]),
        at_most("40 calls: BDIA with γ = 1, against 0.25 of DDIM", one[40], 0.25 * base[40]),
        at_most("O-BELM against 1.3 of BDIA with γ = 1, largest ratio", max(found["O-BELM"][n] / one[n] for n in budgets), 1.3),
        at_most(
            "18 Heun steps: BDIA-EDM with γ = 0.5, against 0.85 of Heun", steps["γ = 0.5"][35], 0.85 * steps["γ = 0.0"][35]
        ),
    ]

    page = report(
        "BDIA",
        f"A small network trained on the digits, unconditional, VP process, t from {START} to {END}, uniform in t, float64, "
        f"{count} digits.",
        claims,
    )
    page.text("## Round trips: digit → latent → digit")
    error_section(page, out, trips, "Largest error over all digits and pixels.", "round-trips", "largest error")
    sheet = labelled_rows(shown)
    save_png(sheet, out / "round-trips.png")
    page.picture(sheet, "The number is that of network calls each way.")
    page.text(
        "Exact is not Gaussian: the latents of real digits have a smaller standard deviation than the prior (about 1), since "
        "digits lie off what the model typically draws. A is the factor by which the way back multiplies rounding."
    )
    page.table([[name, *row] for name, row in deviation.items()], ["plan, calls", "std of the latents", "A"])
    page.text("## Accuracy as samplers")
    error_section(page, out, found, "mean |x − reference|, the reference being O-BELM with 400 calls.", "accuracy")
    page.text("## BDIA on Heun steps (EDM's process and grid)")
    error_section(page, out, steps, "mean |x − reference| of 10, 18 and 40 steps; γ = 0 is Heun.", "heun")
    page.save(out / "report.html")
    return Result(claims, {"round trip": trips, "latent std, A": deviation, "errors": found, "Heun": steps})
