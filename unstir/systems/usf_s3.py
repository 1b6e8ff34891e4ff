"""A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models (2024).

For owners of one trained model and a very small budget of calls who accept a search before use. Every exponential
integrator is a list of decisions: for each step its node, prediction form, Taylor order, the points of its derivatives, a
relaxation, a corrector, the node it departs from. The framework lets each step decide for itself, and S³ finds a good list:
score known and random lists on few samples, train a network that ranks lists, score those it ranks highest, repeat.

Parts: `unstir.solvers.usf` (a decision list becomes a plan), `unstir.tune.search` (`Solvers`, `METHODS`, the predictor).
The published code also searches a form fitted to the model (that of DPM-Solver-v3) and the scales of skip connections.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from .. import train, tune
from ..evaluate import error_plot, labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP
from ..solvers import make_grid, plan
from ..solvers.usf import FORMS, Decision, usf
from ..tune.evolve import METHODS
from ..tune.predictor import fit_ranker, spearman
from ..tune.score import make_score
from ..tune.starts import SOLVERS
from ..tune.teacher import Source
from ._digits import exact, pca_digits, report
from .protocol import Result, at_least, at_most

END, TEACHER, CAP = 1e-3, 200, 3.0
PUBLISHED = ("logsnr", "uniform", "quadratic")
SEEDS = (0, 1, 2)  # a search is random: methods are compared by their means


def error(x: Tensor, reference: Tensor) -> float:
    """Mean over the samples of min(RMS distance, 3); the data have unit standard deviation."""
    return float((x - reference).square().mean(1).sqrt().clamp_max(CAP).mean())


def fixed(process: VP, nfe: int, published: bool = True) -> dict[str, Plan]:
    """What a search has to beat: decision lists that are the same in all steps, and registered solvers, on three grids.

    published: without our own solvers (`auto`, `flow-adams`) and without our grid, the logistic one.
    """
    grids = PUBLISHED if published else (*PUBLISHED, "logistic")
    plans: dict[str, Plan] = {}
    for grid in grids:
        for name in SOLVERS:
            if not (published and name.startswith(("auto", "flow-adams"))):
                with suppress(ValueError):  # too few calls for this solver
                    plans[f"{name}, {grid}"] = plan(name, process, nfe, grid, end=END)
        nodes = make_grid(grid, process, nfe, 1.0, END)
        for form, order, corrector in product(FORMS, (1, 2, 3), ("none", "pseudo")):
            steps = [Decision(form, min(order, i + 1), corrector=corrector) for i in range(nfe - 1)]
            last = Decision(form, min(order, nfe))
            plans[f"{form} {order}, corrector {corrector}, {grid}"] = usf(process, nodes, [*steps, last])
    return plans


def held_out_rank(model: Any, nfe: int, count: int = 120) -> float:
    """Spearman correlation of predicted and true scores: trained on two thirds of random lists, measured on the others."""
    source = Source.of(model, None, (20,), 0, None, 1.0, 256, torch.float64, None)
    score = make_score("error", source, plan("auto", model, TEACHER, end=END), 256, 8, None, None, None)
    space, rng = tune.Solvers(model.process, nfe, end=END), Random(0)
    lists = [space.random(rng) for _ in range(count)]
    scores, numbers = [score(space.plan(genes)) for genes in lists], [space.numbers(genes) for genes in lists]
    first = 2 * count // 3
    return spearman(fit_ranker(numbers[:first], scores[:first])(numbers[first:]), scores[first:])


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """S³, evolution and random search with 300 trials of 5 calls, beside all fixed solvers, on noises none of them saw.

    large: 600 trials, and plans of 4 and 8 calls too.
    """
    process, trials = VP(), 600 if large else 300
    digits = pca_digits(400)
    model = exact(digits, process).to(device)
    x = process.prior((1000, 20), seed=20_261, dtype=torch.float64, device=device)
    truth = sample(model, plan("dpmpp-3m", process, 401, "logsnr", end=END), x=x)

    def unseen(made: Plan) -> float:
        return error(sample(model, made, x=x), truth)

    claims, found, shown, kinds, best_found = [], {}, {}, 0, None
    curves: dict[str, list[tuple[float, float]]] = {}
    rows: list[list[Any]] = []
    for n in (4, 5, 8) if large else (5,):
        best, ours = (min((unseen(made), name) for name, made in fixed(process, n, p).items()) for p in (True, False))
        rows += [[f"best published: {best[1]}", n, best[0], None], [f"best fixed: {ours[1]}", n, ours[0], None]]
        found[n] = {"published": best[0], "fixed": ours[0]}
        for method in METHODS:
            plans = []
            for seed in SEEDS:
                with train.bar(trials, f"{method}, seed {seed}") as progress:
                    plans.append(
                        tune.search(
                            model, n, method=method, budget=trials, samples=256, validation=512, end=END, teacher=TEACHER,
                            seed=seed, dtype=torch.float64, device=device,
                            progress=lambda p, show=progress: show({"step": p.step, "loss": p.error}),
                        )
                    )  # fmt: skip
            errors = [unseen(made) for made in plans]
            found[n][method] = errors
            rows.append([f"{method}, {trials} trials", n, sum(errors) / len(errors), f"{min(errors):.3g} … {max(errors):.3g}"])
            records = [made.options["searched"] for made in plans]
            if n == 5:
                curves[method] = _mean_curve([record["curve"] for record in records], trials)
                if method == "s3":
                    chosen = min(range(len(plans)), key=lambda i: records[i]["validation_score"])
                    best_found = plans[chosen]
                    steps = best_found.options["searched"]["genes"]["steps"]
                    kinds = len({(s["form"], s["order"], s["corrector"]) for s in steps[:-1]})
                    shown = {"exact": truth, "best published, 5 calls": sample(model, fixed(process, 5)[best[1]], x=x[:10])}
                    shown["searched, 5 calls"] = sample(model, best_found, x=x[:10])
        mean = {method: sum(found[n][method]) / len(SEEDS) for method in METHODS}
        claims += [
            at_most(
                f"{n} calls: S³'s error (mean of 3 searches), against 0.6 of the best published", mean["s3"], 0.6 * best[0]
            ),
            at_most(f"{n} calls: S³, against the best fixed solver, our own included", mean["s3"], ours[0]),
            at_most(f"{n} calls: S³, against 1.05 of evolution with as many trials", mean["s3"], 1.05 * mean["evolution"]),
            at_most(f"{n} calls: S³, against random search with as many trials", mean["s3"], mean["random"]),
        ]
    rank = held_out_rank(model, 5)
    claims += [
        at_least("rank correlation of predicted and true scores, lists not trained on", rank, 0.5),
        at_least("5 calls: different kinds of steps in the best list found", kinds, 2),
    ]
    assert best_found is not None

    page = report(
        "Unified sampling framework and S³",
        f"The exact denoiser of 400 real digits (20 principal coordinates, blur 0.3), VP process, t from 1 to 0.001. Lists are "
        f"scored on 256 noises, the last eight again on 512; errors here are on {len(x)} others: the mean over the samples of "
        "the root-mean-square distance to the reference, at most 3.",
        claims,
    )
    page.table(rows, ["plan", "calls", "error", "range"], best={"error": "min"})
    page.plot(error_plot(curves, xlabel="trials", ylabel="best score so far, mean of 3"))
    sheet = labelled_rows({name: digits.pictures(picture[:10].cpu()) for name, picture in shown.items()})
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "The same starts.")
    columns = ["form", "order", "points", "relax", "corrector", "base"]
    page.table(
        [[s[c] for c in columns] for s in best_found.options["searched"]["genes"]["steps"]], columns, caption="S³'s list."
    )
    page.code(best_found).save(out / "report.html")
    best_found.save(out / "5.json")
    return Result(claims, {"errors": found, "trials": trials, "rank": rank})


def _mean_curve(curves: list[list[list[float]]], trials: int) -> list[tuple[float, float]]:
    """Mean over searches of the best score after 48, 60, 80, … trials."""
    stops = [k for k in (48, 60, 80, 100, 150, 200, 300, 400, 600) if k <= trials]
    return [(k, sum(min(v for i, v in curve if i <= k) for curve in curves) / len(curves)) for k in stops]
