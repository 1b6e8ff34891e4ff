"""Diffusion Sampling with Momentum for Mitigating Divergence Artifacts (2024): heavy balls.

For anyone who samples with few steps or strong guidance and sees over-saturated blotches: high-order
multistep solvers have small regions of stability, and momentum enlarges them. In x̂ = x/α, with
h = σ̂_{i+1} − σ̂_i, damping β in (0, 1] and Adams weights w,

    HB     v_i = (1 − β) v_{i−1} + β Σ_l w_l ε̂_{i−l},   x̂_{i+1} = x̂_i + h v_i                  (order 1)
    GHVB   v_i = (1 − β) v_{i−1} + β ε̂_i,               x̂_{i+1} = x̂_i + h Σ_l w_l(β) v_{i−l}   (order k)

β = 1 is no momentum: PLMS. The paper writes the pair (k, β) as one decimal, 3.9 for k = 4, β = 0.9.

Parts: `unstir.solvers.ghvb` and `heavy_ball`; GHVB needs one momentum entry a row (the column s of a plan).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluate import labelled_rows, save_png
from ..evaluate.plots import PALETTE, _figure, _file
from ..plan import Plan, sample
from ..process import VP, Process
from ..solvers import plan
from ..solvers.adams import adams_gammas, adams_weights
from ..solvers.analyse import stability_interval, stability_region
from ._digits import error_section, errors, guided, report, trained
from .protocol import Claim, Result, at_most

START, END = 0.999, 0.02


def plms(process: Process, nfe: int, order: int = 4, grid: str = "uniform", start: float = START, end: float = END) -> Plan:
    """Adams–Bashforth with constant-step weights (PLMS-k without a Runge–Kutta start): no momentum."""
    return plan("ghvb", process, nfe, grid, start, end, order=order, damping=1.0)


def ghvb(
    process: Process,
    nfe: int,
    order: int = 4,
    damping: float = 0.8,
    grid: str = "uniform",
    start: float = START,
    end: float = END,
) -> Plan:
    """GHVB-k: momentum of order k."""
    return plan("ghvb", process, nfe, grid, start, end, order=order, damping=damping)


def heavy_ball(
    process: Process,
    nfe: int,
    order: int = 4,
    damping: float = 0.8,
    grid: str = "uniform",
    start: float = START,
    end: float = END,
) -> Plan:
    """HB-k: the most stable, of order 1."""
    return plan("heavy-ball", process, nfe, grid, start, end, order=order, damping=damping)


def stability_bound(order: int, damping: float = 1.0, kind: str = "ghvb") -> float:
    """B: the test equation x' = λx, z = λh, is damped for −B < z < 0.

    A method Σ_{j<k} c_j ∇^j has B = 2/Σ c_j 2^j, since its root −1 at z = −B turns ∇ into 2; low-passing by β
    multiplies that by (2 − β)/β. c = γ for PLMS and HB, c_j = γ_j + (1/β − 1) γ_{j−1} for GHVB.
    """
    if kind not in ("ghvb", "hb"):
        raise ValueError(f"kind={kind!r} must be 'ghvb' or 'hb'")
    if not 0 < damping <= 1:
        raise ValueError(f"damping={damping} must lie in (0, 1]; 1 is no momentum")
    g = adams_gammas(order)
    extra = (1 - damping) / damping if kind == "ghvb" else 0.0
    c = [g[0]] + [g[j] + extra * g[j - 1] for j in range(1, order)]
    return 2 * (2 - damping) / (damping * sum(cj * 2**j for j, cj in enumerate(c)))


def growth(z: complex, order: int, damping: float = 1.0, kind: str = "ghvb") -> float:
    """The largest |root| of one step on x' = λx, z = λh: the spectral radius of the companion matrix; stable if ≤ 1.

    State (x_i, v_{i−1} … v_{i−k+1}) for GHVB, (x_i … x_{i−k+1}, v_{i−1}) for HB, both with h ε̂ = z x.
    """
    beta, k = damping, order
    if kind == "ghvb":
        w = adams_weights(k, beta)
        n = k + 1  # x_i, v_{i−1}, …, v_{i−k}; the last is there so that k = 1 has a v
        new_v = np.zeros(n, dtype=complex)
        new_v[0], new_v[1] = beta * z, 1 - beta
        new_x = w[0] * new_v
        new_x[0] += 1
        new_x[1:k] += w[1:]
        step = np.vstack([new_x, new_v, np.eye(n, dtype=complex)[1 : n - 1]])
    else:
        w = adams_weights(k)
        n = k + 1  # x_i, …, x_{i−k+1}, v_{i−1}
        new_v = np.zeros(n, dtype=complex)
        new_v[:k], new_v[k] = beta * z * np.array(w), 1 - beta
        new_x = new_v.copy()
        new_x[0] += 1
        step = np.vstack([new_x, np.eye(n, dtype=complex)[: k - 1], new_v])
    return float(np.abs(np.linalg.eigvals(step)).max())


METHODS = {  # name: (solver, order, damping)
    "PLMS4": ("ghvb", 4, 1.0),
    "GHVB4 (0.8)": ("ghvb", 4, 0.8),
    "GHVB4 (0.5)": ("ghvb", 4, 0.5),
    "HB4 (0.8)": ("heavy-ball", 4, 0.8),
    "PLMS2": ("ghvb", 2, 1.0),
    "GHVB2 (0.5)": ("ghvb", 2, 0.5),
    "HB2 (0.8)": ("heavy-ball", 2, 0.8),
}


def stability_picture() -> bytes:
    """The regions of z = λh in which the test equation is damped, found by running the plans: order 4 left, 2 right."""
    figure, panels = _figure(9.0, 3.6, "svg", panels=(1.0, 1.0))
    for panel, order, left in zip(panels, (4, 2), (-0.6, -1.8), strict=True):
        chosen = {name: entry for name, entry in METHODS.items() if entry[1] == order}
        for colour, (name, (solver, k, damping)) in zip(PALETTE, chosen.items(), strict=False):
            re, im, growing = stability_region(solver, real=(left, 0.3), imag=1.3, order=k, damping=damping)
            panel.contour(re, im, growing, levels=[1.0], colors=[colour], linewidths=1.6)
            panel.plot([], [], color=colour, label=name)
        panel.axhline(0, color="#9da7b1", linewidth=0.6)
        panel.set_xlabel("Re z")
        panel.set_ylabel("Im z")
        panel.legend(frameon=False, fontsize=8, loc="upper left", labelcolor=PALETTE[-1])
    return _file(figure, "svg")


def mean_error(x: Tensor, reference: Tensor) -> float:
    """The paper's distance: mean |x − reference|."""
    return float((x - reference).abs().mean())


def overshoot(x: Tensor) -> float:
    """mean relu(|x| − 1.5): how far states leave the range [−1, 1] of the pixels (a half more is allowed)."""
    return float((x.abs() - 1.5).relu().mean())


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Strong guidance at 8 to 20 steps: high-order solvers diverge, the same with momentum much less.

    large: 2000 pictures instead of 256 and a network trained for 4800 steps instead of 1500.
    """
    process = VP()
    net = trained(process, out.parent, 4800 if large else 1500).to(device)
    x = process.prior((2000 if large else 256, 1, 8, 8), t=START, device=device)
    labels = torch.arange(len(x), device=device) % 10
    plans = {
        "DDIM": lambda n: plan("ddim", process, n, "uniform", START, END),
        "PLMS4": lambda n: plms(process, n),
        "HB4 (0.9)": lambda n: heavy_ball(process, n, damping=0.9),
        "HB4 (0.8)": lambda n: heavy_ball(process, n),
        "GHVB4 (0.8)": lambda n: ghvb(process, n),
        "GHVB4 (0.5)": lambda n: ghvb(process, n, damping=0.5),
        "PLMS2": lambda n: plms(process, n, order=2),
        "HB2 (0.8)": lambda n: heavy_ball(process, n, order=2),
        "GHVB2 (0.8)": lambda n: ghvb(process, n, order=2),
        "GHVB2 (0.5)": lambda n: ghvb(process, n, order=2, damping=0.5),
    }
    found, excess, truth = {}, {}, {}
    for w in (6, 14):  # the dossier's D + (1 + w)(D_c − D)
        model = guided(net, net, 1.0 + w)
        truth[w] = sample(model, ghvb(process, 400, order=2), x=x, class_labels=labels)
        found[w] = errors(model, plans, (8, 10, 20), x, truth[w], mean_error, class_labels=labels)
        excess[w] = {
            name: overshoot(sample(model, make(8), x=x, class_labels=labels)) for name, make in plans.items()
        } | {"reference": overshoot(truth[w])}  # fmt: skip
    six, fourteen = found[6], found[14]
    claims = [
        at_most(
            "w = 6, 10 steps: the error of HB4 (0.8), against 0.4 of PLMS4's", six["HB4 (0.8)"][10], 0.4 * six["PLMS4"][10]
        ),
        at_most("w = 6, 10 steps: GHVB4 (0.8), against 0.8 of PLMS4", six["GHVB4 (0.8)"][10], 0.8 * six["PLMS4"][10]),
        at_most("w = 6, 20 steps: GHVB4 (0.8), against 0.8 of DDIM", six["GHVB4 (0.8)"][20], 0.8 * six["DDIM"][20]),
        at_most("w = 14, 8 steps: GHVB4 (0.5), against 0.65 of PLMS4", fourteen["GHVB4 (0.5)"][8], 0.65 * fourteen["PLMS4"][8]),
        at_most("w = 14, 8 steps: GHVB2 (0.5), against 1.05 of PLMS2", fourteen["GHVB2 (0.5)"][8], 1.05 * fourteen["PLMS2"][8]),
        stability_claim(),
    ]

    page = report(
        "Heavy balls under strong guidance",
        f"A small network trained on the digits, guidance D + (1 + w)(D_c − D), {len(x)} pictures of all classes, VP process, "
        f"t from {START} to {END}, uniform in t; in brackets the damping β. Error: mean |x − reference|, the reference "
        "being 400 steps of GHVB-2.",
        claims,
    )
    for w, peak in ((6, 2), (14, 5)):
        page.text(f"## Guidance w = {w}")
        error_section(page, out, found[w], "Mean error.", f"errors-w{w}")
        model, shown = guided(net, net, 1.0 + w), {"reference": truth[w][:10]}
        for name in ("DDIM", "PLMS4", "HB4 (0.8)", "GHVB4 (0.8)", "GHVB4 (0.5)", "GHVB2 (0.5)"):
            shown[f"{name}, 8"] = sample(model, plans[name](8), x=x[:10], class_labels=labels[:10])
        sheet = labelled_rows(shown, value_range=(-peak, peak))
        save_png(sheet, out / f"samples-w{w}.png")
        page.picture(sheet, f"8 steps; values from −{peak} to {peak}, so that what overshoots is seen.")
        page.table(list(excess[w].items()), ["plan, 8 steps", "overshoot, mean relu(|x| − 1.5)"])
    picture = stability_picture()
    (out / "stability.svg").write_bytes(picture)
    page.text("## Stability")
    page.plot(
        picture, "Boundaries of the regions in which x' = λx is damped, z = λh; momentum widens them along the real axis."
    )
    bounds = [
        [name, stability_bound(k, b, "ghvb" if solver == "ghvb" else "hb"), stability_interval(solver, order=k, damping=b)]
        for name, (solver, k, b) in METHODS.items()
    ]
    page.table(bounds, ["method", "B, closed form", "B, from the plan"], caption="Damped on the real axis for −B < z < 0.")
    page.save(out / "report.html")
    return Result(claims, {"errors": found, "overshoot at 8 steps": excess, "pictures": len(x)})


def stability_claim() -> Claim:
    """The closed form of the stability interval against the companion matrix, k = 1 … 4."""
    worst = 0.0
    for kind in ("hb", "ghvb"):
        for order in (1, 2, 3, 4):
            for damping in (1.0, 0.8, 0.5):
                bound = stability_bound(order, damping, kind)
                low, high = 1e-3, 20.0
                for _ in range(50):
                    middle = (low + high) / 2
                    low, high = (middle, high) if growth(-middle, order, damping, kind) <= 1 + 1e-9 else (low, middle)
                worst = max(worst, abs(low / bound - 1))
    return at_most("stability intervals: largest relative distance of the closed forms to the companion matrix", worst, 1e-3)
