"""`unstir restore`: pictures and sounds, file by file, with a model of paired data; or by a task with a model of samples."""

from __future__ import annotations

import glob
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from .. import __version__
from .._files import write_json
from ..data.images import PICTURES
from ..data.sound import SOUNDS
from ..evaluate import Report
from ..evaluate.quality import Quality, Tally
from . import measure, show

SHOWN = 8  # files that the report shows


@dataclass(frozen=True)
class Options:
    """Restore pictures or sounds with a model trained on pairs: files, folders and patterns, each kept in its format.

    unstir restore out/train/model noisy/ 'more/*.wav' --out clean --reference truth/

    With --task, a model of pictures alone fills in, enlarges or sharpens: unstir restore MODEL photo.png --task sr4
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT…")]
    """Files, folders (searched with their subfolders) and patterns such as 'noisy/*.wav'."""
    task: str | None = None
    """What was done to the pictures, for a model without pairs: inpaint, sr4, deblur, …"""
    method: str | None = None
    """How the task is solved, for instance dps or ddnm."""
    mask: Path | None = None
    """For --task inpaint: a picture that is white where pixels are to be filled in."""
    noise: float = 0.0
    """For --task: standard deviation of the noise in the pictures, on values in [−1, 1]."""
    nfe: int | None = None
    """Network calls a restoration (20 if no plan is given)."""
    solver: str | None = None
    """A solver's name; by default the plan shipped with the model, else "auto"."""
    plan: Path | None = None
    """A plan written by `unstir plan --save`."""
    n: int = 1
    """Draws from the posterior: the file holds their mean, beside it lie the draws and where they differ."""
    seed: int = 0
    """A restoration is a function of the seed and of the name of its file."""
    tile: int | None = None
    """Side of the windows into which large pictures are cut (default: the size the model was trained on)."""
    overlap: int = 16
    """Pixels that neighbouring windows share."""
    reference: Path | None = None
    """Folder with the truth under the same names: measures the restored files beside the inputs."""
    force: bool = False
    """Replace files that are there already."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    out: Path = Path("out/restore")
    """Folder for the restored files, restore.json and report.html."""

    def __post_init__(self) -> None:
        for name, low in (("n", 1), ("overlap", 0), ("tile", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"--{name} {value} must be at least {low}")
        if self.task is None and (self.method is not None or self.mask is not None or self.noise):
            raise ValueError("--method, --mask and --noise are for a --task; a model of pairs has learned its own")


@dataclass(frozen=True)
class Job:
    """One file: where it lies, and what it is called in the folder of results."""

    source: Path
    name: Path

    def target(self, out: Path) -> Path:
        return out / self.name

    def beside(self, out: Path, what: str, ending: str | None = None) -> Path:
        """A further file of the same job: voice.wav, "sample-1" -> voice.sample-1.wav; "std", ".png" -> voice.wav.std.png."""
        name = self.name.name + f".{what}{ending}" if ending else f"{self.name.stem}.{what}{self.name.suffix}"
        return out / self.name.with_name(name)

    def files(self, out: Path, n: int) -> list[Path]:
        """All files of a job with n draws: the mean, and for n > 1 the draws and the map of where they differ."""
        draws = [self.beside(out, f"sample-{k}") for k in range(1, n + 1)]
        return [self.target(out), *draws, self.beside(out, "std", ".png")] if n > 1 else [self.target(out)]


@dataclass(frozen=True)
class Restored:
    """What one file gave: a line about its form, its metrics beside the input's, how to show it, and what is wrong with it."""

    about: str
    metrics: dict[str, tuple[float, float]]
    draw: Callable[[Report], object]
    faults: Sequence[str] = ()


def run(options: Options) -> int:
    """Carries out `unstir restore`."""
    model = measure.load(options.model, options.device)
    spec = model.meta.get("sound")
    if options.task is not None:
        from .tasks import run_task

        return run_task(options, model, [job.source for job in find(options.inputs, (*PICTURES, ".npy"))])
    jobs = find(options.inputs, SOUNDS if spec else PICTURES)
    if not model.process.anchored:
        raise ValueError(f"{options.model} draws samples and was not trained on pairs: say with --task what to restore")
    plan = measure.plan_for(model, options.solver, options.nfe, options.plan)
    refuse_overwriting(options, jobs)
    if spec:
        from .restore_sound import Sounds as Kind
    else:
        from .restore_pictures import Pictures as Kind
    kind = Kind(options, model, plan)
    done, skipped = _restore_all(options, jobs, kind)
    if not done:
        name, why = next(iter(skipped.items()))
        raise ValueError(f"none of {len(jobs)} files could be restored; the first, {name}: {why}")
    _report(options, plan, kind.tally, done, skipped)
    return 0


def _restore_all(options: Options, jobs: Sequence[Job], kind: Any) -> tuple[dict[Job, Restored], dict[str, str]]:
    """({job: what it gave}, {file: why it was skipped})."""
    done: dict[Job, Restored] = {}
    skipped: dict[str, str] = {}
    steps = {job: _steps(kind, job) for job in jobs}
    with show.progress(sum(steps.values()), "restore") as advance:
        for job in jobs:
            try:
                found = kind.restore(job, lambda step, name=job.name.name: advance(name))
                # What is not shown is let go: a folder may hold more than the memory does.
                done[job] = found if len(done) < SHOWN else replace(found, draw=lambda page: page)
            except (ValueError, OSError) as error:
                skipped[str(job.source)] = " ".join(str(error).split()).removeprefix(f"{job.source} ")
    return done, skipped


def _steps(kind: Any, job: Job) -> int:
    """Rows to run for a file: 0 for one that cannot be read, which `restore` will say."""
    try:
        return kind.steps(job)
    except (ValueError, OSError):
        return 0


def _report(options: Options, plan: Any, tally: Tally, done: dict[Job, Restored], skipped: dict[str, str]) -> None:
    """restore.json, report.html, and what is said on the terminal."""
    scores = tally.result()
    names = [score.name for score in scores]
    page = Report(f"{len(done)} files restored by {options.model}").text(
        f"Plan `{plan.name}` with {len(plan)} network calls, fingerprint `{plan.fingerprint()}`, seed {options.seed}"
        + (f"; mean of {options.n} draws." if options.n > 1 else ".")
    )
    if scores:
        page.table(_rows(scores), ["metric", "input", "restored", "gain", "files"], caption="Means, beside the input's.")
    for name, why in tally.missing.items():
        page.text(f"{name} was not measured: {why}.")
    rows = [
        (str(job.name), found.about, *(_change(found.metrics.get(name)) for name in names), "; ".join(found.faults))
        for job, found in done.items()
    ]
    page.table(rows, ["file", "form", *names, "faults"])
    if skipped:
        page.table(list(skipped.items()), ["skipped", "because"], failed=range(len(skipped)))
    for job, found in list(done.items())[:SHOWN]:
        page.text(f"## {job.name}")
        found.draw(page)
    record = {
        "model": options.model,
        "solver": plan.name,
        "nfe": len(plan),
        "fingerprint": plan.fingerprint(),
        "seed": options.seed,
        "n": options.n,
        "metrics": {s.name: {"input": s.input, "restored": s.restored, "n": s.n} for s in scores},
        "missing": tally.missing,
        "files": {str(job.source): [str(f) for f in job.files(options.out, options.n)] for job in done},
        "skipped": skipped,
        "torch": torch.__version__,
        "unstir": __version__,
    }
    write_json(options.out / "restore.json", record)
    page.save(options.out / "report.html")
    for file, why in skipped.items():
        show.say(f"skipped {file}: {why}")
    for job, found in done.items():
        for fault in found.faults:
            show.say(f"{job.source}: {fault}")
    if scores:
        show.table(_rows(scores), ["metric", "input>", "restored>", "gain>", "files>"])
    show.say(
        f"{len(done)} restored, {len(skipped)} skipped, with {plan.name}, {len(plan)} calls, seed {options.seed}, "
        f"into {options.out}"
    )
    show.wrote(options.out / "restore.json", options.out / "report.html")


def _rows(scores: Sequence[Quality]) -> list[tuple[Any, ...]]:
    return [(f"{s.name} ({s.unit})" if s.unit else s.name, s.input, s.restored, s.gain, s.n) for s in scores]


def _change(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{pair[1]:.3g} → {pair[0]:.3g}"


# -- which files --------------------------------------------------------------------------------------------
def find(inputs: Sequence[str], endings: Sequence[str]) -> list[Job]:
    """The files that the inputs name, sorted and each once, with their names in the folder of results.

    A folder keeps its inner structure; a file named by itself keeps its name. Raises ValueError for
    an input that names nothing, and for two files that would get one name.
    """
    if not inputs:
        raise ValueError("no INPUT: name files, folders or patterns to restore")
    found: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
            if not inside:
                raise ValueError(f"folder {text!r} holds no file with an ending of {', '.join(endings)}")
            found |= {p: p.relative_to(path) for p in inside}
        elif path.exists():
            found[path] = Path(path.name)
        else:
            matches = sorted(Path(m) for m in glob.glob(text, recursive=True) if Path(m).is_file())
            if not matches:
                raise ValueError(f"{text!r} names no file, no folder, and no pattern that matches one")
            found |= {p: Path(p.name) for p in matches}
    unique: dict[Path, tuple[Path, Path]] = {}
    for source, name in sorted(found.items()):
        unique.setdefault(source.resolve(), (source, name))
    names: dict[Path, Path] = {}
    for source, name in unique.values():
        if name in names:
            raise ValueError(f"{names[name]} and {source} would both become {name}; restore them into different folders")
        names[name] = source
    return [Job(source, name) for source, name in unique.values()]


def number(job: Job) -> int:
    """The number by which a file's noise is drawn: of its name, so that it does not change with the other files."""
    return zlib.crc32(job.name.as_posix().encode())


def refuse_overwriting(options: Options, jobs: Sequence[Job]) -> None:
    """ValueError if a result would replace an input, or, without --force, any file."""
    sources = {job.source.resolve() for job in jobs}
    targets = [file for job in jobs for file in job.files(options.out, options.n)]
    twice = next((file for file, count in Counter(targets).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two inputs would both write {twice}; restore them into different folders")
    own = [target for target in targets if target.resolve() in sources]
    if own:
        raise ValueError(f"{own[0]} is an input and would be replaced by its restoration; give another --out")
    there = [file for file in (*targets, options.out / "restore.json", options.out / "report.html") if file.exists()]
    if there and not options.force:
        raise ValueError(f"{len(there)} of the results exist already, the first {there[0]}; give --force or another --out")
