"""`unstir tune`: learn plans for one model and some budgets of calls, store them with it, and report before and after."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from .. import tune
from .._files import write_json
from ..evaluate import Report, labelled_rows, save_png
from ..plan import Plan, sample
from . import show
from .subject import Sizes, Subject, own_ends, subject_of

PICTURES = 10


@dataclass(frozen=True)
class Options:
    """Learn sampling plans for a trained model or a diffusers pipeline; a stopped run goes on when it is started again.

    unstir tune digits --nfe 5 6 8 --out out/tune
    unstir tune ./pipeline --nfe 6 --prompts prompts.txt
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name, model folder, or folder of a diffusers pipeline, which gets its plan as unstir_plan.json (more than one
    budget: the first; the others as unstir_plan_N.json)."""
    nfe: tuple[int, ...] = (5,)
    """Network calls, one plan each."""
    prompts: Path | None = None
    """For a pipeline that reads text: a file with one prompt a line."""
    negative: str = ""
    """The prompt that a pipeline is guided away from."""
    guidance: float | None = None
    """Classifier-free guidance scale; by default 1 (none), or the one of the pipeline's own calls. A class-conditional
    model is tuned over all its classes in turn."""
    samples: int | None = None
    """Noises to fit to (512; 64 for a pipeline)."""
    validation: int | None = None
    """Noises to choose by (256; 32)."""
    focus: int | None = None
    """Of the samples that every step looks at closely; most of the time goes there (192; 24)."""
    steps: int | None = None
    """At most so many Gauss-Newton steps (12)."""
    teacher: int = 60
    """Calls of the trajectories to learn from."""
    batch: int | None = None
    """Samples run together, which bounds the memory (256; fewer for large latents)."""
    seed: int = 0
    """Sample i is a function of the seed and of i."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    save: bool = False
    """Also write the plans into MODEL's folder, where `unstir sample MODEL --nfe N` finds them."""
    out: Path = Path("out/tune")
    """Folder for N.json (plans), report.html, tune.json, before.png, and what a stopped run needs."""

    def __post_init__(self) -> None:
        if not self.nfe or min(self.nfe) < 1 or len(set(self.nfe)) < len(self.nfe):
            raise ValueError(f"--nfe {' '.join(map(str, self.nfe))} must be different numbers of at least 1")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"--guidance {self.guidance} must be a number of at least 0")

    def sizes(self, usual: Sizes) -> Sizes:
        """The sizes asked for, else the usual ones; the focus is at most the samples."""
        given = Sizes(*(own if (own := getattr(self, name)) is not None else getattr(usual, name) for name in Sizes._fields))
        return given._replace(focus=min(given.focus, given.samples))


def run(options: Options) -> int:
    """Carries out `unstir tune`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    o = options
    subject = subject_of(o.model, o.device, o.guidance, o.prompts, o.negative, o.save, o.seed)
    sizes, began = o.sizes(subject.sizes), time.perf_counter()
    with show.progress(len(o.nfe) * sizes.steps, "tune") as advance:
        plans = tune.learn(
            subject.model, list(o.nfe), **sizes._asdict(), teacher=o.teacher, seed=o.seed, cond=subject.cond,
            note=subject.told, folder=o.out / "work" / subject.work, **subject.options,
            progress=lambda p: advance(f"{p.nfe} calls, error {p.error:.4g} (fixed plan {p.base_error:.4g})"),
        )  # fmt: skip
    seconds = time.perf_counter() - began
    for n, plan in plans.items():
        plan.save(o.out / f"{n}.json")
    records = {str(n): plan.options["learned"] for n, plan in plans.items()}
    write_json(o.out / "tune.json", {"model": o.model, "seconds": seconds, "plans": records})
    _report(o, sizes, subject, plans, seconds)
    show.table([_cells(n, plan) for n, plan in plans.items()], COLUMNS, title=f"{o.model}: learned plans")
    show.say(
        f"{seconds:.0f} s, {subject.told}. Errors: RMS distance to trajectories of {o.teacher} calls, on noises not fitted to."
    )
    if subject.store is not None:
        show.say(subject.store(plans))
    show.wrote(o.out / "report.html", *(o.out / f"{n}.json" for n in plans))
    return 0


COLUMNS = ("calls>", "from", "error before>", "error>", "FD before>", "FD>", "diversity>")


def _cells(nfe: int, plan: Plan) -> tuple[Any, ...]:
    r = plan.options["learned"]
    d = r.get("distribution", {"base": {"frechet": math.nan}, "learned": {"frechet": math.nan, "diversity": math.nan}})
    name = r["base"]["solver"] + (" (kept)" if "kept_base" in r else "")
    errors = (r["base_error"], r["validation_error"])
    return nfe, name, *errors, d["base"]["frechet"], d["learned"]["frechet"], d["learned"]["diversity"]


def _report(options: Options, sizes: Sizes, subject: Subject, plans: Mapping[int, Plan], seconds: float) -> None:
    report = Report(f"{options.model}: learned plans")
    report.text(
        f"{sizes.samples} noises to fit to, {sizes.validation} others that the figures are from, seed {options.seed}, "
        f"{subject.told}, {seconds:.0f} s. Error: RMS distance to trajectories of {options.teacher} calls. FD: "
        "Fréchet distance to their ends. Diversity: mean distance of pairs, relative to theirs. Before: the best fixed plan."
    )
    report.table([_cells(n, p) for n, p in plans.items()], [c.rstrip(">") for c in COLUMNS])
    ends = _ends(options, subject, plans)
    rows = {f"{name}{told}": subject.seen(x).cpu() for name, (x, told) in ends.items()}
    if all(x.ndim == 4 and x.shape[1] in (1, 3) for x in rows.values()):
        sheet = labelled_rows(rows)
        save_png(sheet, options.out / "before.png")
        shown = f" From the left: {'; '.join(subject.names[:PICTURES])}." if subject.names else ""
        report.picture(
            sheet,
            f"The same {PICTURES} starts, none fitted to: the long trajectory, then for each budget what was there before and "
            f"the learned plan, with the RMS distance to the first row.{shown}",
        )
    for n, plan in plans.items():
        tried = plan.options["learned"]["tried"]
        fixed = sorted(tried["fixed"].items(), key=lambda item: item[1])
        report.table(
            [(plan.name, tried["plan"]), *fixed],
            ["plan", "error"],
            best={"error": "min"},
            caption=f"{n} calls: the plan that was kept and every fixed plan tried, on {tried['samples']} of the noises.",
        )
        report.code(plan)
    report.save(options.out / "report.html")


def _ends(options: Options, subject: Subject, plans: Mapping[int, Plan]) -> dict[str, tuple[torch.Tensor, str]]:
    """{row of the sheet: (end states of the same starts, their error as a text)}; the long trajectory first."""
    model, where = subject.model, subject.device
    cond = {k: v[torch.arange(PICTURES) % len(v)].to(where) for k, v in (subject.cond or {}).items()}
    with torch.no_grad():
        x = model.process.prior((PICTURES, *model.shape), seed=options.seed + 1, device=where)

        def draw(plan: Any, nfe: int | None = None) -> torch.Tensor:
            ends = []
            for rows in torch.arange(PICTURES, device=where).split(subject.sizes.batch):
                told: dict[str, Any] = {k: v[rows] for k, v in cond.items()}
                ends.append(sample(model, plan, nfe=nfe, x=x[rows], **told))
            return torch.cat(ends)

        goal = draw("auto", options.teacher)
        rows = {}
        for n, plan in plans.items():
            rows |= own_ends(subject, n, x / float(model.process.sigma(1.0)), cond)
            rows |= {f"{n} calls, default": draw("auto", n), f"{n} calls, learned": draw(plan)}
        told = {name: f" ({float((end - goal).square().mean().sqrt()):.3g})" for name, end in rows.items()}
    return {f"{options.teacher} calls": (goal, ""), **{name: (end, told[name]) for name, end in rows.items()}}
