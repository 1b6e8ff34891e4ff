"""`unstir restore --task …`: zero-shot restoration, a model of pictures and a known measurement y = A x + σ_y n.

    task         the file holds                                    A
    inpaint      the picture with a hole (--mask: white = hole)    a mask
    srK          the small picture, K = 2, 4, 8 …                  means of K × K blocks
    deblur:S     the blurred picture, S pixels (1)                 a Gaussian, periodic at the border
    denoise      the noisy picture                                 nothing
    ct:K         a sinogram (K angles over 180°, N) as .npy        sums along parallel beams
    mri:R        k-space (2, N, N) or complex (N, N) as .npy       a Fourier transform, 0 where not measured

For ct and mri a picture is taken for the truth and measured here: K views (N/2), or one line of k-space in R (4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__, sample
from .._files import atomic_file, write_json
from .._random import mix
from ..data.picture import Picture, write_picture
from ..evaluate import Report, labelled_rows
from ..evaluate.quality import Tally, picture_metrics
from ..steer import METHODS, ValueRange, operators, posterior, red_diff
from . import measure, show
from .measured import Measured, Task, parse_task, problem
from .restore import SHOWN, Job, Options, number, refuse_overwriting

DEFAULT = "pigdm"
CHOICES = tuple(sorted({*METHODS, "red-diff"} - {"repaint"}))  # repaint needs rows of its own


def run_task(options: Options, model: Any, paths: Sequence[Path]) -> int:
    """Carries out `unstir restore MODEL IMAGE … --task …`."""
    task = parse_task(options.task or "")
    method = options.method or DEFAULT
    _check(options, model, task, method)
    plan = measure.plan_for(model, options.solver or ("ddim" if options.plan is None else None), options.nfe, options.plan)
    model = measure.on_process(model, plan.process)
    jobs = [Job(p, Path(p.name) if p.suffix != ".npy" else Path(p.name).with_suffix(".png")) for p in paths]
    refuse_overwriting(options, jobs)
    problems = {job: problem(options, model, task, job) for job in jobs}

    small = min(model.shape[1:]) < 11  # SSIM looks through a window of that size
    metrics = {name: kind for name, kind in picture_metrics().items() if not (small and name == "SSIM")}
    tally, lines, files, page = Tally(metrics), [], {}, Report(f"{options.task}: {len(jobs)} files")
    rows = len(plan.rows)
    with show.progress(len(jobs) * rows, "restore") as advance:
        for job, posed in problems.items():
            draws = _draw(options, model, plan, method, posed, number(job), partial(_told, advance, job.name.name))
            files[job], line = _keep(options, model, job, posed, draws, tally, page if len(lines) < SHOWN else None)
            lines.append(line)
    _report(options, plan, method, page, tally, lines, files)
    return 0


def _check(options: Options, model: Any, task: Task, method: str) -> None:
    if getattr(model.process, "anchored", False):
        raise ValueError(f"{options.model} was trained on pairs and has learned its task; leave out --task")
    if model.shape is None or len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise ValueError(f"{options.model} makes samples of shape {model.shape}, which are no pictures")
    if method not in CHOICES:
        raise ValueError(f"--method {method} is unknown; one of {', '.join(CHOICES)}")
    if not (math.isfinite(options.noise) and options.noise >= 0):
        raise ValueError(f"--noise {options.noise} must be finite and at least 0")
    if task.name == "denoise" and options.noise == 0:
        raise ValueError(
            "--task denoise needs --noise, the standard deviation of the noise in the pictures (values in [−1, 1])"
        )
    if (task.name == "inpaint") != (options.mask is not None):
        raise ValueError(
            "--mask is for --task inpaint, which needs it: a picture that is white where pixels are to be filled in"
        )


# -- the restoration ------------------------------------------------------------------------------------------
def _draw(
    options: Options, model: Any, plan: Any, method: str, posed: Measured, index: int, on_step: Callable[..., Any]
) -> Tensor:
    """(n, P, C, H, W) draws; draw k of picture p has a stream of its own, whatever else is restored."""
    count = len(posed.y)
    y = posed.y.repeat(options.n, *[1] * (posed.y.ndim - 1))
    places = [(index * 8 + p) * 4096 + k for k in range(options.n) for p in range(count)]
    if method == "red-diff":
        seeds = [mix(options.seed, place) for place in places]
        x = red_diff(model, posed.operator, y, plan, posed.noise, seed=seeds, on_step=on_step)
    else:
        spread = _spread(model)
        more: dict[str, Any] = {"data_std": spread} if method in ("pigdm", "tmpd", "daps") else {}
        post = posterior(model, posed.operator, y, method, posed.noise, **more)
        x = sample(post, plan, shape=len(y), seed=options.seed, index=places, on_step=on_step, device=y.device)
    return x.reshape(options.n, count, *x.shape[1:]).cpu()


def _told(advance: Callable[..., None], name: str, *_: Any) -> None:
    advance(name)


def _spread(model: Any) -> float:
    """σ_d of the data: what the network was told, else half of a unit range."""
    prediction: Any = getattr(model, "prediction", None)
    return float(prediction.sigma_data) if getattr(prediction, "kind", "") == "edm" else 0.5


def _keep(
    options: Options, model: Any, job: Job, posed: Measured, draws: Tensor, tally: Tally, page: Report | None
) -> tuple[list[Path], dict[str, Any]]:
    """Writes the mean, the draws and the map of their standard deviation; (files, what is said of them)."""
    span = ValueRange(-1.0, 1.0, *model.meta.get("range", (-1.0, 1.0)))
    mean, std = draws.mean(0), draws.std(0, correction=0)
    y = posed.y.cpu()
    residual = y - posed.operator.A(draws[0])
    rms = float(residual.square().mean().sqrt())
    files = [job.target(options.out)]
    write_picture(files[0], _picture(span.user(mean), posed), posed.like)
    if options.n > 1:
        for k, one in enumerate(draws, 1):
            files.append(job.beside(options.out, f"sample-{k}"))
            write_picture(files[-1], _picture(span.user(one), posed), posed.like)
        spread = std.mean((0, 1), keepdim=False)[None]
        files.append(job.beside(options.out, "std", ".png"))
        write_picture(files[-1], 2 * spread / spread.max().clamp_min(1e-12) - 1, Picture(spread, "PNG"))
    if job.source.suffix != ".npy" and posed.y.shape[1] == 2:  # simulated k-space
        files.append(_array(job.beside(options.out, "measurement", ".npy"), y))
    line: dict[str, Any] = {"file": str(job.name), "residual": rms, "noise": posed.noise}
    line["std"] = float(std.square().mean().sqrt()) if options.n > 1 else None
    given = operators.pinv(posed.operator, y, draws[0])
    if posed.truth is not None:
        restored, before, truth = (v.clamp(-1, 1) for v in (span.user(mean), span.user(given), posed.truth))
        line |= {name: pair[0] for name, pair in tally.add(restored, before, truth).items()}
    if page is not None:
        rows = {"without a model": span.user(given), "restored": span.user(draws[0])}
        if options.n > 1:
            rows |= {
                f"mean of {options.n}": span.user(mean),
                f"std, white {float(std.max()):.2g}": 2 * std / std.max().clamp_min(1e-12) - 1,
            }
        if posed.truth is not None:
            rows["truth"] = posed.truth
        shown = (
            residual
            if residual.ndim == 4 and residual.shape[1] in (1, 3)
            else operators.adjoint(posed.operator, residual, mean)
        )
        top = float(shown.abs().max())
        rows[f"residual, white {top:.2g}"] = shown / max(top, 1e-12)
        page.text(f"## {job.name}").picture(labelled_rows({k: v[:1].float() for k, v in rows.items()}))
    return files, line


def _picture(pixels: Tensor, posed: Measured) -> Tensor:
    """(P, C, H, W) as one picture (C, H, W) with the channels of the file."""
    if posed.parts == 3:
        return pixels[:, 0]
    return pixels[0].mean(0, keepdim=True) if posed.parts == -1 else pixels[0]


def _array(path: Path, values: Tensor) -> Path:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values[0].numpy())
    return path


def _report(
    options: Options,
    plan: Any,
    method: str,
    page: Report,
    tally: Tally,
    lines: list[dict[str, Any]],
    files: dict[Job, list[Path]],
) -> None:
    scores = [score for score in tally.result() if score.n > 0]
    page.text(
        f"Method `{method}`, plan `{plan.name}` with {len(plan)} network calls, seed {options.seed}, {options.n} draws a file. "
        "The residual is the root mean square of y − A x of the first draw; it should be about the noise."
    )
    columns = ["file", "residual", "noise", "std", *(score.name for score in scores)]
    page.table([[line.get(c) for c in columns] for line in lines], columns)
    for name, why in tally.missing.items():
        page.text(f"{name} was not measured: {why}.")
    record = {
        "model": options.model, "task": options.task, "method": method, "noise": options.noise, "solver": plan.name,
        "nfe": len(plan), "fingerprint": plan.fingerprint(), "seed": options.seed, "n": options.n, "results": lines,
        "metrics": {s.name: {"A⁺y": s.input, "restored": s.restored, "n": s.n} for s in scores},
        "files": {str(job.source): [str(f) for f in made] for job, made in files.items()},
        "torch": torch.__version__, "unstir": __version__,
    }  # fmt: skip
    write_json(options.out / "restore.json", record)
    page.save(options.out / "report.html")
    shown = [[line[c] for c in columns[:3]] + [line["std"]] + [line.get(c) for c in columns[4:]] for line in lines]
    show.table(shown, ["file", "residual>", "noise>", "std>", *(f"{c}>" for c in columns[4:])])
    show.say(f"{len(lines)} restored by {method}, with {plan.name}, {len(plan)} calls, seed {options.seed}, into {options.out}")
    show.wrote(options.out / "restore.json", options.out / "report.html")
