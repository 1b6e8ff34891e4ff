"""Solving Diffusion ODEs with Optimal Boundary Conditions for Better Image Super-Resolution (2024).

For users of a conditional super-resolver who want one fixed, reproducible result that is better than an average one, in
few calls and without training. The end of a deterministic plan is a function of its start; one start x_T, found on a few
dozen pairs by plain search, is shared by every later input:

    x̃_T = argmin_k 1/|R| Σ_r M(h(x_T^(k), y_r), x_r).

Parts: `unstir.steer.search_start`; DDIM on the VP process; a small network trained here on pairs, and the features of
a small classifier as perceptual distance M.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .._files import read_tensors, write_tensors
from ..data import load
from ..denoiser import Denoiser
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP
from ..solvers import plan
from ..steer import search_start
from ..steer.boundary import candidate, rank_correlation
from ..train import Objective
from ._digits import SIGMA_DATA, report
from ._restore import psnr, table
from ._trunk import ResidualMLP, zero
from .protocol import Result, at_least, at_most

RECIPE = 1  # part of the caches' names: raise it when a network or its training changes
BUDGETS = (4, 8, 20)


def ddim(nfe: int) -> Plan:
    """DDIM on the grid uniform in t of the VP process."""
    return plan("ddim", VP(), nfe, "uniform", 1.0, 0.0)


def low_resolution(x: Tensor) -> Tensor:
    """y: the means of 2 × 2 blocks, each repeated, so that y has the size of x."""
    return nn.functional.avg_pool2d(x, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)


class PairNet(ResidualMLP):
    """F(c_in x̂, c_noise, y) for 8 × 8 pictures: F = H h with h of `ResidualMLP` on (x, y)."""

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__(128, torch.logspace(-2, 3, 16, base=2), width=width, blocks=blocks, layers=1)
        self.head = zero(nn.Linear(width, 64))
        self.close()

    def forward(self, x: Tensor, time: Tensor, low: Tensor) -> Tensor:
        return self.head(self.trunk(torch.cat([x.flatten(1), low.flatten(1)], 1), time)).reshape(x.shape)


class Features(nn.Module):
    """A classifier of digits with two convolutions, whose activations say what looks alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(1, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.Linear(1024, 10),
        )

    def layers(self, x: Tensor) -> list[Tensor]:
        one = nn.functional.relu(self.first(x))
        return [one, nn.functional.relu(self.second(nn.functional.max_pool2d(one, 2)))]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[-1].flatten(1))

    @torch.no_grad()
    def distance(self, x: Tensor, truth: Tensor) -> Tensor:
        """M (n,): mean square distance of the channels normalised to length 1, summed over the layers (the recipe of LPIPS)."""
        total = torch.zeros(len(x))
        for a, b in zip(self.layers(x), self.layers(truth), strict=True):
            a, b = (f / f.norm(dim=1, keepdim=True).clamp_min(1e-8) for f in (a, b))
            total = total + (a - b).square().sum(1).mean((1, 2)).cpu()
        return total


def _fit(network: nn.Module, loss: Callable[[Tensor], Tensor], count: int, steps: int, path: Path, rate: float = 2e-3) -> None:
    """Trains `network` on loss(rows) with Adam and a falling rate, averages its weights, and keeps them in `path`."""
    if not path.exists():
        generator = torch.Generator().manual_seed(0)
        average = {k: v.clone() for k, v in network.state_dict().items()}
        optimizer = torch.optim.Adam(network.parameters(), rate)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
        for step in range(steps):
            optimizer.zero_grad()
            loss(torch.randint(count, (192,), generator=generator)).backward()
            optimizer.step()
            falling.step()
            keep = min(0.995, step / (step + 10))
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        write_tensors(path, average)
    network.load_state_dict(read_tensors(path))
    network.eval().requires_grad_(False)


def super_resolver(x: Tensor, folder: Path, steps: int = 1657) -> Denoiser:
    """A network that sees `low`, trained on the pairs of x; log σ̂ ~ N(−0.4, 1.4²)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PairNet()
    model = Denoiser(network, VP(), "edm", time="c_noise", sigma_data=SIGMA_DATA, shape=(1, 8, 8))
    objective, low = Objective(levels="lognormal:-0.4,1.4"), low_resolution(x)

    def loss(rows: Tensor) -> Tensor:
        noise = torch.randn(len(rows), 1, 8, 8)
        return objective.loss(model, x[rows], noise, objective.times(model, torch.rand(len(rows))), {"low": low[rows]})[0]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _fit(network, loss, len(x), steps, folder / f"pairs-v{RECIPE}-{steps}.safetensors")
    return model


def classifier(x: Tensor, labels: Tensor, folder: Path, steps: int = 400) -> Features:
    """The network whose features measure M."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Features()
        _fit(
            network,
            lambda rows: nn.functional.cross_entropy(network(x[rows]), labels[rows]),
            len(x),
            steps,
            folder / f"features-v{RECIPE}-{steps}.safetensors",
        )
    return network


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """× 2 super-resolution of held-out digits by DDIM with 4, 8 and 20 calls: random starts, x_T = 0, and the one found.

    60 candidates on 24 training pairs (large: 600 on 96), measured on all 297 held-out digits.
    """
    data, rest = load("digits", split="train"), load("digits", split="test").all()
    assert data.labels is not None
    x = data.all()
    count, pairs = (600, 96) if large else (60, 24)
    model = super_resolver(x[pairs:], out.parent)  # the references are not among what it has learned
    metric = classifier(x[pairs:], data.labels[pairs:], out.parent).distance
    low = low_resolution(rest)

    found: dict[str, dict[str, float]] = {"random": {}, "zero": {}, "found": {}}
    decibels: dict[str, dict[str, float]] = {"input": {}, "random": {}, "zero": {}, "found": {}}
    shown = {"truth": rest[:10], "input": low[:10]}
    correlation, spread = {}, {}
    for n in BUDGETS:
        table_, name = ddim(n), f"{n} calls"
        best = search_start(
            model, table_, x[:pairs], metric, {"low": low_resolution(x[:pairs])}, candidates=count, halving=False
        )
        ends = {
            "random": sample(model, table_, shape=len(rest), low=low),
            "zero": sample(model, table_, x=torch.zeros_like(rest), low=low),
            "found": sample(model, table_, x=best.expand(table_, len(rest)), low=low),
        }
        for kind, end in ends.items():
            found[kind][name], decibels[kind][name] = float(metric(end, rest).mean()), psnr(end, rest)
        decibels["input"][name] = psnr(low, rest)
        # Does the ranking on the references hold on other digits?
        some = list(range(30))
        starts = (candidate(table_, (1, 8, 8), 0, k, x).expand(len(rest), 1, 8, 8) for k in some)
        held = torch.stack([metric(sample(model, table_, x=start, low=low), rest).mean() for start in starts])
        correlation[name] = rank_correlation(torch.stack([best.table[k].mean() for k in some]), held)
        spread[name] = float(held.std())
        shown |= {f"random, {n}": ends["random"][:10], f"found, {n}": ends["found"][:10]}

    sheet = labelled_rows(shown)
    save_png(sheet, out / "digits.png")
    late = [f"{n} calls" for n in BUDGETS[1:]]
    gain = {name: decibels["found"][name] - decibels["random"][name] for name in decibels["found"]}
    claims = [
        *(
            at_most(f"{n}: held-out distance M, against 0.95 of random starts", found["found"][n], 0.95 * found["random"][n])
            for n in late
        ),
        at_least("rank correlation of candidates, references and held-out, least", min(correlation.values()), 0.4),
        at_least("PSNR over random starts, least gain at 8 and 20 calls, dB", min(gain[n] for n in late), 0.3),
        at_most("found, 4 calls: M, against random starts with 20", found["found"]["4 calls"], found["random"]["20 calls"]),
    ]
    page = report(
        "Optimal boundary conditions",
        f"A small conditional network, DDIM uniform in t of VP; {count} candidates on "
        f"{pairs} pairs; {len(rest)} held-out digits.",
        claims,
    )
    rows, columns = table(found)
    page.table(
        rows, columns, best=dict.fromkeys(columns[1:], "min"), caption="M on held-out digits; x_T = 0 is a candidate too."
    )
    rows, columns = table(decibels)
    page.table(rows, columns, best=dict.fromkeys(columns[1:], "max"), caption="PSNR, dB.").picture(sheet)
    page.save(out / "report.html")
    return Result(claims, {"M": found, "PSNR": decibels, "rank correlation": correlation, "spread of M over starts": spread})
