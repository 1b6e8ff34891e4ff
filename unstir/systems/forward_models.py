"""Diffusion with Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision (2023).

For anyone who can only measure what they want to generate (scenes through cameras, maps through partial scans), and wants
samples of the thing itself, given some of its measurements. A diffusion model of measurements whose network answers with the
signal, which a known forward model measures again:

    Ŝ = network(α O + σ z, t, φ, context),    D = forward(Ŝ, φ),    loss: ‖D − O‖² + ‖forward(Ŝ, φ') − O'‖²

with another measurement O' of the same signal. Sampled as any other model, with its last Ŝ as the result: a scene that
explains the context, and another one for every seed, where a network that predicts the scene from the context alone gives the
blurred mean of them.

Parts: `denoiser.ForwardModelDenoiser` (any process), `train.fit_measurements`, any plan, `steer.cfg` and `steer.threshold`
around the bound model. Your data: scenes, each a list of (observation, parameters), and a differentiable forward(signal, phi).

In miniature: digits that are only ever seen through windows. φ = (top, left, side), forward(S, φ) is S inside of the window
and 0 outside. Contexts are noisy windows of 4 × 4 pixels, targets and novel observations windows of 6 × 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import train
from .._files import read_tensors, write_tensors
from .._random import draw
from ..data import load
from ..denoiser import ForwardModelDenoiser
from ..evaluate import frechet, labelled_rows, save_png
from ..plan import Plan, sample
from ..process import Cosine, Process
from ..solvers import plan
from ..train.scenes import distinct
from ._digits import SIGMA_DATA, report
from .protocol import Result, at_least, at_most

RECIPE = 3  # part of the cache's name: raise it when the network or its training changes
STEPS, LARGE = 5000, 40_000
HELD_OUT, SIDE, CONTEXT, TARGET = 297, 8, 4, 6
NOISE = 0.1  # of contexts
TOP, BOTTOM = (0.0, 2.0, 4.0), (2.0, 1.0, 6.0)  # the windows of the test: context and target


# -- the forward model and its measurements ---------------------------------------------------------------------------
def window(phi: Tensor) -> Tensor:
    """(B, 1, 8, 8), 1 inside of the windows φ = (top, left, side), (B, 3), and 0 outside."""
    top, left, side = (part[:, None] for part in phi.unbind(1))
    at = torch.arange(SIDE, device=phi.device)
    rows, columns = (at >= top) & (at < top + side), (at >= left) & (at < left + side)
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(phi.dtype)


def through(signal: Tensor, phi: Tensor) -> Tensor:
    """forward(S, φ): what of the pictures (B, 1, 8, 8) is seen through windows φ (B, 3)."""
    return signal * window(phi)


def digits() -> tuple[Tensor, Tensor]:
    """(train, held out): 1500 and 297 real digits (N, 1, 8, 8) in [−1, 1]."""
    x = load("digits").all()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[HELD_OUT:], x[:HELD_OUT]


class Windows:
    """Digits x (N, 1, 8, 8) as scenes that are measured at every visit: all that leaves it are views through windows.

    The digit is shifted by at most a pixel each way; a window of 4 × 4 at a random place, with noise, is at hand, another
    two of 6 × 6 are the target and the novel one.
    """

    def __init__(self, x: Tensor) -> None:
        self.padded = F.pad(x, (1, 1, 1, 1), value=-1.0)

    def __len__(self) -> int:
        return len(self.padded)

    def views(self, rows: Sequence[int], keys: Sequence[int]) -> train.Views:
        """See `train.Scenes.views`."""

        def chance(many: int, stream: int) -> Tensor:
            return torch.from_numpy(distinct(keys, np.full(len(keys), many), 1, stream)).float()

        def look(side: int, stream: int) -> Tensor:
            corner = [chance(SIDE + 1 - side, stream + i) for i in range(2)]
            return torch.cat([*corner, torch.full_like(corner[0], side)], 1)

        down, right = (chance(3, i).long()[:, :, None] + torch.arange(SIDE) for i in range(2))
        x = self.padded[torch.tensor(rows)[:, None, None], 0, down.mT, right][:, None]
        at_hand, target, novel = look(CONTEXT, 2), look(TARGET, 4), look(TARGET, 6)
        context = through(x + NOISE * draw(keys, (1, SIDE, SIDE), 8), at_hand)
        return train.Views(
            through(x, target), target, context[:, None], at_hand[:, None], through(x, novel)[:, None], novel[:, None]
        )


class WindowNet(nn.Module):
    """Ŝ of one context c, for 8 × 8 pictures; w_c and w_t are the windows of context and target, x̂ = x/α:

    h = W [x, w_t, c, w_c, ¼ λ],   three times h ← h + B silu(A LayerNorm(h)),
    Ŝ = H h + (100 w_c c + e^{2λ} w_t x̂)/(1/σ_d² + 100 w_c + e^{2λ} w_t)

    The last term is what independent pixels of variance σ_d² would be, given both windows with their noise; the network
    learns the rest. Its x has unit variance, x̂ = x √(σ_d² + e^{−2λ}).

    sees_target: False gives the baseline, which sees the context alone (w_t = 0), and predicts one signal for it.
    """

    def __init__(self, width: int = 256, blocks: int = 3, sees_target: bool = True) -> None:
        super().__init__()
        self.sees_target = sees_target
        self.enter = nn.Linear((4 if sees_target else 2) * SIDE**2 + sees_target, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.a, self.b = (nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)) for _ in range(2))
        self.head = nn.Linear(width, SIDE**2)

    def forward(self, x: Tensor, time: Tensor, phi: Tensor, context: Tensor, phi_context: Tensor) -> Tensor:
        c, w_c, w_t = context[:, 0], window(phi_context[:, 0]), window(phi)
        told, known, precision = [c, w_c], w_c * c / NOISE**2, 1 / SIGMA_DATA**2 + w_c / NOISE**2
        if self.sees_target:
            snr = torch.exp(8 * time)[:, None, None, None]  # e^{2λ}
            told = [x, w_t, *told, time]
            known, precision = known + w_t * x * (snr * (snr * SIGMA_DATA**2 + 1)).sqrt(), precision + w_t * snr
        h = self.enter(torch.cat([part.reshape(len(x), -1) for part in told], 1))
        for norm, a, b in zip(self.norms, self.a, self.b, strict=True):
            h = h + b(F.silu(a(norm(h))))
        return self.head(h).reshape(x.shape) + known / precision


def quarter_logsnr(process: Process, t: Tensor) -> Tensor:
    """¼ λ, for |λ| ≤ 8."""
    return process.logsnr(t).clamp(-8, 8) / 4


def untrained(sees_target: bool = True, process: Process | None = None, seed: int = 0) -> ForwardModelDenoiser:
    """A fresh model of windows on digits, by default on the cosine schedule."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = WindowNet(sees_target=sees_target)
    process = process or Cosine()
    return ForwardModelDenoiser(
        net, through, process, time=quarter_logsnr, sigma_data=SIGMA_DATA, shape=(1, SIDE, SIDE)
    )  # fmt: skip


def trained(folder: Path, steps: int, sees_target: bool = True, device: str = "cpu", seed: int = 0) -> ForwardModelDenoiser:
    """The model trained on the windows of 1500 digits, kept in `folder`: batch 128, rate 2e-3, weight average 0.995."""
    model = untrained(sees_target, seed=seed)
    path = folder / f"forward-models-v{RECIPE}-{'diffusion' if sees_target else 'regressor'}-{steps}-{seed}.safetensors"
    if not path.exists():
        with train.bar(steps, path.stem) as progress:
            found = train.fit_measurements(
                model.to(device), Windows(digits()[0]), steps=steps, decay=0.995, seed=seed, progress=progress
            )
        write_tensors(path, found.network.state_dict())
    model.network.load_state_dict(read_tensors(path))
    return model.to(device).eval().requires_grad_(False)


# -- sampling signals -------------------------------------------------------------------------------------------------
def signals(
    model: ForwardModelDenoiser, run: Plan, context: Tensor, phi_context: Tensor, phi: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(Ŝ, O): a sample of the signal for every context (B, K, …), and of its observation through φ."""
    bound = model.bind(context=context, phi_context=phi_context, phi=phi)
    state = sample(bound, run, shape=len(context), seed=seed, full=True)
    return state.aux["signal"], state.x


class Case(NamedTuple):
    """Contexts (B, 1, 1, 8, 8) of the digits `truth` with their windows (B, 1, 3), and where to look (B, 3)."""

    truth: Tensor
    context: Tensor
    phi_context: Tensor
    phi: Tensor


def case(truth: Tensor) -> Case:
    """The test: what of `truth` is seen through the upper window of 4 × 4, with noise; the target is the lower of 6 × 6."""
    top, bottom = (torch.tensor(phi).expand(len(truth), 3) for phi in (TOP, BOTTOM))
    noise = NOISE * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    return Case(truth, through(truth + noise, top)[:, None], top[:, None], bottom)


def measure(drawn: Tensor, truth: Tensor, axes: Tensor) -> dict[str, float]:
    """Figures of signals (M, B, 1, 8, 8), M for each context; `axes` (20, 64) for the Fréchet distance to the truth.

    Distances and variances are means over the M sets of B. Unseen pixels are those outside of the context's window.
    """
    seen = window(torch.tensor([TOP])).bool().flatten()
    x, true = drawn.flatten(2), truth.flatten(1)
    square = (x - true).square()
    distances = [frechet(true, one, lambda v: v.flatten(1).double() @ axes.T).value for one in x]
    return {
        "Fréchet distance": sum(distances) / len(distances),
        "variance of unseen pixels": float(x[..., ~seen].var(1).mean()),
        "error in the context": float(square[..., seen].mean()),
        "error of one, unseen": float(square[..., ~seen].mean()),
        "error of their mean, unseen": float((x.mean(0) - true)[:, ~seen].square().mean()),
        "deviation between samples": float(x[..., ~seen].std(0).mean()) if len(x) > 1 else 0.0,
    }


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Digits from a noisy window of 4 × 4 pixels: four diffusion samples for each, and one deterministic prediction.

    Both networks are trained alike, on windows alone. large: for 40 000 steps instead of 5000.
    """
    steps = LARGE if large else STEPS
    model, regressor = (trained(out.parent, steps, kind, device) for kind in (True, False))
    known, truth = digits()
    axes = torch.linalg.svd((known.flatten(1) - known.flatten(1).mean(0)).double(), full_matrices=False).Vh[:20]
    test = case(truth)
    at = [part.to(device) for part in (test.context, test.phi_context, test.phi)]

    def draws(run: Plan) -> Tensor:
        return torch.stack([signals(model, run, *at, seed=seed)[0].cpu() for seed in range(4)])

    runs = {"diffusion": plan("ddpm", model, 40, "uniform"), "diffusion, 8 calls": plan("dpmpp-2m", model, 8)}
    found = {name: draws(run) for name, run in runs.items()}
    shown = dict(zip(("context", "phi_context", "phi"), at, strict=True))
    one: Any = regressor.outputs(torch.zeros_like(truth).to(device), 1.0, **shown)[1][0]
    found["regressor"] = one["signal"].cpu()[None]
    figures = {name: measure(drawn, truth, axes) for name, drawn in found.items()}
    data = measure(truth[None], truth, axes)
    floor = frechet(truth, known, lambda v: v.flatten(1).double() @ axes.T).value
    ours, theirs = figures["diffusion"], figures["regressor"]
    spread = data["variance of unseen pixels"]
    claims = [
        at_most(
            "Fréchet distance to unseen digits, against 0.65 of the regressor's",
            ours["Fréchet distance"],
            0.65 * theirs["Fréchet distance"],
        ),
        at_least("variance of unseen pixels, share of the data's", ours["variance of unseen pixels"] / spread, 0.6),
        at_most("the same of the regressor", theirs["variance of unseen pixels"] / spread, 0.6),
        at_most("mean square error inside of the context", ours["error in the context"], 0.05),
        at_most(
            "mean square error of the mean of 4 samples, against that of one",
            ours["error of their mean, unseen"],
            ours["error of one, unseen"],
        ),
        at_least("standard deviation between samples of one context", ours["deviation between samples"], 0.05),
    ]
    page = report(
        "Digits that were only ever seen through windows",
        f"Networks trained for {steps} steps on windows of 1500 digits; no loss ever saw a whole one. {HELD_OUT} other digits, "
        "of each of which a noisy window of 4 × 4 pixels is known. Diffusion: 40 stochastic calls (ddpm, uniform times); the "
        "regressor is the same network without the stirred window.",
        claims,
    )
    names = list(ours)
    page.table([[name, *(row[key] for key in names)] for name, row in {**figures, "truth": data}.items()], ["", *names])
    rows = {"context": test.context[:10, 0] + (window(test.phi_context[:10, 0]) - 1)}
    rows |= {f"sample {n + 1}": found["diffusion"][n, :10] for n in range(4)}
    rows |= {"regressor": found["regressor"][0, :10], "truth": truth[:10]}
    sheet = labelled_rows({name: x.clamp(-1, 1) for name, x in rows.items()}, value_range=(-1, 1))
    save_png(sheet, out / "signals.png")
    page.picture(sheet, "Whole digits from the window in the first row, which is black outside.").save(out / "report.html")
    return Result(claims, {**figures, "truth": data, "Fréchet distance of the training digits": floor, "training steps": steps})
