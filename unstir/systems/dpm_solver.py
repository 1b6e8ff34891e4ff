"""DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (2022).

For anyone with a trained noise network who wants good samples in 10 to 20 calls without training again.
In half log-SNR time the probability-flow equation is linear but for the noise prediction ε̂,

    x_t = (α_t/α_s) x_s − α_t ∫_{λ_s}^{λ_t} e^{−λ} ε̂(λ) dλ,

so each step integrates the exponential exactly and approximates ε̂ by a polynomial from 1, 2 or 3 calls
inside the step: order k in λ, and DDIM is order 1. "fast" spends a budget on third-order steps and one
shorter last one.

Parts: `unstir.solvers.exp_rk` in noise form (every inner stage is a row of the plan), the grid uniform in λ. The
paper's adaptive pairs are the row generator `unstir.solvers.Adaptive`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP, Process
from ..solvers import plan
from ._digits import bench, error_section, errors, exact, pca_digits, report
from .protocol import Result, at_most


def dpm_solver(
    process: Process,
    nfe: int,
    order: int = 3,
    method: str = "fast",
    kind: str = "midpoint",
    grid: str = "logsnr",
    start: float = 1.0,
    end: float = 1e-3,
) -> Plan:
    """DPM-Solver of `order` 1, 2 or 3 with exactly `nfe` calls.

    method: "fast" (third-order steps, the rest of the budget in a shorter one) or "fixed" (steps of one order; a
    budget that is no multiple of it begins with a shorter step). kind: "midpoint", or "taylor" for the
    paper's other second- and third-order updates.
    """
    if method not in ("fast", "fixed"):
        raise ValueError(f"method={method!r} must be 'fast' or 'fixed'")
    if order not in (1, 2, 3):
        raise ValueError(f"order={order} must be 1, 2 or 3")
    if order == 1:
        return plan("ddim", process, nfe, grid, start, end)
    name = "dpm-fast" if method == "fast" and order == 3 else f"dpm-{order}s"
    return plan(name, process, nfe, grid, start, end, kind=kind)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """DPM-Solver beside DDIM on real digits with their exact denoiser: only the solver errs.

    large: all 1797 digits and 1000 starts instead of 400 and 24.
    """
    process = VP()
    digits = pca_digits(1797 if large else 400)
    model = exact(digits, process).to(device)
    x = process.prior((1000 if large else 24, 20), dtype=torch.float64, device=device)
    truth = sample(model, dpm_solver(process, 3 * 301, method="fixed"), x=x)
    plans = {
        "DDIM": lambda n: dpm_solver(process, n, order=1),
        "DPM-Solver-2": lambda n: dpm_solver(process, n, order=2, method="fixed"),
        "DPM-Solver-3": lambda n: dpm_solver(process, n, order=3, method="fixed"),
        "DPM-Solver-fast": lambda n: dpm_solver(process, n),
    }
    found = errors(model, plans, (6, 12, 18, 24, 30, 48), x, truth)
    ddim, fast, third = found["DDIM"], found["DPM-Solver-fast"], found["DPM-Solver-3"]
    claims = [
        at_most("24 calls: the error of DPM-Solver-fast, against half of DDIM's", fast[24], 0.5 * ddim[24]),
        at_most("48 calls: the error of DPM-Solver-3, against a fifth of DDIM's", third[48], 0.2 * ddim[48]),
    ]

    pictures = {"exact": digits.pictures(truth[:10].cpu())}
    for name, n in (("DDIM", 12), ("DPM-Solver-fast", 12), ("DDIM", 24), ("DPM-Solver-fast", 24)):
        pictures[f"{name}, {n}"] = digits.pictures(sample(model, plans[name](n), x=x[:10]).cpu())
    sheet = labelled_rows(pictures)
    save_png(sheet, out / "samples.png")
    page = report(
        "DPM-Solver",
        f"{bench(digits, x)} Grid uniform in λ. Reference: 301 third-order steps. Below about 12 calls the "
        "one-step methods lose to DDIM on this data.",
        claims,
    )
    error_section(page, out, found, "Median error at equal numbers of network calls.")
    page.picture(sheet, "The same starts; the number is that of network calls.").save(out / "report.html")
    return Result(claims, {"errors": found, "starts": len(x), "centres": len(digits.x)})
