"""Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps (2024): the time-shift sampler.

For people who sample an existing network with few steps, so that the states drift off what it was trained on. Each
row tells the network, sample by sample, the time whose marginal variance the state really has. No training and
no further calls: one variance a row.

Parts: `unstir.steer.time_shift` (denoiser → denoiser) under any plan; here DDIM on the 1000-level linear schedule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import load
from ..evaluate import frechet, labelled_rows, save_png
from ..plan import Plan, Step, sample
from ..process import Process, from_betas
from ..solvers import plan
from ..steer import matched_time, time_shift
from ._digits import error_section, report, trained
from .protocol import Result, at_most

WINDOW, CUTOFF = 200, 300


def linear_process() -> Process:
    """The 1000 levels of DDPM, β from 1e-4 to 0.02."""
    return from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def pixel_variance(x0: Tensor) -> float:
    """V₀: the mean over the samples of the unbiased variance over their values."""
    return float(x0.flatten(1).double().var(1).mean())


def drift(model: Any, table: Plan, x: Tensor, x0_var: float) -> tuple[float, Tensor]:
    """How far the states leave their marginals, and where they end.

    The distance is the mean over the rows of |mean v(X) − V(t)|, V = α² V₀ + σ²; the last row, to clean data, is left out.
    """
    off: list[float] = []

    def look(step: Step) -> None:
        alpha, sigma = float(table.process.alpha(step.to)), float(table.process.sigma(step.to))
        if sigma > 0:
            off.append(abs(pixel_variance(step.x) - (alpha**2 * x0_var + sigma**2)))

    end = sample(model, table, x=x, on_step=look)
    return sum(off) / len(off), end


def recovered(x0: Tensor, process: Process, level: int, x0_var: float) -> float:
    """Median of |n̂ − n| when the level n is read off the variance of x_t itself, in a window that is no limit."""
    t = (level + 1) / 1000
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(level), dtype=torch.float64)
    tau = matched_time(process.stir(x0.double(), t, noise), t, process, 2000, x0_var)
    return float(((tau - t).abs() * 1000).median())


def patches(size: int = 16) -> Tensor:
    """scikit-learn's two photographs cut into patches (N, 3, size, size), values in [−1, 1]."""
    from sklearn.datasets import load_sample_images

    photos: Any = load_sample_images()
    photo = torch.stack([torch.tensor(p) for p in photos.images]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return photo.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, size, size)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """DDIM with and without the shift at 5 to 50 steps: Fréchet distance to the digits, and how far the states drift.

    large: a network trained for 4800 steps instead of 1500.
    """
    process, digits = linear_process(), load("digits").all()
    net = trained(process, out.parent, 4800 if large else 1500).to(device)
    v0 = pixel_variance(digits)
    models = {
        "DDIM": net,
        "shifted, window 60": time_shift(net, 60, CUTOFF, x0_var=v0),
        "shifted, window 200": time_shift(net, WINDOW, CUTOFF, x0_var=v0),
        "window 200, noise variance only": time_shift(net, WINDOW, CUTOFF, variance="noise"),
    }
    x = process.prior((2000, 1, 8, 8), device=device)
    distances: dict[str, dict[int, float]] = {name: {} for name in models}
    drifts: dict[str, dict[int, float]] = {name: {} for name in models}
    pictures: dict[str, Tensor] = {}
    floor = None
    for n in (5, 10, 20, 50):
        table = plan("ddim", process, n, "uniform")
        for name, model in models.items():
            drifts[name][n], end = drift(model, table, x, v0)
            score = frechet(digits.flatten(1), end.flatten(1).cpu())
            distances[name][n], floor = score.value, score.floor
            if n <= 10:
                pictures[f"{name}, {n}"] = end[:10].cpu()
    ddim, shifted = distances["DDIM"], distances["shifted, window 200"]
    claims = [at_most(f"{n} steps: FD with the shift, against 0.93 of DDIM's", shifted[n], 0.93 * ddim[n]) for n in (5, 10, 20)]
    claims += [
        at_most(f"{n} steps: distance of the states' variance from the marginal's, against DDIM's", b[n], a[n])
        for a, b in [(drifts["DDIM"], drifts["shifted, window 200"])]
        for n in (5, 10, 20)
    ]
    photos = patches()
    levels = {
        f"{name}, {kind} variance": {
            n: recovered(data, process, n, pixel_variance(data) if kind == "full" else 0.0) for n in (200, 350, 500, 700)
        }
        for name, data in (("digits, d = 64", digits), ("photographs, d = 768", photos))
        for kind in ("full", "noise")
    }

    page = report(
        "Time-shift sampler",
        f"A small network trained on the digits, unconditional, {len(x)} samples, DDIM on a 1000-level linear schedule, cutoff "
        f"{CUTOFF}, the network's noise read at the matched time. FD: Fréchet distance of 24 principal coordinates; two halves "
        f"of the data have {floor:.2g}.",
        claims,
    )
    error_section(page, out, distances, "Fréchet distance to the digits.", "frechet", "FD")
    page.text("## The mechanism")
    error_section(
        page,
        out,
        drifts,
        "Mean over the rows of the distance of the states' variance to the marginal's.",
        "drift",
        "|mean v − V|",
    )
    sheet = labelled_rows(pictures)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "The same starts; the number is that of steps.")
    page.text(
        "## How well a level is read off the variance\n\nMedian error in levels of 1000 for truly stirred data. The variance "
        "over few pixels is uncertain; and where data still shows, the noise variance alone is the wrong target."
    )
    columns = ["data", *(str(n) for n in (200, 350, 500, 700))]
    page.table([[name, *row.values()] for name, row in levels.items()], columns).save(out / "report.html")
    return Result(claims, {"FD": distances, "FD floor": floor, "drift": drifts, "level error": levels, "V0": v0})
