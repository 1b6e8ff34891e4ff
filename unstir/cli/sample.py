"""`unstir sample`: draw samples from a trained model, with the numbers that are needed to draw them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from .. import __version__
from .._files import atomic_file, write_json
from ..evaluate import Report, grid, labelled_rows, save_png
from . import measure, show
from .plan import picture

SHEET = 400  # pictures on a sheet
# In the picture's file.
PROVENANCE = ("model", "solver", "nfe", "fingerprint", "seed", "n", "guidance", "size", "labels", "torch", "unstir")


@dataclass(frozen=True)
class Options:
    """Draw samples from a model: a bundled name ("digits"), a model folder, or the folder of a training run.

    unstir sample digits --nfe 10 --solver dpmpp-3m --labels
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder."""
    nfe: int | None = None
    """Network calls a sample (20 if no plan is given)."""
    solver: str | None = None
    """A solver's name; by default the plan shipped with the model, else "auto"."""
    plan: Path | None = None
    """A plan written by `unstir plan --save`."""
    n: int = 64
    """How many samples."""
    seed: int = 0
    """Sample i is a function of the seed and of i."""
    label: Annotated[str | None, tyro.conf.arg(aliases=["--class"])] = None
    """Draw this class only, by name or number."""
    labels: bool = False
    """Draw the classes in turn."""
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")] = None
    """Height and width in pixels, of a model that takes many (`unstir train --buckets`); by default the shape it saw most."""
    guidance: float = 1.0
    """Classifier-free guidance scale of the classes asked for; 1 is none, above it every evaluation is two."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    out: Path = Path("out/sample")
    """Folder for samples.npy, samples.png (which says how it came about, `unstir.evaluate.read_meta`), sample.json and
    report.html."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"--n {self.n} must be at least 1, the number of samples")
        if self.label is not None and self.labels:
            raise ValueError("--label and --labels exclude each other; give one of them")
        if self.guidance != 1 and not (self.labels or self.label is not None):
            raise ValueError(f"--guidance {self.guidance:g} guides towards a class: give --label NAME or --labels")


def run(options: Options) -> int:
    """Carries out `unstir sample`."""
    model = measure.load(options.model, options.device)
    plan = measure.plan_for(model, options.solver, options.nfe, options.plan)
    wanted = [options.label] if options.label is not None else [str(c) for c in model.meta.get("classes", [])]
    labels = measure.labels_of(model, wanted, options.n) if options.labels or options.label is not None else None
    shape = None if options.size is None else measure.sized(model, options.size)
    with show.progress(-(-options.n // measure.BATCH) * len(plan.rows), "sample") as advance:
        drawn = measure.timed(
            model, plan, options.n, options.seed, labels, on_step=lambda step: advance(), guidance=options.guidance, shape=shape
        )
    sheet = _sheet(model, drawn.samples, labels)
    record = {
        "model": options.model,
        "solver": plan.name,
        "nfe": len(plan),
        "fingerprint": plan.fingerprint(),
        "seed": options.seed,
        "n": options.n,
        "guidance": options.guidance,
        "size": None if options.size is None else list(options.size),
        "labels": None if labels is None else labels.tolist(),
        "seconds": drawn.seconds,
        "network_seconds": drawn.network,
        "torch": torch.__version__,
        "unstir": __version__,
    }
    report = Report(f"{options.n} samples of {options.model}").text(
        f"Plan `{plan.name}` with {len(plan)} network calls, fingerprint `{plan.fingerprint()}`, seed {options.seed}; "
        f"{drawn.seconds:.2f} s, of which the network took {drawn.network:.2f} s."
    )
    if sheet is not None:
        report.picture(sheet, f"Samples 0 to {min(options.n, SHEET) - 1}.")
    report.text("## The plan").code(plan).plot(
        picture(plan), "Left: where the network is called. Right: the numbers of each row."
    )

    files = [options.out / "samples.npy", options.out / "sample.json", options.out / "report.html"]
    with atomic_file(files[0]) as temporary, temporary.open("wb") as file:
        np.save(file, drawn.samples.numpy())
    write_json(files[1], record)
    report.save(files[2])
    if sheet is not None:
        save_png(sheet, options.out / "samples.png", {key: record[key] for key in PROVENANCE})
        files.append(options.out / "samples.png")
    show.say(
        f"{options.n} samples of shape {tuple(drawn.samples.shape[1:])} with {plan.name}, {len(plan)} calls, "
        f"seed {options.seed}: {drawn.seconds:.2f} s, network {drawn.network:.2f} s"
    )
    show.wrote(*files)
    return 0


def _sheet(model: Any, samples: torch.Tensor, labels: torch.Tensor | None) -> Any:
    """A sheet of pictures, one row a class where classes were asked for; None for data that are no pictures."""
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        return None
    span, samples = tuple(model.meta.get("range", (-1.0, 1.0))), samples[:SHEET]
    if labels is None:
        return grid(samples, value_range=span)
    names, labels = model.meta["classes"], labels[:SHEET]
    return labelled_rows({str(names[k]): samples[labels == k] for k in labels.unique().tolist()}, value_range=span)
