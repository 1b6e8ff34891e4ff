"""`search`: the decisions of a sampler found by trying them, where no gradient leads: an outer optimisation over plans.

    plan = unstir.tune.search(model, 5)                                          # solver decisions per step (USF, S³)
    plan = unstir.tune.search(model, 6, space="layers", score="frechet", data=x) # times and network blocks (AutoDiffusion)

A `space` says what can be decided, a `score` how good a plan is, a `method` (`evolve`) what is tried next.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import read_json, write_json
from ..data import Dataset
from ..nets.skippable import skippable_blocks
from ..plan.plan import Plan
from ..process import Process
from .evolve import METHODS, Scored
from .layers import Layers
from .learn import Progress, _teacher
from .score import Score, make_score
from .space import Genes, Solvers, Space
from .starts import _mean_data
from .teacher import Cond, Source

FORMAT, VERSION = "unstir-search", 1
SPACES = ("solver", "times", "layers")
EVERY = 1.0  # seconds between two writes of what was found; it is also written when the search ends, however it ends


def search(
    model: Any,
    nfe: int,
    *,
    space: str | Space = "solver",
    method: str = "s3",
    budget: int = 300,
    score: str | Callable[[Tensor], Any] = "error",
    data: Tensor | Dataset | None = None,
    features: Any = None,
    samples: int = 256,
    validation: int = 512,
    finalists: int = 8,
    constant: bool | str = False,
    process: Process | None = None,
    shape: Sequence[int] | None = None,
    start: float = 1.0,
    end: float = 0.0,
    teacher: Plan | int | str = "auto",
    batch: int = 256,
    seed: int = 0,
    cond: Cond = None,
    note: str = "",
    progress: Callable[[Progress], None] | None = None,
    folder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """The best plan of `nfe` calls that a search of `budget` trials finds for `model`.

    space: "solver" (node, form, order, corrector … of every step), "times" (DDIM on times out of 1000), "layers" (the same
        and the blocks that every step skips; the network comes from `nets.skippable`, and the budget of blocks is that of
        `nfe` whole calls), or a `Solvers`, `Layers` or other `Space`.
    method: "s3" (evolution against a predictor of the rank), "evolution" or "random".   budget: plans that are scored.
    score: "error" (to the teacher's ends), "frechet", "mmd" (to `data`, or else to the teacher's ends, in `features`, see
        `evaluate.frechet`), or a function of the end states (S, *), smaller being better.
    samples: noises of a trial, the same for all.   validation, finalists: the best `finalists` trials and the best known
        plan are scored again on so many other noises; the best of these is returned.
    constant: True, or "auto": may D at the start be replaced by its mean, which saves a call ("solver" only)?
    folder: keeps what was found; the same call again goes on from there, and with the same result.
    progress: called after every trial with a `Progress`, whose errors are scores.
    process, shape, start, end, teacher, batch, seed, cond, note, dtype, device: as in `learn`.

    `plan.options["searched"]` says how it came about. A trial that fails or is not finite counts as infinitely bad.
    Raises ValueError or TypeError naming the argument. Sources: A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2024; AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for
    Automated Diffusion Model Acceleration, 2023.
    """
    _check(nfe, space, method, budget, samples, validation, finalists, batch)
    source = Source.of(model, process, shape, seed, cond, start, batch, dtype, device)
    keep, began = None if folder is None else Path(folder), time.perf_counter()
    with torch.no_grad():
        guide = _teacher(teacher, source.process, nfe, start, end)
        where = _space(space, source, nfe, end, constant)
        judge = make_score(score, source, guide, samples, validation, data, features, keep)
        facts = [where.spec(), method, budget, judge.name, samples, validation, _digits(data), seed]
        file = None if keep is None else keep / f"search-{nfe}-{_signature(source, guide, facts)}.json"
        found = _load(file)
        try:
            _run(where, method, budget, seed, judge, found, file, progress, nfe, began)
        finally:
            _save(file, found)
        known = min((k for k in found if k.generation == 0), key=lambda k: k.score)
        best = sorted(found, key=lambda k: k.score)[:finalists]
        final = [(judge(where.plan(k.genes), fresh=True), k) for k in [*best, *([] if known in best else [known])]]
    fresh, winner = min(final, key=lambda entry: entry[0])
    if not math.isfinite(fresh):
        raise ValueError(f"none of {len(found)} trials has a finite score={judge.name}; look at one run of the model")
    record = {
        "method": method, "space": where.spec()[0], "score": judge.name, "trials": len(found), "seed": seed,
        "samples": samples, "validation": validation, "search_score": winner.score, "validation_score": fresh,
        "known_score": next(value for value, k in final if k is known), "genes": winner.genes,
        "curve": _curve(found), "note": note,
    }  # fmt: skip
    plan = where.plan(winner.genes)
    return Plan(plan.rows, source.process, name=f"searched-{nfe}", options={"searched": record})


def _run(
    space: Space,
    method: str,
    budget: int,
    seed: int,
    score: Score,
    found: list[Scored],
    file: Path | None,
    progress: Callable[[Progress], None] | None,
    nfe: int,
    began: float,
) -> None:
    """Scores candidates, generation by generation, until `found` has `budget` of them."""
    saved = time.perf_counter()
    for generation in count(found[-1].generation if found else 0):
        earlier = [k for k in found if k.generation < generation]
        batch = METHODS[method](space, earlier, generation, budget, seed)[: budget - len(earlier)]
        for genes in batch[len(found) - len(earlier) :]:
            found.append(Scored(genes, score(space.plan(genes)), generation))
            if time.perf_counter() - saved > EVERY:
                _save(file, found)
                saved = time.perf_counter()
            if progress is not None:
                best = min(k.score for k in found)
                base = min(k.score for k in found if k.generation == 0)
                progress(Progress(nfe, len(found), budget, best, base, time.perf_counter() - began))
        if not batch or len(found) >= budget:
            return


def _space(space: str | Space, source: Source, nfe: int, end: float, constant: bool | str) -> Space:
    if not isinstance(space, str):
        return space
    if constant is not False and space != "solver":
        raise ValueError(f"constant={constant!r} belongs to space='solver'; space={space!r} has no such decision")
    if source.process.anchored:
        raise ValueError(f"{source.process!r} is anchored; plans are searched on processes without an anchor")
    if space == "solver":
        index = range(64)
        chunks = source.teach(_teacher(2, source.process, 1, source.start, end), index) if constant is not False else []
        mean = None if constant is False else _mean_data(source, chunks, constant)
        return Solvers(source.process, nfe, source.start, end, mean)
    if space == "times":
        return Layers(source.process, nfe, start=source.start, end=end)
    blocks = skippable_blocks(source.model)
    if not blocks:
        raise ValueError("space='layers' needs a model whose network went through unstir.nets.skippable")
    return Layers(source.process, (nfe, 2 * nfe), blocks, nfe * len(blocks), 0.5, start=source.start, end=end)


def _check(nfe: Any, space: Any, method: Any, budget: Any, samples: Any, validation: Any, finalists: Any, batch: Any) -> None:
    numbers = {"nfe": (nfe, 1), "budget": (budget, 1), "samples": (samples, 2), "validation": (validation, 2)}
    numbers |= {"finalists": (finalists, 1), "batch": (batch, 1)}
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")
    if isinstance(space, str) and space not in SPACES:
        raise ValueError(f"space={space!r} must be one of {', '.join(SPACES)}, or a Space")
    if not isinstance(space, str) and not all(hasattr(space, part) for part in ("random", "mutate", "cross", "plan", "starts")):
        raise TypeError(f"space is {type(space).__name__}; give one of {', '.join(SPACES)}, a Solvers, a Layers or a Space")


def _curve(found: Sequence[Scored]) -> list[list[float]]:
    """[trials, best score so far] where it fell."""
    best, out = math.inf, []
    for i, k in enumerate(found, 1):
        if k.score < best:
            best = k.score
            out.append([float(i), best])
    return out


# -- the file -----------------------------------------------------------------------------------------------------
def _signature(source: Source, teacher: Plan, facts: Any) -> str:
    """Names all that the scores depend on; what was found under another signature is not gone on from."""
    text = json.dumps([source.signature(teacher), facts], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digits(data: Tensor | Dataset | None) -> list[Any]:
    """Data known by their size and two moments."""
    if data is None:
        return []
    x = (data.all() if isinstance(data, Dataset) else torch.as_tensor(data)).double()
    return [list(x.shape), f"{float(x.mean()):.6e}", f"{float(x.square().mean()):.6e}"]


def _save(file: Path | None, found: Sequence[Scored]) -> None:
    if file is not None and found:
        trials = [[k.genes, k.score if math.isfinite(k.score) else None, k.generation] for k in found]
        write_json(file, {"format": FORMAT, "version": VERSION, "trials": trials})


def _load(file: Path | None) -> list[Scored]:
    if file is None or not file.exists():
        return []
    stored = read_json(file)
    if stored.get("format") != FORMAT or stored.get("version") != VERSION:
        raise ValueError(f"{file} is no search of this unstir; remove it")
    try:
        return [Scored(_genes(g), math.inf if s is None else float(s), int(n)) for g, s, n in stored["trials"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it") from None


def _genes(value: Any) -> Genes:
    if not isinstance(value, dict):
        raise TypeError(f"a candidate is {type(value).__name__}, not an object")
    return value
