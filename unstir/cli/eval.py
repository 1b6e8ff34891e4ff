"""`unstir eval`: distances between a model's samples and real data, beside what two halves of the real data give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from .. import data
from .._files import write_json
from ..evaluate import Report, error_plot
from ..plan import Plan
from . import measure, show

COLUMNS = ("plan", "calls>", "FD>", "MMD²>", "energy>", "error>", "s>")


@dataclass(frozen=True)
class Options:
    """Measure a model at several numbers of network calls, against real data and against its own long trajectories.

    unstir eval digits --nfe 5 10 20 --solver dpmpp-3m ddim
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder."""
    reference: str | None = None
    """Real data: a bundled name, a folder or an array file; by default what the model was trained on."""
    nfe: tuple[int, ...] = (5, 10, 20)
    """Network calls."""
    solver: tuple[str, ...] = ("auto",)
    """Solvers, each with every --nfe."""
    plan: tuple[Path, ...] = ()
    """Further plans, written by `unstir plan --save`."""
    n: int = 1000
    """Samples for the distances."""
    features: str = "pixel-pca:24"
    """Feature space of the distances: pixel, or pixel-pca:K."""
    exact_n: int = 64
    """Samples for the error to the long trajectory; 0 leaves it out."""
    exact_nfe: int = 200
    """Calls of the long trajectory."""
    seed: int = 0
    """Sample i is a function of the seed and of i."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    out: Path = Path("out/eval")
    """Folder for report.html and eval.json."""

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"--n {self.n} must be at least 2 samples")
        if not 0 <= self.exact_n <= self.n:
            raise ValueError(f"--exact-n {self.exact_n} must lie between 0 and --n {self.n}")
        if not self.plan and not (self.nfe and self.solver):
            raise ValueError("nothing to measure: give --nfe and --solver, or --plan")


def run(options: Options) -> int:
    """Carries out `unstir eval`."""
    model = measure.load(options.model, options.device)
    real_set = _real(model, options.reference)
    if real_set.shape != model.shape:
        raise ValueError(f"--reference has samples of shape {real_set.shape}; the model makes {model.shape}")
    plans = [measure.plan_for(model, name, nfe) for name in options.solver for nfe in options.nfe]
    plans += [Plan.load(file) for file in options.plan]
    labels = measure.reference_labels(model, real_set, options.n)
    rows = measure_plans(model, plans, real_set.all(), options, labels)
    report = _report(options, real_set, rows, labels is not None)
    write_json(options.out / "eval.json", {"options": _spec(options), "data": real_set.describe(), "rows": rows})
    report.save(options.out / "report.html")

    show.table([_cells(row) for row in rows], COLUMNS, title=f"{options.model} against {real_set.name}")
    show.say(footnote(rows, options))
    show.wrote(options.out / "report.html", options.out / "eval.json")
    return 0


def measure_plans(model: Any, plans: Sequence[Plan], real: Tensor, options: Any, labels: Tensor | None) -> list[dict[str, Any]]:
    """One record a plan: distances with their floors, solver error, seconds.

    options: a record with n, seed, features, exact_n and exact_nfe (of `unstir eval` or `unstir demo`).
    """
    with show.progress(len(plans) + 1, "measure") as advance:
        exact = None
        if options.exact_n:
            exact = measure.reference(model, options.exact_n, options.seed, options.exact_nfe, labels)
        advance("plans")
        rows = []
        for plan in plans:
            drawn = measure.timed(model, plan, options.n, options.seed, labels)
            found = measure.scores(drawn.samples, real, options.features)
            rows.append(
                {
                    "plan": plan.name,
                    "calls": len(plan),
                    "fingerprint": plan.fingerprint(),
                    **{name: measure.score_record(score) for name, score in found.items()},
                    "error": measure.solver_error(plan, drawn.samples, exact),
                    "seconds": drawn.seconds,
                    "network_seconds": drawn.network,
                    "overhead": drawn.overhead,
                }
            )
            advance("plans")
    return rows


def footnote(rows: list[dict[str, Any]], options: Any) -> str:
    """The line under the table: feature space, floors, and what the error refers to."""
    first = rows[0]
    names = {"FD": "frechet", "MMD²": "mmd", "energy": "energy"}
    floors = ", ".join(f"{k} {first[v]['floor']:.3g}" for k, v in names.items() if first[v]["floor"] is not None)
    parts = [
        f"Distances in {options.features} of {first['frechet']['n']} samples. Floors, between halves of the real data "
        f"({first['frechet']['floor_n']} each): {floors or 'none'}."
    ]
    if options.exact_n:
        parts.append(
            f"Error: RMS to a trajectory of {options.exact_nfe} calls from the same start, mean of {options.exact_n} samples; "
            "– where the plan adds noise."
        )
    return " ".join(parts)


def error_series(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """{plan: [(calls, error), …]} of the rows that have an error a logarithmic axis can show."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["error"] is not None and row["error"] > 0:
            series.setdefault(row["plan"], []).append((row["calls"], row["error"]))
    return series


def _real(model: Any, reference: str | None) -> data.Dataset:
    if reference is None:
        reference = model.meta.get("training", {}).get("options", {}).get("data")
        if reference is None:
            raise ValueError("the model does not say what it was trained on; give --reference DATA")
    if len(model.shape) == 3 and reference not in data.BUNDLED and Path(reference).is_dir():
        return data.load(reference, size=model.shape[1], channels=model.shape[0])
    return data.load(reference)


def _spec(options: Options) -> dict[str, Any]:
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return plain | {"plan": [str(file) for file in options.plan]}


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    distances = (f"{row[k]['value']:.3g}" for k in ("frechet", "mmd", "energy"))
    return (row["plan"], row["calls"], *distances, row["error"], f"{row['seconds']:.1f}")


def _report(options: Options, real: data.Dataset, rows: list[dict[str, Any]], conditional: bool) -> Report:
    report = Report(f"{options.model}: measured")
    classes = "with classes in the shares of the data" if conditional else "without classes"
    report.text(f"Real data: {real.describe()}. {options.n} samples, {classes}, seed {options.seed}. {footnote(rows, options)}")
    names = [column.rstrip(">") for column in COLUMNS]
    best = {"FD": "min", "MMD²": "min", "energy": "min", "error": "min"}
    cells = [
        (r["plan"], r["calls"], *(r[k]["value"] for k in ("frechet", "mmd", "energy")), r["error"], r["seconds"]) for r in rows
    ]
    report.table(cells, names, best={k: v for k, v in best.items() if any(_is_number(c[names.index(k)]) for c in cells)})
    if series := error_series(rows):
        report.plot(error_plot(series, ylabel="RMS error to the long trajectory"), "A straight line of slope −p is order p.")
    return report


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
