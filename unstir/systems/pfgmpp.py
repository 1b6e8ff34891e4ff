"""PFGM++: Unlocking the Potential of Physics-Inspired Generative Models (2023).

For people with an EDM recipe who want a dial between robust and rigid: heavy-tailed noise with D degrees of freedom, from
the Poisson flow (D = 1) to diffusion (D = ∞). A network that has seen the wide noise of a moderate D still knows what
to do when its input is off because noise was injected on the way. (The paper finds the same for rounded weights; on
this small network it is not seen: rounding hurts little, and at no D reliably less.)

Parts: `unstir.process.Poisson`, which changes only how noise is drawn in training and at the start; EDM's
preconditioning, loss, grid and Heun steps as they are. Here are the two probes of robustness.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import train
from .._random import normal
from ..data import load
from ..denoiser import Denoiser
from ..evaluate import energy_distance, labelled_rows, save_png
from ..plan import Plan, sample
from ..plan.hooks import Context
from ..process import EDM, Poisson
from ..process.base import expand
from ..solvers import plan
from ._digits import report, untrained
from ._kept import once
from .protocol import Result, at_most

SIGMA = {"sigma_min": 0.01, "sigma_max": 40.0}
DIMENSIONS = (math.inf, 64.0, 16.0)
RECIPE = 1  # part of the cache's name: raise it when the training changes
_INJECT = 1 << 37  # noise streams of the probe


def process(D: float) -> Poisson:
    """The process of the experiment: σ from 40 to 0.01, D extra dimensions."""
    return Poisson(D, EDM(**SIGMA))


def heun(D: float, nfe: int = 35) -> Plan:
    """EDM's sampler, which is PFGM++'s: Heun steps on the ρ = 7 grid, no churn."""
    return plan("heun", process(D), nfe, "karras")


class InjectNoise:
    """A hook that spoils the run: before every step, x ← x + α σ z. (Before the first, the start itself.)"""

    def __init__(self, model: Any, alpha: float, seed: int = 0) -> None:
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha} must be at least 0, the injected noise in units of σ")
        self.process, self.alpha, self.seed = model.process, alpha, seed

    def spoiled(self, x: Tensor, t: float, stream: int) -> Tensor:
        """x + α σ(t) z."""
        z = normal(tuple(x.shape), seed=self.seed, stream=_INJECT + stream, dtype=x.dtype, device=x.device)
        return x + expand(self.alpha * self.process.sigma(t), x) * z

    def on_row(self, ctx: Context, x: Tensor) -> Tensor | None:
        return self.spoiled(x, ctx.to, ctx.index + 1) if ctx.boundary else None


def inject_noise(model: Any, run: Plan, shape: tuple[int, ...], alpha: float, seed: int = 0) -> Tensor:
    """Samples whose every step began from a state that was moved by α σ z."""
    hook = InjectNoise(model, alpha, seed)
    x = hook.spoiled(run.process.prior(shape, seed=seed, t=run.start), run.start, 0)
    return sample(model, run, x=x, hooks=hook)


def quantise_weights(model: Denoiser, bits: int) -> Denoiser:
    """A copy whose weight matrices are rounded to 2^bits levels between their smallest and largest entry, biases not."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
        raise ValueError(f"bits={bits!r} must be an integer of at least 1")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.ndim < 2:
                continue
            low, step = weight.min(), (weight.max() - weight.min()) / (2**bits - 1)
            weight.copy_(low + ((weight - low) / step.clamp_min(1e-30)).round() * step)
    return twin


def trained(D: float, folder: Path, steps: int = 1500, seed: int = 0) -> Denoiser:
    """The network trained on all digits with D extra dimensions, once, and kept in `folder` as safetensors."""
    config = train.TrainConfig(
        data="digits", split="all", steps=steps, batch=192, schedule="linear", warmup=0, seed=seed, process="edm",
        levels="lognormal:-0.6,1.2", ema=0.99, cond_dropout=1.0, device="cpu", checkpoint_every=steps, keep=1,
    )  # fmt: skip
    found = once(
        folder / f"pfgmpp-v{RECIPE}-{D:g}-{steps}-{seed}.safetensors",
        steps,
        lambda run, bar: train.fit(untrained(process(D), seed), load("digits"), config, run, resume=True, progress=bar),
        title=f"digits, D = {D:g}",
    )
    model = untrained(process(D), seed)
    assert isinstance(model.network, nn.Module)
    model.network.load_state_dict(found)
    return model.eval().requires_grad_(False)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Energy distance to all digits of 1797 samples with 35 calls: clean, with noise injected, and with rounded weights.

    Means of 2 trainings for every D, the same seeds for all. large: three trainings of 4800 steps.
    """
    seeds, steps = (range(3), 4800) if large else (range(2), 1500)
    digits = load("digits").all()
    shape = (len(digits), 1, 8, 8)
    names = ["clean", "noise α = 0.3", "5-bit weights", "4-bit weights"]
    found = {d: dict.fromkeys(names, 0.0) for d in DIMENSIONS}
    shown: dict[str, Tensor] = {"digits": digits[:10]}

    def distance(x: Tensor) -> float:
        return energy_distance(digits, x.cpu(), "pixel").value / len(seeds)

    for d in DIMENSIONS:
        run = heun(d)
        for seed in seeds:
            net = trained(d, out.parent, steps, seed).to(device)
            noise = process(d).prior(shape, seed=100 + seed, device=device)
            samples = {
                "clean": sample(net, run, x=noise),
                "noise α = 0.3": inject_noise(net, run, shape, 0.3, 100 + seed),
            }
            for bits in (5, 4):
                samples[f"{bits}-bit weights"] = sample(quantise_weights(net, bits), run, x=noise)
            for name, x in samples.items():
                found[d][name] += distance(x)
                if seed == 0 and name in ("clean", "noise α = 0.3"):
                    shown[f"D = {d:g}, {name}"] = x[:10].cpu().clamp(-1, 1)
    best, robust = DIMENSIONS[1], DIMENSIONS[2]
    gauss = found[math.inf]
    noisy, rounded = names[1], names[2]
    claims = [
        at_most("noise α = 0.3 in every step: D = 16, against 0.6 of diffusion's", found[robust][noisy], 0.6 * gauss[noisy]),
        at_most("5-bit weights: D = 16, against 0.8 of diffusion's", found[robust][rounded], 0.8 * gauss[rounded]),
        at_most("clean: D = 64, against 1.3 of diffusion's", found[best]["clean"], 1.3 * gauss["clean"]),
    ]
    page = report(
        "PFGM++",
        f"One small network per D and seed, trained on the digits with Student noise; EDM's Heun sampler, {len(heun(16))} "
        f"calls. Energy distance of {len(digits)} samples to all digits, mean of {len(seeds)} trainings.",
        claims,
    )
    rows = [[f"{d:g}", *found[d].values()] for d in DIMENSIONS]
    page.table(rows, ["D", *names], best=dict.fromkeys(names, "min"))
    sheet = labelled_rows(shown)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "Ten samples each, equal directions of the start noise in all rows.").save(out / "report.html")
    return Result(claims, {"energy distance": {f"{d:g}": row for d, row in found.items()}})
