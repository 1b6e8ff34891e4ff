"""RDDM: Residual Denoising Diffusion Models (2024).

For people with pairs (rain, shadow, low light, blur), an ordinary UNet and little time: one framework in which the residual
y − x0 and the noise fade on schedules of their own,

    x_t = x0 + ᾱ (y − x0) + β̄ z,      x' = x − (ᾱ − ᾱ') R̂ − (β̄ − √(β̄'² − s²)) ẑ + s ζ,   s² = η β̄'² (β̄² − β̄'²)/β̄²

and 2 to 10 calls restore. What the network predicts decides: the residual R is known from the start, where x_1 = y + noise
holds no x0 to be found from ẑ. With y = 0 it is generation, and with ᾱ = 1 − √ā, β̄ = √(1 − ā) it is DDIM.

Parts: `process.RDDM`; predicts="data" in the residual frame is the prediction of −R; the solver "bridge" with rule="ve"
is the step above (its `eta` is √η here); `TwoFields` runs it with two networks, one for R and one for z. Generation that
removes residual and noise one after the other needs nothing new: divided by α the state depends on λ alone, so
`model.on(process)` runs a trained model along any path, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import interop
from ..denoiser import Denoiser
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import RDDM, Flow, Process
from ..process.base import Time, expand, float64
from ..solvers import compile_plan, plan
from ._digits import report
from ._pairs import PairUNet, photo_pairs, psnr, rainy, trained, untrained
from .protocol import Result, at_least, at_most

PROCESS = RDDM(scale=0.01)
ALMOST = 0.999  # where a plan for a noise prediction begins: at t = 1 it says nothing of x0
RECIPE = 1  # part of the cache's name: raise it when the network or its training changes
SIDE = 32


def rddm_plan(process: RDDM = PROCESS, nfe: int = 5, *, eta: float = 0.0, start: float = 1.0) -> Plan:
    """The published sampler on uniform times; eta: the share of s², 0 deterministic, 1 "sum-constrained variance"."""
    return plan("bridge", process, nfe, "uniform", start=start, rule="ve", eta=eta**0.5)


class TwoFields(nn.Module):
    """Two predictions in one denoiser: R̂ and ẑ from networks of their own, each with its weight in the step.

    residual, noise: callables (x, t, anchor=y) -> R̂, ẑ. In the row from t to t' it returns the D that makes the plan's
    own step  a u + b D  the published one, u − (ᾱ − ᾱ')(R̂ − y) − (β̄ − √(β̄'² − c²)) ẑ, for every one-step plan.
    (x, R̂ and ẑ need not agree, so no single D can say it without knowing t'.)
    """

    sees_anchor = True

    def __init__(self, process: RDDM, residual: Callable[..., Tensor], noise: Callable[..., Tensor]) -> None:
        super().__init__()
        self.process, self.residual, self.noise = process, residual, noise

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, *, anchor: Tensor) -> Tensor:
        if ctx is None or set(ctx.row.b) - {0}:
            raise ValueError(
                "two fields need a plan of one call a step, such as 'bridge' or 'ddim'; this one reads its history"
            )
        p, row = self.process, ctx.row
        alpha, sigma, alpha2, sigma2 = (float(f(s)) for s in (t, row.to) for f in (p.alpha, p.sigma))
        found, z = self.residual(x, t, anchor=anchor), self.noise(x, t, anchor=anchor)
        u = p.centre(x, t, anchor)
        kept = max(0.0, sigma2**2 - row.c**2) ** 0.5
        # R̂ − y = −x̂0: in the centred state α R falls from the state as ᾱ rises.
        aim = u + (alpha2 - alpha) * (anchor - found) - (sigma - kept) * z
        return (aim - row.a * u) / row.gain


class Corner(Process):
    """One after the other: first (t from 1 to ½) the residual, α = 2(1 − t) with σ = 1, then the noise, σ = 2t with α = 1."""

    span = (1e-3, 1 - 1e-3)

    def alpha(self, t: Time) -> Tensor:
        return (2 * (1 - float64(t))).clamp_max(1)

    def sigma(self, t: Time) -> Tensor:
        return (2 * float64(t)).clamp_max(1)


def network(folder: Path, predicts: str, steps: int, device: str = "cpu", seed: int = 0) -> Denoiser:
    """A remover of rain that predicts the residual ("data" in the residual frame) or the noise: batch 16, rate 2e-3."""
    model = untrained(PairUNet, PROCESS, predicts, frame="residual", shape=(1, SIDE, SIDE), seed=seed)
    name = f"rddm-v{RECIPE}-{predicts}-{steps}-{seed}.safetensors"
    return trained(
        model, photo_pairs(rainy, 2000, SIDE), folder / name, steps, device=device,
        batch=16, warmup=50, seed=seed, process="rddm", predicts=predicts, weight="raw", ema=0.99, flip=True,
    )  # fmt: skip


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Rain removed from photographs in 1 to 5 calls, by a network for the residual and one for the noise.

    large: networks trained for 10 000 steps instead of 700.
    """
    steps = 10_000 if large else 700
    by_residual, by_noise = (network(out.parent, kind, steps, device) for kind in ("data", "noise"))
    test = photo_pairs(rainy, 64, SIDE, test=True)
    x, y = test.all().to(device), test.anchors(range(len(test))).to(device)
    both = TwoFields(
        PROCESS,
        lambda s, t, anchor: anchor - by_residual(s, t, anchor=anchor),
        lambda s, t, anchor: _noise(by_noise, s, t, anchor),
    )
    clipped = copy(by_noise)
    clipped.clip = (-1.0, 1.0)  # as published: at the start x̂0 of a noise network is 1e6 times its error
    runs: dict[str, tuple[Any, float]] = {"residual": (by_residual, 1.0), "noise": (clipped, ALMOST), "both": (both, ALMOST)}
    found = {
        name: {n: sample(model, rddm_plan(nfe=n, start=start), anchor=y, seed=1) for n in (1, 2, 5)}
        for name, (model, start) in runs.items()
    }
    decibels = {name: {n: psnr(value, x) for n, value in row.items()} for name, row in found.items()}
    given, two, five = psnr(y, x), decibels["residual"][2], decibels["residual"][5]
    apart = path_independence()
    claims = [
        at_least("residual network, 2 calls: PSNR in dB, against the rainy picture and 10 more", two, given + 10),
        at_least("residual network, 5 calls: against the noise network and 8 more", five, decibels["noise"][5] + 8),
        at_most("residual network: change in dB from 2 to 5 calls", abs(five - two), 0.5),
        at_most("generation on other paths of the same λ: largest change of a picture", max(apart.values()), 1e-4),
    ]
    page = report(
        "Residuals and noise in few calls",
        f"{len(x)} crops of the photographs' right third, under synthetic rain; networks that learned on the left two thirds "
        f"for {steps} steps. {PROCESS!r}, uniform times, deterministic. The rainy pictures have {given:.2f} dB.",
        claims,
    )
    rows = [[name, *row.values()] for name, row in decibels.items()]
    page.table(rows, ["network for the", "1 call", "2 calls", "5 calls"], caption="PSNR in dB.")
    page.table(
        list(apart.items()), ["path", "largest change of a generated digit"], caption="The bundled model, 20 calls of DDIM."
    )
    shown = {"rainy": y, "residual, 2 calls": found["residual"][2], "noise, 5 calls": found["noise"][5], "truth": x}
    sheet = labelled_rows({n: v[:10].clamp(-1, 1).cpu() for n, v in shown.items()}, value_range=(-1, 1))
    save_png(sheet, out / "rain.png")
    page.picture(sheet, "Crops that the networks have not seen.")
    page.save(out / "report.html")
    return Result(claims, {"PSNR": decibels, "PSNR of the rainy pictures": given, "paths": apart, "training steps": steps})


def _noise(model: Denoiser, x: Tensor, t: Any, y: Tensor) -> Tensor:
    """ẑ of a denoiser: (u − αD)/σ."""
    p = model.process
    u, data = p.centre(x, t, y), model(x, t, anchor=y)
    return (u - expand(p.alpha(t), x) * data) / expand(p.sigma(t), x)


def path_independence(nfe: int = 20) -> dict[str, float]:
    """{path: largest difference of 8 generated digits} between a path of the residual and the noise and the model's own."""
    model = interop.load_model("digits").eval().requires_grad_(False)
    base, start, end = model.process, 0.99, 0.01
    times = torch.linspace(start, end, nfe + 1, dtype=torch.float64).tolist()
    z = base.prior((8, 1, 8, 8), t=start)
    x = sample(model, compile_plan("ddim", base, times), x=z) / float(base.alpha(end))
    found = {}
    for name, path in {
        "straight": Flow(),
        "residual decreasing, noise increasing": RDDM(scale=1.0, anchored=False),
        "noise decreasing, residual increasing": RDDM("increasing", "decreasing", scale=1.0, anchored=False),
        "first the residual, then the noise": Corner(),
    }.items():
        own = path.time(base.logsnr(torch.tensor(times, dtype=torch.float64))).tolist()
        scaled = z * float(path.alpha(own[0]) / base.alpha(start))
        there = sample(model.on(path), compile_plan("ddim", path, own), x=scaled) / float(path.alpha(own[-1]))
        found[name] = float((there - x).abs().max())
    return found
