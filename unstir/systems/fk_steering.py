"""A General Framework for Inference-time Scaling and Steering of Diffusion Models (2025): Feynman–Kac steering.

For anyone with a trained model and any scoring function, differentiable or not, who wants samples that score high: a
few particles a sample are denoised together, scored on the way by r(D), and resampled. Spending calls so beats
spending them on finished samples of which the best is kept (best-of-n).

Parts: `unstir.steer.particles`, for states with any process and plan; its `Population` alone, for samplers that are no
plans, here the masked diffusion of letters, whose exact network is the two-letter statistics of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._random import draw, sample_keys
from ..data import load
from ..evaluate import labelled_rows, save_png
from ..process import VP
from ..solvers import plan
from ..steer import Population, Swarm, energy, particles
from ._digits import report, trained
from .protocol import Result, at_least, at_most

ROWS, WINDOW = 50, {"every": 5, "start": 10, "stop": 41}  # as published: a few resamplings in the middle of the run
LETTERS = " abcdefghijklmnopqrstuvwxyz"


# -- rewards of digits -----------------------------------------------------------------------------------------------
def log_probability(label: int, floor: float = -8.0) -> Callable[[Tensor], Tensor]:
    """r(x) = log p(label | x), at least `floor`, of a logistic regression on all digits."""
    from sklearn.linear_model import LogisticRegression

    digits = load("digits")
    fitted = LogisticRegression(max_iter=2000).fit(digits.all().flatten(1).numpy(), digits.labels)
    weight, bias = (torch.from_numpy(v).double() for v in (fitted.coef_, fitted.intercept_))

    def reward(x: Tensor) -> Tensor:
        return (x.flatten(1).double() @ weight.T.to(x.device) + bias.to(x.device)).log_softmax(1)[:, label].clamp_min(floor)

    return reward


def ink(x: Tensor) -> list[float]:
    """Mean darkness of each picture, in sixteenths as the digits have them: rounded, so nothing can be differentiated."""
    return ((x.flatten(1) + 1) * 8).round().clamp(0, 16).mean(1).tolist()


# -- masked diffusion of letters ---------------------------------------------------------------------------------------
class Letters(NamedTuple):
    """A Markov chain of symbols: the law of the first (V,) and of each next (V, V). The exact network of masked diffusion."""

    first: Tensor
    following: Tensor

    def posterior(self, tokens: Tensor) -> Tensor:
        """(B, L, V): p(x_l | the known symbols), by messages from both sides; tokens (B, L), V where it is masked."""
        count = len(self.first)
        seen = torch.cat([torch.eye(count), torch.ones(1, count)]).double()[tokens]
        left, right = [self.first.expand(len(tokens), -1)], [torch.ones(len(tokens), count, dtype=torch.float64)]
        for position in range(tokens.shape[1] - 1):
            left.append(_normal((left[-1] * seen[:, position]) @ self.following))
            right.append(_normal((right[-1] * seen[:, -1 - position]) @ self.following.T))
        return _normal(torch.stack(left, 1) * torch.stack(right[::-1], 1) * seen)

    def tilted_count(self, letter: int, lam: float, length: int) -> float:
        """E[number of `letter`] under p(x) exp(λ number of `letter`), by the derivative of log Z."""
        lam_ = torch.tensor(lam, dtype=torch.float64, requires_grad=True)
        weight = torch.where(torch.arange(len(self.first)) == letter, lam_.exp(), 1.0)
        message, log_z = self.first * weight, torch.zeros((), dtype=torch.float64)
        for _ in range(length - 1):
            log_z = log_z + message.sum().log()
            message = (message / message.sum()) @ self.following * weight
        (slope,) = torch.autograd.grad(log_z + message.sum().log(), lam_)
        return float(slope)


def _normal(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


def letters() -> Letters:
    """The two-letter statistics of the description that scikit-learn's digits come with (about 1700 letters)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    words = "".join(c if c in LETTERS else " " for c in bunch.DESCR.lower())
    codes = torch.tensor([LETTERS.index(c) for c in " ".join(words.split())])
    pairs = torch.full((27, 27), 0.1, dtype=torch.float64).index_put((codes[:-1], codes[1:]), torch.tensor(1.0).double(), True)
    return Letters(_normal(torch.bincount(codes, minlength=27).double()), _normal(pairs))


def spell(
    law: Letters, length: int, rows: int, groups: int, letter: int, seed: int = 0, **options: Any
) -> tuple[Tensor, Population]:
    """Masked diffusion of `groups` texts, steered towards `letter`: (tokens (groups · k, length), their population).

    In each of `rows` rows a masked place shows a symbol of p(x_l | the known ones) with probability 1/(rows left); the
    reward is the expected number of `letter`. options: of `Population`, k among them.
    """
    k = options["k"]
    crowd = Population(sample_keys(groups * k, seed), **options)
    tokens = torch.full((groups * k, length), len(LETTERS))
    for row in range(rows):
        p = law.posterior(tokens)
        if row:
            crowd.weigh(p[:, :, letter].sum(1))
            perm = crowd.resample(row)
            tokens, p = (tokens, p) if perm is None else (tokens[perm], p[perm])
        u = torch.special.ndtr(draw(crowd.keys, (2, length), row, torch.float64))
        drawn = (p.cumsum(2) < u[:, 0, :, None]).sum(2).clamp_max(len(LETTERS) - 1)
        tokens = torch.where((tokens == len(LETTERS)) & (u[:, 1] < 1 / (rows - row)), drawn, tokens)
    crowd.finish((tokens == letter).sum(1).double())
    return tokens, crowd


# -- the claims ----------------------------------------------------------------------------------------------------------
def hits(swarm: Swarm, threshold: float) -> float:
    """Share of groups whose best particle has a reward above the threshold."""
    return float((swarm.rewards.max(1).values > threshold).double().mean())


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Digits steered to a class and to more ink, with 4 and 8 particles, beside best-of-n; texts with many e's.

    large: 600 groups instead of 60.
    """
    process, groups = VP(), 600 if large else 60
    net = trained(process, out.parent).to(device)
    table = plan("ancestral", process, ROWS)
    to_eight, sure = log_probability(8), float(torch.tensor(0.9).log())
    dark = float(torch.tensor(ink(load("digits").all())).quantile(0.995))

    def steered(reward: Any, k: int, lam: float, **options: Any) -> Swarm:
        return particles(net, table, reward, groups, k, lam, seed=1, **WINDOW, **options)

    runs = {
        "model": steered(to_eight, 1, 10.0),
        "best of 4": steered(to_eight, 4, 10.0, potential="none"),
        "best of 8": steered(to_eight, 8, 10.0, potential="none"),
        "FK, 4 particles": steered(to_eight, 4, 10.0),
        "FK, 8 particles": steered(to_eight, 8, 10.0),
        "FK, 8 particles, lambda 2": steered(to_eight, 8, 2.0),
        "FK, 8 particles, max": steered(to_eight, 8, 10.0, potential="max"),
        "FK, 8 particles, sum": steered(to_eight, 8, 10.0, potential="sum"),
        "twisted, 8 particles": steered(to_eight, 8, 10.0, proposal="gradient"),
    }
    guided = energy(net, lambda x: -10.0 * to_eight(x))
    runs["gradient guidance"] = particles(guided, table, to_eight, groups, 1, seed=1)
    inked = {
        "best of 8": steered(ink, 8, 20.0, potential="none"),
        "FK, 8 particles": steered(ink, 8, 20.0),
    }

    law, e, length = letters(), LETTERS.index("e"), 24
    texts = {}
    for name, k, potential in (
        ("best of 8", 8, "none"),
        ("FK, 8 particles", 8, "difference"),
        ("FK, 64 particles", 64, "difference"),
    ):
        many = groups if k == 8 else groups // 3
        tokens, crowd = spell(law, length, 96, many, e, k=k, potential=potential)
        count = (tokens == e).double().sum(1).reshape(many, k)
        mean = (crowd.log_weights.softmax(1) * count).sum(1)
        spelled = "".join(LETTERS[c] for c in tokens.reshape(many, k, -1)[0, count[0].argmax()])
        texts[name] = (float(mean.mean()), float(count.mean()), float(count.max(1).values.mean()), spelled)
    exact, free = (law.tilted_count(e, lam, length) for lam in (1.0, 0.0))

    hit = {name: hits(swarm, sure) for name, swarm in runs.items()}
    population = {name: float(swarm.rewards.mean()) for name, swarm in runs.items()}
    darker = {name: hits(swarm, dark) for name, swarm in inked.items()}
    eight, best = "FK, 8 particles", "best of 8"
    claims = [
        at_least("8 particles: share of groups with p(8) > 0.9, against best-of-8 and 0.4", hit[eight], hit[best] + 0.4),
        at_least("mean log p(8) of all 8 particles, against best-of-8's and 2", population[eight], population[best] + 2),
        at_least("4 particles, against best-of-8", hit["FK, 4 particles"], hit[best]),
        at_least("8 particles, against 4", hit[eight], hit["FK, 4 particles"]),
        at_least(
            "no gradient: share above the 99.5 % quantile of ink, against best-of-8 and 0.3", darker[eight], darker[best] + 0.3
        ),
        at_least("letters: e's in the best of 8, against best-of-8's", texts[eight][2], texts[best][2]),
        at_most(
            "letters, 64 particles: distance of the mean from the exact tilted law, against a tenth of the tilt",
            abs(texts["FK, 64 particles"][0] - exact),
            0.1 * (exact - free),
        ),
    ]

    page = report(
        "Feynman–Kac steering",
        f"A small network trained on the digits, unconditional, VP process, ancestral sampling in {ROWS} rows, resampled in "
        f"rows 10 to 40 where the effective sample size falls below half; {groups} groups. Reward: log p(8) of a logistic "
        "regression.",
        claims,
    )
    rows = [
        [name, swarm.calls.forward * swarm.x.shape[1], hit[name], population[name], float(swarm.ancestors.double().mean())]
        for name, swarm in runs.items()
    ]
    columns = ["sampler", "calls a sample", "hits, p(8) > 0.9", "mean log p(8)", "ancestors"]
    page.table(rows, columns, best=dict.fromkeys(columns[2:4], "max"))
    page.text(
        "Ancestors: how many of the particles at the start have descendants at the end; 1 says that a group is one family. "
        "Twisted particles and gradient guidance make a backward call a row as well."
    )
    sheet = labelled_rows({name: swarm.best[:10].cpu() for name, swarm in runs.items()})
    save_png(sheet, out / "eights.png")
    page.picture(sheet, "The best particle of ten groups each.")
    page.text(f"## A reward without a gradient: ink, λ = 20, in sixteenths; the 99.5 % quantile of the digits is {dark:.2f}")
    page.table(
        [[name, darker[name], float(s.rewards.mean())] for name, s in inked.items()], ["sampler", "hits", "mean ink"],
        best={"hits": "max", "mean ink": "max"},
    )  # fmt: skip
    more = labelled_rows({name: swarm.best[:10].cpu() for name, swarm in inked.items()})
    save_png(more, out / "ink.png")
    page.picture(more, "The best particle of ten groups each.")
    page.text(
        f"## Letters: masked diffusion of {length} symbols, λ = 1 an e. Without a tilt {free:.2f} e's are expected, with it "
        f"{exact:.2f} (both exact)."
    )
    page.table(
        [[n, *v] for n, v in texts.items()], ["sampler", "weighted mean", "mean", "mean of the best", "the best of one group"]
    )
    page.save(out / "report.html")
    return Result(
        claims,
        {
            "hits": hit, "mean log p(8)": population, "ink hits": darker, "letters": {n: v[:3] for n, v in texts.items()},
            "letters, exact": {"tilted": exact, "free": free},
            "log Z": {name: float(s.log_z.mean()) for name, s in runs.items()},
        },
    )  # fmt: skip
