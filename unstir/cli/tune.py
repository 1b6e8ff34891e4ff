"""`unstir tune`: learn plans for one model and some budgets of calls, store them with it, and report before and after."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from .. import interop, tune
from .._files import write_json
from ..denoiser import Denoiser
from ..evaluate import Report, labelled_rows, save_png
from ..plan import Plan, sample
from . import measure, show

PICTURES = 10


@dataclass(frozen=True)
class Options:
    """Learn sampling plans for a trained model; a stopped run goes on when it is started again.

    unstir tune digits --nfe 5 6 8 --out out/tune
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder."""
    nfe: tuple[int, ...] = (5,)
    """Network calls, one plan each."""
    samples: int = 512
    """Noises to fit to."""
    validation: int = 256
    """Noises to choose by."""
    focus: int = 192
    """Of the samples that every step looks at closely; most of the time goes there."""
    steps: int = 20
    """At most so many Gauss-Newton steps."""
    teacher: int = 100
    """Calls of the trajectories to learn from."""
    guidance: float = 1.0
    """Classifier-free guidance scale; above 1 a conditional model is tuned over all its classes in turn."""
    batch: int = 256
    """Samples run together."""
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
        if self.guidance < 0:
            raise ValueError(f"--guidance {self.guidance} must be at least 0")
        if self.save and self.guidance != 1:
            raise ValueError("--save stores plans that every sampling run of the model will use; it is for --guidance 1")


def run(options: Options) -> int:
    """Carries out `unstir tune`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.save and not (Path(options.model) / "config.json").is_file():
        raise ValueError(f"--save: {options.model!r} is no model folder that can be written to")
    model = measure.load(options.model, options.device)
    labels = _labels(model) if options.guidance != 1 else None
    sees = model if labels is None else Guided(model, options.guidance, len(labels))
    cond = None if labels is None else {"class_labels": labels}
    began = time.perf_counter()
    with show.progress(len(options.nfe) * options.steps, "tune") as advance:
        plans = tune.learn(
            sees, list(options.nfe), samples=options.samples, validation=options.validation, steps=options.steps,
            focus=min(options.focus, options.samples), teacher=options.teacher, batch=options.batch, seed=options.seed,
            cond=cond, note=f"guidance {options.guidance:g}", folder=options.out / "work",
            progress=lambda p: advance(f"{p.nfe} calls, error {p.error:.4g} (fixed plan {p.base_error:.4g})"),
        )  # fmt: skip
    seconds = time.perf_counter() - began
    for n, plan in plans.items():
        plan.save(options.out / f"{n}.json")
    records = {str(n): plan.options["learned"] for n, plan in plans.items()}
    write_json(options.out / "tune.json", {"model": options.model, "seconds": seconds, "plans": records})
    _report(options, sees, plans, cond, seconds)
    show.table([_cells(n, plan) for n, plan in plans.items()], COLUMNS, title=f"{options.model}: learned plans")
    show.say(f"{seconds:.0f} s. Errors: RMS distance to trajectories of {options.teacher} calls, on noises not fitted to.")
    if options.save:
        model.plans.update(plans)
        interop.save_model(model, options.model)
        show.say(f"{options.model} now samples with these plans: unstir sample {options.model} --nfe {options.nfe[0]}")
    show.wrote(options.out / "report.html", *(options.out / f"{n}.json" for n in plans))
    return 0


COLUMNS = ("calls>", "from", "error before>", "error>", "FD before>", "FD>", "diversity>")


def _cells(nfe: int, plan: Plan) -> tuple[Any, ...]:
    r = plan.options["learned"]
    d = r.get("distribution", {"base": {"frechet": math.nan}, "learned": {"frechet": math.nan, "diversity": math.nan}})
    name = r["base"]["solver"] + (" (kept)" if "kept_base" in r else "")
    errors = (r["base_error"], r["validation_error"])
    return nfe, name, *errors, d["base"]["frechet"], d["learned"]["frechet"], d["learned"]["diversity"]


class Guided(torch.nn.Module):
    """D_u + w (D_c − D_u) of a class-conditional network whose label `null` means any class."""

    def __init__(self, model: Denoiser, scale: float, null: int) -> None:
        super().__init__()
        self.model, self.scale, self.null = model, scale, null
        self.process, self.shape = model.process, model.shape

    def forward(self, x: torch.Tensor, t: Any, class_labels: torch.Tensor) -> torch.Tensor:
        labels = torch.cat([class_labels, torch.full_like(class_labels, self.null)])
        conditional, free = self.model(torch.cat([x, x]), t, class_labels=labels).chunk(2)
        return free + self.scale * (conditional - free)


def _labels(model: Denoiser) -> torch.Tensor:
    classes = model.meta.get("classes")
    null = model.meta.get("null", {}).get("class_labels")
    if not classes or null != len(classes):
        raise ValueError("--guidance needs a class-conditional model with a null class (meta: classes, null)")
    return torch.arange(len(classes))


def _report(options: Options, model: Any, plans: dict[int, Plan], cond: Any, seconds: float) -> None:
    given = {} if cond is None else {k: v[torch.arange(PICTURES) % len(v)].to(_where(model)) for k, v in cond.items()}

    def draw(plan: Any, nfe: int | None = None) -> torch.Tensor:
        with torch.no_grad():
            x = model.process.prior((PICTURES, *model.shape), seed=options.seed + 1, device=_where(model))
            return sample(model, plan, nfe=nfe, x=x, **given).cpu()

    report = Report(f"{options.model}: learned plans")
    report.text(
        f"{options.samples} noises to fit to, {options.validation} others that the figures are from, seed {options.seed}, "
        f"guidance {options.guidance:g}, {seconds:.0f} s. Error: RMS distance to trajectories of {options.teacher} calls. FD: "
        "Fréchet distance to their ends. Diversity: mean distance of pairs, relative to theirs. Before: the best fixed plan."
    )
    report.table([_cells(n, p) for n, p in plans.items()], [c.rstrip(">") for c in COLUMNS])
    if len(model.shape) == 3:
        rows = {f"{options.teacher} calls": draw("auto", options.teacher)}
        for n, plan in plans.items():
            rows |= {f"{n} calls, default": draw("auto", n), f"{n} calls, learned": draw(plan)}
        sheet = labelled_rows(rows)
        save_png(sheet, options.out / "before.png")
        report.picture(sheet, "The same starts: the long trajectory, the default plan, the learned plan.")
    for plan in plans.values():
        report.code(plan)
    report.save(options.out / "report.html")


def _where(model: Any) -> torch.device:
    return next(model.parameters()).device
