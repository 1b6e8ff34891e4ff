"""What can be searched: spaces of decisions, whose candidates are plain data and compile to plans.

A candidate ("genes") is a dict of lists and numbers that JSON can hold. A space draws, changes and crosses candidates, and
repairs what it made, so that every candidate is a plan within the budget. `Solvers` holds the decisions of the unified
sampling framework; the space of time steps and network layers is in `layers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..process import Process
from ..solvers import make_grid
from ..solvers.usf import FORMS, RELAXATIONS, Decision, usf

Genes = dict[str, Any]

GRIDS = ("logsnr", "uniform", "quadratic", "logistic")
ORDERS = ((1, 0.2), (2, 0.4), (3, 0.3), (4, 0.1))  # of a random step
RATE = 0.3  # probability that a decision changes, at most
WIDE = 0.3  # standard deviation of a moved node, in mean gaps of λ, at most
RELAX = 0.05  # of r, at most
NEAR = 0.1  # nodes are at least so many mean gaps apart: nearer ones cancel in high orders


class Space(Protocol):
    """ripe: the share of the evaluations that are done, from 0 to 1; a space may open up while the search goes on."""

    def spec(self) -> Any:
        """All that decides what candidates mean, as JSON."""
        ...

    def starts(self) -> list[Genes]:
        """Known plans, from which a search begins and which it has to beat."""
        ...

    def random(self, rng: Random, ripe: float) -> Genes: ...

    def mutate(self, genes: Genes, rng: Random, ripe: float) -> Genes: ...

    def cross(self, one: Genes, two: Genes, rng: Random) -> Genes: ...

    def plan(self, genes: Genes) -> Plan: ...

    def numbers(self, genes: Genes) -> list[list[float]]:
        """The decisions of every step as equally many numbers, for a predictor."""
        ...


@dataclass(frozen=True)
class Solvers:
    """Solver decisions per step (`unstir.solvers.usf`): node, form, order, points, relaxation, corrector, base.

    genes: {"lam": λ of the inner nodes, "steps": fields of a `Decision` for every step, "constant": does the first row
    put the constant in place of a call}. Plans have exactly `nfe` calls.
    constant: a number or a tensor of one sample's shape that may replace D at the start; None: every row calls.
    """

    process: Process
    nfe: int
    start: float = 1.0
    end: float = 0.0
    constant: float | Tensor | None = None
    ends: tuple[float, float] = field(init=False)  # of λ, or of what is left of it where it is infinite

    def __post_init__(self) -> None:
        low, high = self.process.span
        first, last = (float(self.process.logsnr(t)) for t in (self.start, self.end))
        first = first if math.isfinite(first) else float(self.process.logsnr(min(high, self.start)))
        last = last if math.isfinite(last) else float(self.process.logsnr(max(low, self.end)))
        object.__setattr__(self, "ends", (first, last))

    def spec(self) -> Any:
        constant = self.constant.tolist() if isinstance(self.constant, Tensor) else self.constant
        return ["solvers", self.process.spec(), self.nfe, self.start, self.end, constant]

    def starts(self) -> list[Genes]:
        """Data and noise form × orders 1 to 3 × with and without corrector × four grids."""
        found: list[Genes] = []
        for grid, form, order, corrector in product(GRIDS, FORMS, (1, 2, 3), ("none", "pseudo")):
            with suppress(ValueError):  # a grid that has not so few nodes
                nodes = make_grid(grid, self.process, self.nfe, self.start, self.end)
                lam = self.process.logsnr(torch.tensor(nodes[1:-1], dtype=torch.float64)).tolist()
                step = {"form": form, "order": order, "corrector": corrector}
                found.append(self._legal({"lam": lam, "steps": [step] * self.nfe, "constant": False}, move=False))
        return list({str(genes): genes for genes in found}.values())

    def random(self, rng: Random, ripe: float = 1.0) -> Genes:
        constant = self.constant is not None and rng.random() < 0.5
        n = self.nfe + constant
        nodes = make_grid(rng.choice(GRIDS[1:]), self.process, n, self.start, self.end)
        lam = self.process.logsnr(torch.tensor(nodes[1:-1], dtype=torch.float64)).tolist()
        gap = (self.ends[1] - self.ends[0]) / n
        lam = [v + rng.gauss(0, WIDE * gap) for v in lam]
        return self._legal({"lam": lam, "steps": [_decision(rng) for _ in range(n)], "constant": constant})

    def mutate(self, genes: Genes, rng: Random, ripe: float = 1.0) -> Genes:
        lam, steps, constant = list(genes["lam"]), [dict(step) for step in genes["steps"]], genes["constant"]
        gap = (self.ends[1] - self.ends[0]) / len(steps)
        size = 10.0 ** -rng.random()  # some children differ much from their parent, some little
        rate = RATE * size
        lam = [v + rng.gauss(0, WIDE * gap * size) if rng.random() < 0.5 else v for v in lam]
        if lam and rng.random() < 0.2 * size:  # a step goes elsewhere
            gone = rng.randrange(len(lam))
            del lam[gone], steps[gone]
            self._insert(lam, steps, rng.randrange(len(lam) + 1), rng)
        if self.constant is not None and lam and rng.random() < 0.2 * size:
            constant = not constant
            if constant:
                self._insert(lam, steps, 0, rng)
            else:
                del lam[0], steps[0]
        for step in steps:
            fresh = _decision(rng)
            for key in ("form", "order", "points", "corrector", "base"):
                if rng.random() < rate * (0.5 if key == "base" else 1.0):
                    step[key] = fresh[key]
            if rng.random() < RATE:
                old, new = step["relax"], rng.random() < rate
                step["relax"] = fresh["relax"] if new else old if isinstance(old, str) else old + rng.gauss(0, RELAX * size)
        return self._legal({"lam": lam, "steps": steps, "constant": constant})

    def _insert(self, lam: list[float], steps: list[Any], place: int, rng: Random) -> None:
        """A node within the gap `place`, and a random decision for the step that begins there."""
        edges = [self.ends[0], *lam, self.ends[1]]
        lam.insert(place, edges[place] + rng.random() * (edges[place + 1] - edges[place]))
        steps.insert(place, _decision(rng))

    def cross(self, one: Genes, two: Genes, rng: Random) -> Genes:
        """Nodes of one parent; each kind of decision of one parent, or, half of the time, of either in every step."""
        if len(one["steps"]) != len(two["steps"]):
            return one if rng.random() < 0.5 else two
        lam = (one if rng.random() < 0.5 else two)["lam"]
        mixed = rng.random() < 0.5
        steps: list[dict[str, Any]] = [{} for _ in one["steps"]]
        for keys in (("form",), ("order", "points"), ("relax",), ("corrector",), ("base",)):
            whole = rng.random() < 0.5
            for i, step in enumerate(steps):
                parent = one if (rng.random() < 0.5 if mixed else whole) else two
                step.update({key: parent["steps"][i][key] for key in keys})
        return self._legal({"lam": lam, "steps": steps, "constant": one["constant"]})

    def _legal(self, genes: Genes, move: bool = True) -> Genes:
        """Nodes in order and apart, orders within the history; decisions that change nothing in their plainest form."""
        n = len(genes["steps"])
        lam = spread(genes["lam"], *self.ends, NEAR * (self.ends[1] - self.ends[0]) / n) if move else genes["lam"]
        lost = 0 if math.isfinite(float(self.process.logsnr(self.start))) else 1
        steps = []
        for i, step in enumerate(genes["steps"]):
            step = {"form": "data", "order": 1, "points": 0, "relax": 0.0, "corrector": "none", "base": 1, **step}
            known = i + 1 - lost
            if known < 1 or (i + 1 == n and not math.isfinite(float(self.process.logsnr(self.end)))):
                steps.append({"form": "data", "order": 1, "points": 0, "relax": 0.0, "corrector": "none", "base": 1})
                continue
            order = min(step["order"], known)
            step |= {"order": order, "base": min(step["base"], known)}
            step["points"] = 0 if step["points"] >= order - 1 else step["points"]
            step["relax"] = 0.0 if order == 1 else step["relax"]
            step["corrector"] = "none" if i + 1 == n else step["corrector"]
            steps.append(step)
        return {"lam": [float(v) for v in lam], "steps": steps, "constant": bool(genes["constant"])}

    def plan(self, genes: Genes) -> Plan:
        inner = self.process.time(torch.tensor(genes["lam"], dtype=torch.float64)).tolist()
        decisions = [Decision(**step) for step in genes["steps"]]
        nodes = [self.start, *inner, self.end]
        return usf(self.process, nodes, decisions, constant=self.constant if genes["constant"] else None)

    def numbers(self, genes: Genes) -> list[list[float]]:
        lam, rows = [self.ends[0], *genes["lam"], self.ends[1]], []
        for i, step in enumerate(genes["steps"]):
            named = step["relax"] if isinstance(step["relax"], str) else ""
            rows.append(
                [lam[i], lam[i + 1], math.log(max(lam[i + 1] - lam[i], 1e-6)), float(genes["constant"] and i == 0)]
                + [0.0 if named else step["relax"], *(float(named == name) for name in RELAXATIONS)]
                + [float(step["form"] == "noise"), float(step["corrector"] != "none"), step["base"] - 1.0]
                + [float(step["order"] == k) for k in range(1, 5)]
                + [float(step["points"] == k) for k in range(3)]
            )
        return rows


def _decision(rng: Random) -> dict[str, Any]:
    """A random step."""
    u, relax = rng.random(), rng.gauss(0, RELAX)
    return {
        "form": rng.choice(FORMS),
        "order": rng.choices([k for k, _ in ORDERS], [p for _, p in ORDERS])[0],
        "points": rng.choice((0, 1, 2)),
        "relax": 0.0 if u < 0.4 else relax if u < 0.8 else rng.choice(list(RELAXATIONS)),
        "corrector": rng.choice(("none", "pseudo")),
        "base": rng.choices((1, 2, 3), (0.85, 0.1, 0.05))[0],
    }


def spread(values: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """The values in ascending order, at least `gap` apart and from the ends; gap ≤ (high − low)/(len(values) + 1)."""
    out: list[float] = []
    for k, value in enumerate(sorted(values)):
        room = high - gap * (len(values) - k)
        out.append(min(max(value, (out[-1] if out else low) + gap), room))
    return out
