"""Learned plans (2026): a sampler's table fitted to one model and one budget. Our own row; no paper in the list has it.

For owners of one trained model and a small budget of calls. A sampler is a table of numbers, so the table can be fitted:
node times, the noise levels that the network is told, and the weights of past predictions are moved by Gauss–Newton until
the ends of the runs lie close to the ends of the model's own exact trajectories, X_N(θ; z) ≈ x_0(z) over many noises z.
Both row invariants are kept (constant data and zero data stay exact), and where the start says nothing about the data its
prediction is replaced by the mean, which saves a call.

Parts: `unstir.tune.learn` (table, teacher, fit, verdict), `unstir.tune.grid` for the searched grids beside it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .. import tune
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP
from ..solvers import plan
from ..tune import grid
from ..tune.verdict import spread
from ._digits import bench, error_section, exact, pca_digits, report
from .protocol import Result, at_least, at_most

FIXED = ("auto", "unipc-bh2", "unipc-2", "dpmpp-2m", "ghvb-4", "ab-2")


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """A learned plan of 5 calls beside fixed plans of 5 and 10, on noises that nothing was fitted to.

    large: all 1797 digits, 4000 noises to fit to instead of 1000, and plans of 4, 6 and 8 calls too.
    """
    process, budgets = VP(), ((4, 5, 6, 8) if large else (5,))
    digits = pca_digits(1797 if large else 400)
    model = exact(digits, process).to(device)
    x = process.prior((4000 if large else 1000, 20), seed=20_261, dtype=torch.float64, device=device)
    truth = sample(model, plan("auto", process, 150), x=x)

    def rms(made: Plan) -> float:
        return float((sample(model, made, x=x) - truth).square().mean().sqrt())

    learned = tune.learn(
        model, budgets, samples=4000 if large else 1000, validation=500, focus=500, dtype=torch.float64, device=device
    )
    nodes = {n: grid.gits(model, n, dtype=torch.float64, device=device) for n in budgets}
    found = {"learned": {n: rms(p) for n, p in learned.items()}}
    found["DDIM on GITS nodes"] = {n: rms(plan("ddim", process, grid=nodes[n])) for n in budgets}
    for name in FIXED:
        found[name] = {n: rms(plan(name, process, n)) for n in sorted({*budgets, *(2 * n for n in budgets)})}
    best = {n: min(found[name][n] for name in FIXED) for n in found["auto"]}
    records = {n: p.options["learned"] for n, p in learned.items()}
    claims = [
        at_most(
            f"{n} calls: the learned error, against the best of {len(FIXED)} fixed plans with {2 * n} calls", e, best[2 * n]
        )
        for n, e in found["learned"].items()
    ]
    for n in budgets:
        ratio = found["learned"][n] / records[n]["train_error"]
        claims.append(at_most(f"{n} calls: error on unseen noises over the training error", ratio, 1.15))
    ends = sample(model, learned[5], x=x)
    claims.append(at_least("5 calls: sample diversity, relative to the exact samples'", spread(ends) / spread(truth), 0.99))

    page = report(
        "Learned plans",
        f"{bench(digits, x)} In this report the error is the root mean square over all samples. Plans were learned on other "
        f"noises ({records[5]['samples']} of them, {records[5]['validation']} to choose by).",
        claims,
    )
    error_section(page, out, found, "RMS error at equal numbers of network calls.")
    rows = {"exact": digits.pictures(truth[:10].cpu())}
    for name, made in (
        ("fixed, 5", plan("auto", process, 5)),
        ("learned, 5", learned[5]),
        ("fixed, 10", plan("auto", process, 10)),
    ):
        rows[name] = digits.pictures(sample(model, made, x=x[:10]).cpu())
    sheet = labelled_rows(rows)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "The same starts: exact, the default plan, the learned plan, the default with ten calls.")
    page.code(learned[5]).save(out / "report.html")
    learned[5].save(out / "5.json")
    return Result(claims, {"errors": found, "records": records, "starts": len(x)})
