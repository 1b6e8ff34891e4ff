"""`unstir demo`: the whole job on real data in a few minutes: train, sample with five plans, measure, report."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import data, interop
from .. import plan as make_plan
from .._files import write_json
from ..evaluate import Report, Score, error_plot, labelled_rows, memorisation, save_png
from ..plan import Plan
from ..process import VP
from ..train import TrainConfig, train
from . import INTERRUPTED, measure, show
from .eval import error_series, footnote, measure_plans
from .plan import picture

PLANS = ("ddim", "heun", "dpmpp-2m", "auto", "ancestral")
SHOWN = (5, 10, 50)  # calls of the rows on the sheet
COLUMNS = ("plan", "calls>", "error>", "FD>", "network s>", "overhead>")


@dataclass(frozen=True)
class Options:
    """Train a small network on scikit-learn's handwritten digits, sample with five plans, measure, write a report.

    A second run finds the network of the first one and only samples.
    """

    out: Path = Path("out/demo")
    """Folder for report.html, samples.png, demo.json and the trained network."""
    steps: int = 1500
    """Training steps of 64 pictures."""
    nfe: tuple[int, ...] = (5, 10, 20, 50)
    """Network calls."""
    n: int = 500
    """Samples of each plan, for the Fréchet distance."""
    seed: int = 0
    """Of training and sampling."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    features: str = "pixel-pca:24"
    """Feature space of the Fréchet distance."""
    exact_n: int = 60
    """Samples for the error to the long trajectory."""
    exact_nfe: int = 200
    """Calls of the long trajectory."""

    def __post_init__(self) -> None:
        if not self.nfe:
            raise ValueError("--nfe is empty; give at least one number of network calls, for instance 10")
        if not 1 <= self.exact_n <= self.n:
            raise ValueError(f"--exact-n {self.exact_n} must lie between 1 and --n {self.n}")


def run(options: Options) -> int:
    """Carries out `unstir demo`, on one CPU thread.

    Pictures of 8 × 8 keep one thread busy; a second one mostly waits, and where the cores are shared with other
    programs that waiting made a step ten times slower (measured).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(options)
    finally:
        torch.set_num_threads(threads)


def _run(options: Options) -> int:
    started = time.perf_counter()
    plans = [make_plan(name, VP(), nfe=nfe) for name in PLANS for nfe in options.nfe]  # wrong --nfe: found before training
    model = _network(options)
    if model is None:
        print("unstir: stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    trained = time.perf_counter() - started
    real = data.load("digits")
    labels = measure.reference_labels(model, real, options.n)
    rows = measure_plans(model, plans, real.all(), options, labels)
    copying = _copying(model, options, labels)
    sheet = _sheet(model, real, plans, options)

    files = [options.out / name for name in ("report.html", "samples.png", "demo.json")]
    write_json(
        files[2],
        {
            "options": {k: str(v) for k, v in vars(options).items()},
            "training": model.meta["training"],
            "copying": measure.score_record(copying),
            "rows": rows,
        },
    )
    save_png(sheet, files[1])
    _report(options, model, rows, sheet, copying).save(files[0])
    show.table([_cells(r) for r in rows], COLUMNS, title=f"{options.n} samples a plan", section=len(options.nfe))
    show.say(footnote(rows, options) + " Overhead: our time beyond the network's, as a share of it.")
    show.say(_copying_text(copying))
    show.say(f"{trained:.0f} s for the network, {time.perf_counter() - started - trained:.0f} s for the rest")
    show.wrote(*files)
    return 0


def _network(options: Options) -> Any:
    """The trained model, from an earlier run with the same options if there is one; None if Ctrl-C stopped the training."""
    config = TrainConfig(
        "digits",
        steps=options.steps,
        batch=64,
        preset="tiny",
        levels="lognormal:0,1.5",
        ema=0.995,
        seed=options.seed,
        device=options.device,
        resume=True,
    )
    name = hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()[:8]
    folder = options.out / f"network-{name}"
    if (folder / "model" / "config.json").is_file():
        model = interop.load_model(folder, device=measure.device_of(options.device))
        if model.meta.get("training", {}).get("images") == config.steps * config.batch:
            show.say(f"the network in {folder} is trained already; delete it to train again")
            return model
    result = train(replace(config, out=folder))
    if result.interrupted:
        return None
    show.say(f"trained {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.4f}")
    show.wrote(folder / "model")
    return result.model


def _sheet(model: Any, real: data.Dataset, plans: list[Plan], options: Options) -> Any:
    """Real digits, and below them every plan's digits from the same ten starts."""
    assert real.labels is not None
    classes = range(len(real.classes))
    first = [int((real.labels == k).nonzero()[0]) for k in classes]
    rows = {"real": real.batch(first)[0]}
    for plan in plans:
        if len(plan) in SHOWN or len(options.nfe) == 1:
            drawn = measure.timed(model, plan, len(classes), options.seed, torch.tensor(list(classes)))
            rows[f"{plan.name}, {len(plan)} calls"] = drawn.samples
    return labelled_rows(rows, header=real.classes)


def _copying(model: Any, options: Options, labels: torch.Tensor | None) -> Score:
    """How near samples lie to the training pictures, against how near unseen real ones do."""
    fake = measure.timed(model, make_plan("auto", model.process, nfe=20), options.n, options.seed, labels).samples
    return memorisation(fake, data.load("digits", split="train").all(), data.load("digits", split="test").all())


def _copying_text(copying: Score) -> str:
    return (
        f"Distance of samples to the nearest training picture, over that of unseen real pictures: {copying.value:.2f} "
        "(1: as fresh as real data, 0: copies)."
    )


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    fd, seconds = row["frechet"]["value"], row["network_seconds"]
    error = None if row["error"] is None else f"{row['error']:.4f}"
    return row["plan"], row["calls"], error, f"{fd:.3f}", f"{seconds:.2f}", f"{100 * row['overhead']:.1f} %"


def _report(options: Options, model: Any, rows: list[dict[str, Any]], sheet: Any, copying: Score) -> Report:
    training = model.meta["training"]
    report = Report("Digits: one network, five plans")
    report.text(
        f"A network of {sum(p.numel() for p in model.parameters()):,} numbers, trained on {training['images']:,} pictures "
        f"drawn from 1500 of scikit-learn's 1797 handwritten digits (8 × 8 pixels); then the same ten starts, and "
        f"{options.n} samples for each distance, through plans of {', '.join(str(n) for n in options.nfe)} network calls."
    )
    report.picture(sheet, "The first row is real data. Within a column all deterministic plans start from the same noise.")
    report.text("## Measured")
    cells = [
        (r["plan"], r["calls"], r["error"], r["frechet"]["value"], r["network_seconds"], 100 * r["overhead"]) for r in rows
    ]
    names = ("plan", "calls", "error", "FD", "network, s", "overhead, %")
    report.table(
        cells, names, best={"error": "min", "FD": "min"}, caption=f"{footnote(rows, options)} {_copying_text(copying)}"
    )
    if series := error_series(rows):
        report.plot(error_plot(series, ylabel="RMS error to the long trajectory"), "A straight line of slope −p is order p.")
    plan = make_plan("auto", model.process, nfe=10)
    report.text("## The default plan with 10 calls").code(plan)
    return report.plot(picture(plan), "Left: where the network is called. Right: the numbers of each row.")
