"""Time steps and network layers, searched together: which times, and which blocks each of them leaves out.

The budget is a number of blocks: a plan of K steps on a network of L blocks that can be skipped costs
Σ_k (L − |S_k|), with S_k the blocks skipped in step k. The same budget buys few steps of the whole network or more steps of
parts of it. (AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model
Acceleration, 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from ..plan.plan import Plan
from ..plan.row import Row
from ..process import Process
from ..solvers import compile_plan
from .space import Genes

RATE = 0.25  # probability that a time, or a skipped block, is replaced
OPEN = 1 / 3  # share of the evaluations after which more steps than the whole network could make are tried


@dataclass(frozen=True)
class Layers:
    """Times out of a fine list and skipped blocks, kept in pairs.

    genes: {"times": places in the list of `fine` times, descending, "skip": for each of them the places of the skipped
    blocks}. Place k is the time start · (k + 1)/fine, as label k of a discrete model.

    nfe: steps; or (fewest, most), with `budget`.   blocks: names for `skip=`, see `unstir.nets.skippable`; none: times only.
    budget: blocks computed in one run, by default all of them in the fewest steps. Candidates with more blocks than that
        skip exactly the difference.
    most: largest share of the blocks that one step skips.   solver: on the chosen times.   nodes: fixed times, then only
        blocks are searched.

    A plan whose first time is below `start` begins there with the noise alone: the step from `start` takes D = 0, without
    a call. (The published code passes the noise on unscaled.) Raises ValueError for a budget that cannot be met.
    """

    process: Process
    nfe: int | tuple[int, int]
    blocks: Sequence[str] = ()
    budget: int | None = None
    most: float = 1.0
    solver: str = "ddim"
    start: float = 1.0
    end: float = 0.0
    fine: int = 1000
    nodes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        few, many = self.steps
        if not 1 <= few <= many <= self.fine:
            raise ValueError(f"nfe={self.nfe} must be a number of steps, or (fewest, most), from 1 to fine={self.fine}")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"blocks={list(self.blocks)} has a name twice")
        if not 0 <= self.most <= 1:
            raise ValueError(f"most={self.most} must be a share from 0 to 1")
        if self.nodes is not None and (
            len(self.nodes) != few or few != many or any(b >= a for a, b in pairwise(self.nodes)) or self.nodes[-1] < 0
        ):
            raise ValueError(f"nodes={self.nodes} must be nfe={self.nfe} descending places below fine={self.fine}")
        if self.nodes is not None and self.nodes[0] >= self.fine:
            raise ValueError(f"nodes={self.nodes} must lie below fine={self.fine}")
        least = few * (len(self.blocks) - self.room)
        if self.budget is not None and not (self.blocks and least <= self.budget):
            raise ValueError(
                f"budget={self.budget} must be at least {least} blocks ({few} steps × {len(self.blocks)} blocks, of which "
                f"a step skips at most {self.room})"
            )

    @property
    def steps(self) -> tuple[int, int]:
        """(fewest, most)."""
        return (self.nfe, self.nfe) if isinstance(self.nfe, int) else (self.nfe[0], self.nfe[1])

    @property
    def room(self) -> int:
        """How many blocks one step may skip."""
        return int(self.most * len(self.blocks) + 1e-9)

    @property
    def limit(self) -> int:
        """Blocks computed in one run, at most."""
        return self.steps[0] * len(self.blocks) if self.budget is None else self.budget

    def spec(self) -> Any:
        plain = [list(self.blocks), self.limit, self.most, self.solver, self.start, self.end, self.fine]
        return ["layers", self.process.spec(), list(self.steps), *plain, None if self.nodes is None else list(self.nodes)]

    def cost(self, genes: Genes) -> int:
        """Blocks computed in one run."""
        return sum(len(self.blocks) - len(skip) for skip in genes["skip"])

    # -- candidates -----------------------------------------------------------------------------------------------
    def _most_steps(self, ripe: float) -> int:
        """How many steps are tried now: first those that the whole network can make."""
        few, many = self.steps
        if not self.blocks or ripe >= OPEN:
            return many
        return min(many, max(few, self.limit // len(self.blocks)))

    def starts(self) -> list[Genes]:
        """Uniform, trailing and quadratic times (or the given nodes) with the whole network, thinned where it must be."""
        n, rng = self._most_steps(0.0), Random(0)
        if self.nodes is not None:
            lists = [list(self.nodes)]
        else:
            k = np.arange(n)
            lists = [
                (k * (self.fine // n)).tolist(),
                (np.round(self.fine * (k + 1) / n) - 1).astype(int).tolist(),
                np.round((k / max(n - 1, 1)) ** 2 * 0.8 * (self.fine - 1)).astype(int).tolist(),
            ]
        return [self._legal(times, [[] for _ in times], rng) for times in lists]

    def random(self, rng: Random, ripe: float = 1.0) -> Genes:
        n = rng.randint(self.steps[0], self._most_steps(ripe))
        times = list(self.nodes) if self.nodes is not None else rng.sample(range(self.fine), n)
        return self._legal(times, [[] for _ in times], rng)

    def mutate(self, genes: Genes, rng: Random, ripe: float = 1.0) -> Genes:
        """Times are replaced by unused ones, skipped blocks by others; steps come and go while the budget lasts."""
        times, skips = list(genes["times"]), [list(skip) for skip in genes["skip"]]
        if self.nodes is None:
            unused = [k for k in range(self.fine) if k not in times]
            for i in range(len(times)):
                if unused and rng.random() < RATE:
                    times[i] = unused.pop(rng.randrange(len(unused)))
            if len(times) < self._most_steps(ripe) and rng.random() < RATE:
                times.append(unused.pop(rng.randrange(len(unused))))
                skips.append([])
            if len(times) > self.steps[0] and rng.random() < RATE:
                gone = rng.randrange(len(times))
                del times[gone], skips[gone]
        for i, skip in enumerate(skips):
            others = [b for b in range(len(self.blocks)) if b not in skip]
            if not skip and self.room and rng.random() < RATE:
                skips[i] = rng.sample(others, rng.randint(1, self.room))
            elif skip and others:
                skips[i] = list({rng.choice(others) if rng.random() < RATE else b for b in skip})
        return self._legal(times, skips, rng)

    def cross(self, one: Genes, two: Genes, rng: Random) -> Genes:
        """Position by position from either parent, a time together with its skipped blocks; the tail from the longer one."""
        pairs = [list(zip(g["times"], g["skip"], strict=True)) for g in (one, two)]
        short, long = sorted(pairs, key=len)
        child = [rng.choice(pair) for pair in zip(short, long, strict=False)] + long[len(short) :]
        return self._legal([t for t, _ in child], [list(s) for _, s in child], rng)

    def _legal(self, times: Sequence[int], skips: Sequence[Sequence[int]], rng: Random) -> Genes:
        """Times unique and descending, the number of steps allowed, and as many blocks skipped as the budget asks for."""
        pairs = dict(zip(times, skips, strict=True))
        blocks, (few, many) = len(self.blocks), self.steps
        while len(pairs) < few:
            pairs.setdefault(rng.randrange(self.fine), [])
        while len(pairs) > many or (len(pairs) > few and len(pairs) * (blocks - self.room) > self.limit):
            del pairs[rng.choice(sorted(pairs))]
        chosen = [[t, sorted(skip)[: self.room]] for t, skip in sorted(pairs.items(), reverse=True)]
        missing = max(0, len(chosen) * blocks - self.limit) - sum(len(skip) for _, skip in chosen)
        while missing:
            here = rng.choice([i for i, (_, s) in enumerate(chosen) if (s if missing < 0 else len(s) < self.room)])
            skip = chosen[here][1]
            if missing > 0:
                skip.append(rng.choice([b for b in range(blocks) if b not in skip]))
            else:
                skip.pop(rng.randrange(len(skip)))
            missing += -1 if missing > 0 else 1
        return {"times": [t for t, _ in chosen], "skip": [sorted(skip) for _, skip in chosen]}

    # -- plans ----------------------------------------------------------------------------------------------------
    def plan(self, genes: Genes) -> Plan:
        nodes = [self.start * (k + 1) / self.fine for k in genes["times"]]
        table = compile_plan(self.solver, self.process, [*nodes, self.end])
        if len(table) != len(nodes):
            raise ValueError(
                f"solver={self.solver!r} makes {len(table)} calls in {len(nodes)} steps; give one of one call a step"
            )
        rows = []
        for row, skip in zip(table.rows, genes["skip"], strict=True):
            rows.append(replace(row, kwargs={"skip": [self.blocks[b] for b in skip]}) if skip else row)
        if nodes[0] < self.start:
            a = float(self.process.sigma(nodes[0]) / self.process.sigma(self.start))
            rows.insert(0, Row(t=self.start, to=nodes[0], a=a, evaluate=False))
        return Plan(rows, self.process, name=self.solver)

    def numbers(self, genes: Genes) -> list[list[float]]:
        rows = []
        for k, skip in zip(genes["times"], genes["skip"], strict=True):
            t = (k + 1) / self.fine
            rows.append([t, t**0.5, *(float(b in skip) for b in range(len(self.blocks)))])
        return rows
