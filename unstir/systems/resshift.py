"""ResShift: Efficient Diffusion Model for Image Super-Resolution by Residual Shifting (2023).

For people who restore photographs (enlarging, filling in, faces) and need the sharpness of diffusion in 4 to 15 calls. The
chain does not run from noise to the picture but from the degraded picture y, plus noise, to the picture:

    x_t = x0 + η_t (y − x0) + κ√η_t z,      x' = r x + (1 − r) D + κ√(η'(1 − r)) z,   r = η'/η

A larger κ is sharper and less faithful. In the step y cancels, so the network need not see y; it restores better if it does.

Parts: `process.ResShift` with the published schedules, the solver "bridge" (or any other: u = x − ηy is an ordinary
diffusion), a network that sees y. `resshift_plan` is the published sampler.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import train
from ..denoiser import Denoiser
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import Process, ResShift
from ..solvers import plan
from ._digits import report
from ._pairs import PairUNet, enlarged, photo_pairs, psnr, sharpness, trained, untrained
from .protocol import Result, at_least, at_most

FOUR = ResShift(kappa=2.0, levels=4, min_noise=0.2)  # the schedule of the 4-step models
FIFTEEN = ResShift(kappa=2.0, levels=15, min_noise=0.04)
RECIPE = 1  # part of the cache's name: raise it when the network or its training changes
SIDE = 32


def resshift_plan(process: ResShift) -> Plan:
    """The published sampler: the bridge step at the T levels of the process, T calls, from y + κ√η_T z."""
    return plan("bridge", process, process.levels, process.nodes, rule="ve")


def at_levels(process: ResShift) -> train.Levels:
    """The density of training times: the T published labels alone, all equally often."""

    def quantile(_: Process, u: Tensor) -> Tensor:
        return process.time_of_label((u * process.levels).floor().clamp_max(process.levels - 1))

    return train.Levels(quantile, lambda _, t: t)


def network(folder: Path, process: ResShift, steps: int, device: str = "cpu", seed: int = 0) -> Denoiser:
    """A restorer of enlarged photographs: predicts x0 − y with the plain mean square, batch 16, rate 2e-3, average 0.99."""
    model = untrained(PairUNet, process, "data", frame="residual", shape=(1, SIDE, SIDE), seed=seed)
    name = f"resshift-v{RECIPE}-{process.levels}-{steps}-{seed}.safetensors"
    data = photo_pairs(enlarged, 2000, SIDE)
    objective = train.Objective("data", at_levels(process))
    return trained(
        model, data, folder / name, steps, objective=objective, device=device,
        batch=16, warmup=50, seed=seed, process="resshift", predicts="data", ema=0.99, flip=True,
    )  # fmt: skip


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Photographs enlarged four times: sharper than one call, about as faithful as interpolation, and 4 steps as good as 15.

    large: networks trained for 10 000 steps instead of 700.
    """
    steps = 10_000 if large else 700
    four, fifteen = (network(out.parent, process, steps, device) for process in (FOUR, FIFTEEN))
    test = photo_pairs(enlarged, 64, SIDE, test=True)
    x, y = test.all().to(device), test.anchors(range(len(test))).to(device)
    found = {
        "interpolated": y,
        "one call": four(sample_start(FOUR, y), 1.0, anchor=y),
        "4 calls": sample(four, resshift_plan(FOUR), anchor=y),
        "15 calls": sample(fifteen, resshift_plan(FIFTEEN), anchor=y),
    }
    decibels = {name: psnr(value, x) for name, value in found.items()}
    sharp = {name: sharpness(value.clamp(-1, 1)) for name, value in found.items()} | {"truth": sharpness(x)}
    lack = {name: abs(1 - value / sharp["truth"]) for name, value in sharp.items()}
    claims = [
        at_most("sharpness lacking after 4 calls, against ¾ of what one call lacks", lack["4 calls"], 0.75 * lack["one call"]),
        at_least("PSNR in dB of 4 calls, against interpolation less 0.4", decibels["4 calls"], decibels["interpolated"] - 0.4),
        at_most("PSNR in dB that 15 calls gain over 4", decibels["15 calls"] - decibels["4 calls"], 0.7),
    ]  # fmt: skip
    page = report(
        "Residual shifting in 4 calls",
        f"{len(x)} crops of the photographs' right third, a quarter of the resolution with noise of 10/255, enlarged by "
        f"interpolation (y) and restored by networks that learned on the left two thirds for {steps} steps.",
        claims,
    )
    rows = [[name, decibels.get(name), sharp[name]] for name in sharp]
    page.table(rows, ["", "PSNR in dB", "mean |difference| of neighbours"])
    shown = {**found, "truth": x}
    sheet = labelled_rows({n: v[:10].clamp(-1, 1).cpu() for n, v in shown.items()}, value_range=(-1, 1))
    save_png(sheet, out / "crops.png")
    page.picture(sheet, "Crops that the networks have not seen.")
    page.save(out / "report.html")
    return Result(claims, {"PSNR": decibels, "sharpness": sharp, "training steps": steps})


def sample_start(process: ResShift, y: Tensor, seed: int = 0) -> Tensor:
    """x_1 = y + κ√η_T z, where sampling begins."""
    return process.prior(tuple(y.shape), seed=seed, anchor=y, dtype=y.dtype, device=y.device)


def schedule(process: ResShift) -> Tensor:
    """√η at the labels 0 … T − 1."""
    return process.sqrt_eta(process.time_of_label(torch.arange(process.levels)))
