"""Denoising MCMC for Accelerating Diffusion-Based Generative Models (2023).

For people who draw many samples from one model and want each further one for about 10 calls, with any integrator.
A Markov chain walks in the product space of pictures and noise levels, near the data: a Langevin step in x, then
the level is what a small classifier sees. Now and then the state is denoised from its own level; that leg is
short, since it starts low, and the price of coming down from pure noise is paid once per chain.

Parts: `unstir.steer.ProductChain`, whose emission runs plans with a start level per sample (`stacked`); a noise-level
head; here Heun's method on EDM's grid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import train
from .._files import read_tensors, write_tensors
from ..data import load
from ..evaluate import error_plot, frechet, labelled_rows, save_png
from ..plan import Plan, sample
from ..process import EDM
from ..solvers import plan
from ..steer import ProductChain
from ._digits import report, trained
from .protocol import Result, at_most

PROCESS = EDM(sigma_min=0.02, sigma_max=20.0)
LEVELS = 0.02 * 1000.0 ** torch.linspace(1, 1e-3, 1000, dtype=torch.float64)  # σ_k = σ_min (σ_max/σ_min)^{t_k}
HEAD = 1  # part of the cache's name: raise it when the head or its training changes


class NoiseHead(nn.Module):
    """Logits over the noise levels `LEVELS` of noisy 8 × 8 pictures; its input is squashed by asinh(2x)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(LEVELS))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.asinh(2 * x.flatten(1)))

    @torch.no_grad()
    def most_likely(self, x: Tensor) -> Tensor:
        """The level with the largest logit, (B,): what the published code takes."""
        return LEVELS.to(x.device)[self(x).argmax(1)]

    @torch.no_grad()
    def drawn(self, x: Tensor) -> Tensor:
        """A level drawn from the softmax, (B,): what Gibbs sampling would take."""
        return LEVELS.to(x.device)[torch.multinomial(self(x).softmax(1), 1)[:, 0]]


def trained_head(folder: Path, steps: int = 1500, seed: int = 0) -> NoiseHead:
    """The head, trained on digits + σ_k z with uniform k by cross-entropy, and kept in `folder`."""
    path = folder / f"digits-noise-head-v{HEAD}-{steps}-{seed}.safetensors"
    head = NoiseHead()
    if not path.exists():
        digits = load("digits").all()
        with torch.random.fork_rng(devices=[]), train.bar(steps, "noise head") as progress:
            torch.manual_seed(seed)
            head = NoiseHead()
            adam = torch.optim.Adam(head.parameters(), 1e-3)
            for step in range(1, steps + 1):
                k = torch.randint(0, len(LEVELS), (192,))
                x0 = digits[torch.randint(0, len(digits), (192,))]
                x = x0 + LEVELS[k].float()[:, None, None, None] * torch.randn_like(x0)
                loss = nn.functional.cross_entropy(head(x), k)
                adam.zero_grad()
                loss.backward()
                adam.step()
                progress({"step": step, "loss": float(loss.detach())})
        write_tensors(path, head.state_dict())
    head.load_state_dict(read_tensors(path))
    return head.eval().requires_grad_(False)


def heun(t: float, nfe: int = 5) -> Plan:
    """The short leg: Heun's method on EDM's grid from time t to clean data."""
    return plan("heun", PROCESS, nfe, "karras", t)


def start_chain(
    model: Any, level: Callable[[Tensor], Tensor], chains: int, eta: float, seed: int = 0, device: str = "cpu", warmup: int = 0
) -> ProductChain:
    """Chains that begin near the data: a full sample and half a unit of noise, then `warmup` steps of η = 0.5 and of `eta`.

    The paper takes warmup=10; on digits that only raises σ, and the samples get worse.
    """
    x = sample(model, plan("heun", PROCESS, 39, "karras"), shape=(chains, 1, 8, 8), seed=seed, device=device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    chain = ProductChain(model, level, x + 0.5 * noise, eta=0.5, seed=seed)
    chain.step(warmup)
    chain.eta = eta
    chain.step(warmup)
    return chain


def autocorrelation(x: Tensor) -> float:
    """Lag 1 of emissions x (rounds, chains, *):  Σ (x_{r+1} − m)(x_r − m)/Σ (x_r − m)², m the mean of all."""
    d = x - x.mean((0, 1))
    return float((d[1:] * d[:-1]).sum() / (d[:-1] ** 2).sum())


class Measured(NamedTuple):
    """Several runs of 200 chains × 10 emissions: their mean FD and its range, lag-1 autocorrelation, mean σ at the end."""

    fd: float
    low: float
    high: float
    autocorrelation: float
    sigma: float
    chain: Tensor  # ten emissions in a row of one chain


def fd(x: Tensor) -> float:
    """Fréchet distance of x to the digits, in 24 principal coordinates."""
    return frechet(load("digits").all().flatten(1), x.flatten(1).cpu()).value


def emissions(chain: ProductChain, skip: int = 5, rounds: int = 10) -> Tensor:
    """(rounds, chains, 1, 8, 8), each sample for skip + 5 calls."""
    return torch.stack([chain.emit(skip, heun) for _ in range(rounds)])


def measure(model: Any, level: Callable[[Tensor], Tensor], eta: float, skip: int, runs: int, device: str) -> Measured:
    """`runs` independent runs: two hundred chains differ much from one to the next."""
    found = []
    for seed in range(runs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # what `NoiseHead.drawn` draws from
            chain = start_chain(model, level, 200, eta, seed, device)
            drawn = emissions(chain, skip)
        found.append((fd(drawn.flatten(0, 1)), autocorrelation(drawn), float(chain.sigma.mean()), drawn[:, 0].cpu()))
    scores = [run[0] for run in found]
    auto, sigma = (sum(run[k] for run in found) / runs for k in (1, 2))
    return Measured(sum(scores) / runs, min(scores), max(scores), auto, sigma, found[0][3])


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Fréchet distance of 200 chains × 10 emissions at 8 and 10 calls each, beside Heun and Euler from pure noise.

    Means of 5 runs are compared (of 2 at the larger η). large: a network trained for 4800 steps instead of 1500, and
    one long chain of 2000 emissions.
    """
    net = trained(PROCESS, out.parent, 4800 if large else 1500).to(device)
    head = trained_head(out.parent).to(device)
    noise = PROCESS.prior((2000, 1, 8, 8), device=device)
    scores, shown, curve = {}, {"digits": load("digits").all()[:10]}, {}
    for name, solver in (("Heun", "heun"), ("Euler", "euler")):
        for n in (9, 19):
            x = sample(net, plan(solver, PROCESS, n, "karras"), x=noise)
            scores[f"{name}, {n} calls"] = fd(x)
            curve.setdefault(name, []).append((n, fd(x)))
            if n == 9:
                shown[f"{name}, {n} calls"] = x[:10].cpu()
    rows: list[list[Any]] = [[name, value, None, None, None] for name, value in scores.items()]
    runs: dict[str, Measured] = {}
    for rule, level, eta in (
        ("arg max", head.most_likely, 0.2),
        ("arg max", head.most_likely, 0.5),
        ("arg max", head.most_likely, 1.0),
        ("softmax", head.drawn, 0.2),
    ):
        for skip in (3, 5):
            name = f"{rule}, η {eta}, {skip} + 5 calls"
            m = runs[name] = measure(net, level, eta, skip, 5 if eta == 0.2 else 2, device)
            scores[name] = m.fd
            rows.append([name, m.fd, f"{m.low:.3g} … {m.high:.3g}", m.autocorrelation, m.sigma])
            curve.setdefault(f"{rule}, η {eta}", []).append((skip + 5, m.fd))
            if rule == "arg max" and skip == 5:
                shown[f"one chain, step {eta}"] = m.chain
    main, gibbs = "arg max, η 0.2, 5 + 5 calls", "softmax, η 0.2, 5 + 5 calls"
    others = {
        "2000 chains × 1": (2000, 1, 0),
        "200 chains × 50": (200, 50, 0),
        "200 × 10 after the paper's warm-up": (200, 10, 10),
    }
    if large:
        others["1 chain × 2000"] = (1, 2000, 0)
    extra = {
        name: fd(emissions(start_chain(net, head.most_likely, chains, 0.2, 5, device, warmup), rounds=rounds).flatten(0, 1))
        for name, (chains, rounds, warmup) in others.items()
    }
    claims = [
        at_most(
            "FD of 200 chains × 10 emissions of 10 calls (mean of 5 runs), against half of the best of Heun and Euler with 9",
            scores[main],
            0.5 * min(scores["Heun, 9 calls"], scores["Euler, 9 calls"]),
        ),
        at_most("10 calls: FD with the arg max, against the one with a draw from the softmax", scores[main], scores[gibbs]),
        at_most("lag-1 autocorrelation of the emissions of a chain", runs[main].autocorrelation, 0.9),
    ]

    page = report(
        "Denoising MCMC",
        "A small network trained on the digits, unconditional, α = 1, σ from 20 to 0.02; a noise-level head with 1000 classes. "
        "FD: Fréchet distance of 24 principal coordinates over 2000 samples (two halves of the data have 0.19).",
        claims,
    )
    page.table(rows, ["sampler", "FD (mean)", "range", "autocorrelation", "mean σ at the end"], best={"FD (mean)": "min"})
    page.plot(error_plot(curve, ylabel="FD"))
    page.text(
        "Emissions of one chain resemble each other, so 200 × 10 count for fewer than 2000; and as published the chain slowly "
        "climbs in σ (each discrete Langevin step adds η²/4σ² to the variance), and from there five calls are too few."
    )
    page.table(list(extra.items()), ["chains at η 0.2, 5 + 5 calls, one run", "FD"])
    sheet = labelled_rows(shown)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "Ten samples each; of a chain ten emissions in a row, 10 calls each.").save(out / "report.html")
    figures = {name: {"range": [m.low, m.high], "autocorrelation": m.autocorrelation} for name, m in runs.items()}
    return Result(claims, {"FD": scores | extra, "runs": figures})
