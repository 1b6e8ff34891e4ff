"""`unstir eval`: how far a model's samples, or a folder of samples, are from real data, beside what real halves give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from .. import data
from .._files import write_json
from ..evaluate import METRICS, Report, error_plot
from ..plan import Plan
from . import measure, show
from .eval_scores import (
    Reference,
    is_samples,
    measure_classes,
    measure_pairs,
    measure_set,
    of_classes,
    print_classes,
    print_scores,
    record,
    reference,
    report_classes,
    report_pictures,
    report_scores,
)

COLUMNS = ("plan", "calls>", "FD>", "MMD²>", "energy>", "error>", "s>")


@dataclass(frozen=True)
class Options:
    """Measure a model at several numbers of network calls, or a folder of samples, against real data.

    unstir eval digits --nfe 5 10 20 --solver dpmpp-3m ddim

    unstir eval samples/ --reference pictures/ --metrics fd kid prdc --features pixel-pca:24 randconv classifier
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder of a model; or samples: a folder of pictures, an .npy, .npz, .zarr or .tar."""
    reference: str | None = None
    """Real data: a bundled name, a folder or an array file; by default what the model was trained on."""
    train: str | None = None
    """What was trained on, for the search for copies; by default the train part of the reference."""
    metrics: tuple[str, ...] = ("fd", "mmd", "prdc", "vendi")
    """Metrics of the samples: fd, fd-infinity, mmd, kid, cmmd, energy, prdc, vendi."""
    features: tuple[str, ...] = ("pixel-pca:24",)
    """Feature spaces: pixel, pixel-pca:K, randconv[:SEED], classifier[:FILE] (trained here on the reference), dinov2[:FOLDER].
    The table of plans is in the first."""
    per_class: str | None = None
    """Also this metric within every class."""
    paired: bool = False
    """Samples: also PSNR, SSIM and LPIPS of sample i against picture i of the reference."""
    errors: int = 20
    """Half-samples for the error bars; 0 leaves them out."""
    nfe: tuple[int, ...] = (5, 10, 20)
    """Network calls."""
    solver: tuple[str, ...] = ("auto",)
    """Solvers, each with every --nfe."""
    plan: tuple[Path, ...] = ()
    """Further plans, written by `unstir plan --save`."""
    n: int = 1000
    """Samples for the distances."""
    exact_n: int | None = None
    """Samples for the error to the long trajectory (64, or all where there are fewer); 0 leaves it out."""
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
        if self.exact_n is None:
            object.__setattr__(self, "exact_n", min(64, self.n))
        assert self.exact_n is not None
        if not 0 <= self.exact_n <= self.n:
            raise ValueError(f"--exact-n {self.exact_n} must lie between 0 and --n {self.n}")
        if not self.plan and not (self.nfe and self.solver):
            raise ValueError("nothing to measure: give --nfe and --solver, or --plan")
        for name in (*self.metrics, *([self.per_class] if self.per_class else [])):
            if name not in METRICS:
                raise ValueError(f"--metrics {name!r} is unknown; one of {', '.join(METRICS)}")
        if not self.metrics or not self.features:
            raise ValueError("nothing to measure: give at least one of --metrics and one of --features")


def run(options: Options) -> int:
    """Carries out `unstir eval`."""
    if is_samples(options.model):
        return _run_samples(options)
    if options.paired:
        raise ValueError("--paired is for samples that belong to pictures of --reference; a model draws free ones")
    model = measure.load(options.model, options.device)
    name = options.reference or model.meta.get("training", {}).get("options", {}).get("data")
    if name is None:
        raise ValueError("the model does not say what it was trained on; give --reference DATA")
    about = reference(name, options.train, options.features, options.out, **_cut(name, made := measure.shape_of(model)))
    if about.whole.shape != made:
        raise ValueError(f"--reference has samples of shape {about.whole.shape}; the model makes {made}")
    plans = [measure.plan_for(model, name, nfe) for name in options.solver for nfe in options.nfe]
    plans += [Plan.load(file) for file in options.plan]
    labels = measure.reference_labels(model, about.whole, options.n)
    sets: dict[str, Tensor] = {}
    rows = measure_plans(model, plans, about.real, options, labels, sets, about.spaces[0])
    if options.per_class and labels is None:
        raise ValueError(f"--per-class {options.per_class}: the model has no classes, or not those of {about.whole.name}")
    found = _finish(options, about, sets, dict.fromkeys(sets, labels), rows)
    show.table([_cells(row) for row in rows], COLUMNS, title=f"{options.model} against {about.whole.name}")
    show.say(footnote(rows, options))
    found()
    return 0


def _run_samples(options: Options) -> int:
    """The same for samples that are there already."""
    if options.reference is None:
        raise ValueError(f"{options.model} holds samples, not a model; give the real data with --reference DATA")
    fake = data.load(options.model)
    about = reference(options.reference, options.train, options.features, options.out, **_cut(options.reference, fake.shape))
    if about.whole.shape != fake.shape:
        raise ValueError(f"--reference has samples of shape {about.whole.shape}; {fake.name} has {fake.shape}")
    if fake.skipped:
        show.say(f"{len(fake.skipped)} samples skipped; the first: {fake.skipped[0][0]}: {fake.skipped[0][1]}")
    samples, label = fake.all(), Path(options.model).name
    labels = of_classes(fake.labels, fake.classes, about.whole)
    pairs = measure_pairs(samples, about.whole, len(fake.skipped)) if options.paired else []
    _finish(options, about, {label: samples}, {label: labels}, [], pairs)()
    return 0


def _finish(
    options: Options,
    about: Reference,
    sets: dict[str, Tensor],
    labels: dict[str, Tensor | None],
    rows: list[dict[str, Any]],
    pairs: Sequence[Any] = (),
) -> Callable[[], None]:
    """Measures the sets, writes the report and the JSON; returns what prints the tables."""
    scores = {label: [*measure_set(x, about, options), *pairs] for label, x in sets.items()}
    classes = {k: measure_classes(x, labels[k], about, options) for k, x in sets.items()} if options.per_class else {}
    report = Report(f"{options.model}: measured")
    if rows:
        _report_plans(report, options, about.whole, rows, next(iter(labels.values())) is not None)
    else:
        report.text(f"Real data: {about.whole.describe()}. {', '.join(f'{len(x)} samples of {k}' for k, x in sets.items())}.")
    report.text("## Scores")
    report_scores(report, scores)
    if classes:
        report_classes(report, classes)
    report_pictures(report, sets, about)
    result = {
        "options": _spec(options),
        "data": about.whole.describe(),
        "rows": rows,
        "scores": {label: [record(score) for score in found] for label, found in scores.items()},
        "classes": {label: {k: record(v) for k, v in found.items()} for label, found in classes.items()},
    }
    write_json(options.out / "eval.json", result)
    report.save(options.out / "report.html")

    def tell() -> None:
        print_scores(scores)
        if classes:
            print_classes(classes)
        show.wrote(options.out / "report.html", options.out / "eval.json")

    return tell


def measure_plans(
    model: Any,
    plans: Sequence[Plan],
    real: Tensor,
    options: Any,
    labels: Tensor | None,
    sets: dict[str, Tensor] | None = None,
    features: Any = None,
) -> list[dict[str, Any]]:
    """One record a plan: distances with their floors, solver error, seconds.

    options: a record with n, seed, features, exact_n and exact_nfe (of `unstir eval` or `unstir demo`).
    sets: takes the samples of every plan, under "plan, calls".  features: instead of options.features.
    """
    with show.progress(len(plans) + 1, "measure") as advance:
        exact = None
        if options.exact_n:
            exact = measure.reference(model, options.exact_n, options.seed, options.exact_nfe, labels)
        advance("plans")
        rows = []
        for plan in plans:
            drawn = measure.timed(model, plan, options.n, options.seed, labels)
            found = measure.scores(drawn.samples, real, features or options.features)
            if sets is not None:
                sets[f"{plan.name}, {len(plan)}"] = drawn.samples
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
    space = options.features if isinstance(options.features, str) else options.features[0]
    space = options.features if isinstance(options.features, str) else options.features[0]
    names = {"FD": "frechet", "MMD²": "mmd", "energy": "energy"}
    floors = ", ".join(f"{k} {first[v]['floor']:.3g}" for k, v in names.items() if first[v]["floor"] is not None)
    parts = [
        f"Distances in {space} of {first['frechet']['n']} samples. Floors, between halves of the real data "
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


def _cut(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Options of `data.load` that give pictures of a folder the shape of the samples."""
    folder = len(shape) == 3 and name not in data.BUNDLED and Path(name).is_dir() and Path(name).suffix.lower() != ".zarr"
    return {"size": shape[1], "channels": shape[0]} if folder and shape[1] == shape[2] else {}


def _spec(options: Options) -> dict[str, Any]:
    plain = {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()}
    return plain | {"plan": [str(file) for file in options.plan]}


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    distances = (f"{row[k]['value']:.3g}" for k in ("frechet", "mmd", "energy"))
    return (row["plan"], row["calls"], *distances, row["error"], f"{row['seconds']:.1f}")


def _report_plans(report: Report, options: Options, real: data.Dataset, rows: list[dict[str, Any]], conditional: bool) -> None:
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


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
