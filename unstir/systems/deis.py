"""Fast Sampling of Diffusion Models with Exponential Integrator (2023): DEIS.

For users of any Gaussian diffusion model who want at most 15 calls without training again. With x̂ = x/α
the probability-flow equation is dx̂ = ε̂ dσ̂, and the noise prediction is extrapolated by the polynomial
through its last values in a variable s of one's choice,

    x_{i+1} = (α_{i+1}/α_i) x_i + Σ_j C_ij ε̂_{i−j},    C_ij = α_{i+1} ∫ ℓ_ij(s) dσ̂,

s = t ("tAB"), σ̂ ("ρAB") or λ. The paper's tAB-r uses r + 1 values and so has order r + 1; here `order`
counts values, tAB3 is order 4. Or a classical Runge–Kutta method in σ̂ ("ρRK").

Parts: `unstir.solvers.deis`, `ipndm` and `rho_rk`; the grid uniform in √t, dense near the data.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP, Process
from ..solvers import compile_plan, make_grid, plan
from ._digits import bench, error_section, errors, exact, pca_digits, report
from .protocol import Result, at_least, at_most


def tab(process: Process, nfe: int, r: int = 3, kappa: float = 2.0, start: float = 1.0, end: float = 1e-3) -> Plan:
    """tAB-r of the paper: polynomials of degree r in t on the grid uniform in t^{1/κ}; tAB-0 is DDIM."""
    nodes = make_grid("quadratic", process, nfe, start, end, kappa=kappa)
    return compile_plan("tab-4", process, nodes, order=r + 1)


def rho_ab(process: Process, nfe: int, r: int = 3, rho: float = 7.0, start: float = 1.0, end: float = 1e-3) -> Plan:
    """ρAB-r of the paper: polynomials of degree r in σ̂ on the grid uniform in σ̂^{1/ρ}."""
    nodes = make_grid("karras", process, nfe, start, end, rho=rho)
    return compile_plan("rhoab-4", process, nodes, order=r + 1)


def rho_rk(
    process: Process, nfe: int, tableau: str = "heun-2", rho: float = 7.0, start: float = 1.0, end: float = 1e-3
) -> Plan:
    """ρRK of the paper with exactly `nfe` calls: "heun-2" (EDM's deterministic sampler), "midpoint", "kutta-3" or "rk-4"."""
    names = {"heun-2": "heun", "midpoint": "rho-midpoint", "kutta-3": "rho-kutta-3", "rk-4": "rho-rk-4"}
    if tableau not in names:
        raise ValueError(f"tableau={tableau!r} must be one of {', '.join(names)}")
    return plan(names[tableau], process, nfe, "karras", start, end, {"rho": rho})


def ipndm(process: Process, nfe: int, order: int = 4, grid: str = "quadratic", start: float = 1.0, end: float = 1e-3) -> Plan:
    """Improved PNDM: the constant-step Adams–Bashforth weights on any grid, without PNDM's Runge–Kutta start."""
    return plan("ipndm", process, nfe, grid, start, end, order=order)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """The variants beside DDIM on real digits with their exact denoiser: only the solver errs.

    large: all 1797 digits and 1000 starts instead of 400 and 24.
    """
    process = VP()
    digits = pca_digits(1797 if large else 400)
    model = exact(digits, process).to(device)
    x = process.prior((1000 if large else 24, 20), dtype=torch.float64, device=device)
    truth = sample(model, tab(process, 301), x=x)
    plans = {
        "DDIM": lambda n: tab(process, n, r=0),
        "tAB1": lambda n: tab(process, n, r=1),
        "tAB2": lambda n: tab(process, n, r=2),
        "tAB3": lambda n: tab(process, n, r=3),
        "ρAB3": lambda n: rho_ab(process, n),
        "iPNDM": lambda n: ipndm(process, n),
        "iPNDM, uniform grid": lambda n: ipndm(process, n, grid="uniform"),
        "ρ-Heun": lambda n: rho_rk(process, n),
        "ρ-midpoint": lambda n: rho_rk(process, n, "midpoint"),
    }
    found = errors(model, plans, (6, 10, 15, 20, 30), x, truth)
    claims = [
        at_most("10 calls: the error of tAB3, against 0.3 of DDIM's", found["tAB3"][10], 0.3 * found["DDIM"][10]),
        at_most("20 calls: the error of tAB3, against 0.1 of DDIM's", found["tAB3"][20], 0.1 * found["DDIM"][20]),
    ]
    for n in (15, 20):
        chain = [found[name][n] for name in ("DDIM", "tAB1", "tAB2", "tAB3")]
        worst = min(low / high for low, high in pairwise(chain))
        claims.append(at_least(f"{n} calls: least factor by which the error falls from one degree r to the next", worst, 1.0))

    page = report(
        "DEIS",
        f"{bench(digits, x)} DDIM, tAB and iPNDM on the grid uniform in √t, the ρ methods on the one uniform in σ̂^(1/7). "
        "Reference: 301 steps of tAB3.",
        claims,
    )
    error_section(page, out, found, "Median error at equal numbers of network calls.")
    rows = {"exact": digits.pictures(truth[:10].cpu())}
    for name in ("DDIM", "tAB1", "tAB3", "ρ-Heun"):
        rows[f"{name}, 6".replace("ρ", "rho")] = digits.pictures(sample(model, plans[name](6), x=x[:10]).cpu())
    sheet = labelled_rows(rows)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "The same starts, 6 network calls.").save(out / "report.html")
    return Result(claims, {"errors": found, "starts": len(x), "centres": len(digits.x)})
