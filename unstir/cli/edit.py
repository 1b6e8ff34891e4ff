"""`unstir edit`: pictures of one class, or of one model, as pictures of another, and what the way there and back lost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from .. import __version__, data, steer
from .._extras import need
from .._files import atomic_file, write_json
from ..data.images import PICTURES, decode
from ..evaluate import Report, grid, labelled_rows, save_png
from . import edit_region, measure, show
from .parse import pairs

SHOWN = 10  # pictures on the sheet
COW = "cow"


@dataclass(frozen=True)
class Outcome:
    """Edited pictures (B, *), what is shown and told of them, and how many network calls went up and down."""

    edited: Tensor
    shown: dict[str, Tensor]
    caption: str
    facts: dict[str, float]
    told: str
    calls: tuple[int, int]


@dataclass(frozen=True)
class Options:
    """Turn pictures of one class into pictures of another, keeping what the two have in common.

    unstir edit digits --index 3 13 23 --from-class 3 --to-class 8 --method obelm
    unstir edit MODEL photo.png --from-class cat --to-class dog --strength 0.5
    unstir edit MODEL photo.png --to-class dog --method cow --mask hole.png

    Methods: sdedit stirs the picture and draws the rest anew; ddim, bdia, obelm and edict go up into noise by a way that
    can be gone back (all but ddim without error); cyclediffusion keeps the noises of a stochastic plan; cow keeps one
    region of the picture (black in --mask) and lets the rest grow to suit it, by cyclic one-way diffusion.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder."""
    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")] = None
    """A picture, or an .npy of several; or give --index."""
    index: tuple[int, ...] = ()
    """Pictures of the model's own bundled data (digits), by number, in place of a file."""
    from_class: str | None = None
    """What the pictures show, by name or number; of bundled data it is known."""
    to_class: str | None = None
    """What they are to show."""
    into: str | None = None
    """Another model for the way down: translation from the domain of MODEL to that of this one."""
    method: str = "cyclediffusion"
    """sdedit, ddim, bdia, obelm, edict, cyclediffusion or cow."""
    mask: Path | None = None
    """For --method cow: a picture that is white where pixels are drawn anew, black where they stay."""
    strength: float | None = None
    """How far up into noise, in [0.05, 1] (0.6; cow 0.7): low keeps the picture, high follows the class."""
    nfe: int | None = None
    """Rows of the plan (40); a method makes one or two network calls a row, each way. Of cow the levels (20)."""
    guidance: float = 1.0
    """Scale of classifier-free guidance on the way down; 1 is none."""
    set: tuple[str, ...] = ()
    """Options of the method or its solver, NAME=VALUE, for instance eta=0.5, gamma=0.96, or cycles=5 of cow."""
    n: int = 1
    """Edits of each picture, by the methods that draw noise."""
    seed: int = 0
    """An edit is a function of the seed, the picture and its place."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    out: Path = Path("out/edit")
    """Folder for edited.npy, edited.png, before-after.png, edit.json and report.html."""

    def __post_init__(self) -> None:
        if self.method not in (*steer.EDITS, COW):
            raise ValueError(f"--method {self.method!r} is unknown; one of {', '.join((*steer.EDITS, COW))}")
        if (self.image is None) == (not self.index):
            raise ValueError("give either IMAGE, a file, or --index, numbers of bundled pictures")
        if self.n < 1:
            raise ValueError(f"--n {self.n} must be at least 1, the edits of each picture")
        if self.n > 1 and self.method not in ("sdedit", "cyclediffusion", COW):
            raise ValueError(f"--n {self.n}: {self.method} draws no noise, so its edits are all alike; use --n 1")
        if (self.mask is not None) != (self.method == COW):
            raise ValueError(
                f"--mask {self.mask} is for --method cow, which needs it: a picture that is white where pixels are drawn anew"
                if self.mask is not None
                else "--method cow needs --mask, a picture that is white where pixels are drawn anew and black where they stay"
            )
        if self.into is not None and self.method == COW:
            raise ValueError(f"--into {self.into}: cow keeps to one model; give --to-class")
        if self.to_class is None and self.into is None and self.method != COW:
            raise ValueError("say what the pictures are to become: --to-class CLASS, or --into MODEL")


def run(options: Options) -> int:
    """Carries out `unstir edit`."""
    strength, nfe = (edit_region.STRENGTH, edit_region.NFE) if options.method == COW else (0.6, 40)
    options = replace(
        options,
        strength=strength if options.strength is None else options.strength,
        nfe=nfe if options.nfe is None else options.nfe,
    )
    model = measure.load(options.model, options.device)
    into = model if options.into is None else measure.load(options.into, options.device)
    if into.shape != model.shape or into.process != model.process:
        raise ValueError(
            f"--into {options.into} makes {into.shape} on {into.process!r}; MODEL {model.shape} on {model.process!r}"
        )
    x0, known = _pictures(options, model)
    span = tuple(model.meta.get("range", (-1.0, 1.0)))
    x0 = x0.repeat_interleave(options.n, 0).to(next(model.parameters()))
    target = _condition(into, options.to_class, None, options.n, len(x0), "--to-class")
    down = into if options.guidance == 1 else steer.cfg(into, options.guidance)
    if options.method == COW:
        found, seconds = _kept_region(options, model, down, x0, target, span)
    else:
        # Of a picture that is not given by --index the class has to be told.
        source = _condition(model, options.from_class, known, options.n, len(x0), "--from-class")
        found, seconds = _there_and_back(options, model, down, x0, source, target)
    _write(options, found, span, seconds)
    return 0


def _there_and_back(
    options: Options, model: Any, down: Any, x0: Tensor, source: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[Outcome, float]:
    if options.method in ("bdia", "obelm", "edict"):  # what is undone is undone to rounding
        model, down, x0 = model.double(), down.double(), x0.double()
    assert options.nfe is not None  # `run` has filled it in
    choices = {"strength": options.strength, "nfe": options.nfe, "seed": options.seed, **pairs(options.set)}
    started = time.perf_counter()
    edited = steer.edit(model, x0, source, target, options.method, into=down, **choices)
    seconds = time.perf_counter() - started
    back = steer.edit(model, x0, source, source, options.method, **choices)
    up, along = steer.EDITS[options.method].calls(options.nfe)
    facts = {
        "round trip, RMS": _rms(back - x0),
        "round trip, largest": float((back - x0).abs().max()),
        "moved, RMS": _rms(edited - x0),
    }
    told = f"round trip to the own class: RMS error {facts['round trip, RMS']:.2g}, largest {facts['round trip, largest']:.2g}"
    caption = "Above what was given, in the middle the edit, below the way up and back without an edit."
    shown = {"before": x0, "after": edited, "round trip": back}
    return Outcome(edited, shown, caption, facts, told, (up, along * _branches(options))), seconds


def _kept_region(
    options: Options, model: Any, down: Any, x0: Tensor, target: dict[str, Tensor], span: Any
) -> tuple[Outcome, float]:
    assert options.mask is not None
    assert options.strength is not None
    assert options.nfe is not None
    white = edit_region.hole(options.mask, model.shape)
    choices = {"fill": sum(span) / 2, **pairs(options.set)}  # grey
    started = time.perf_counter()
    edited, (up, along) = edit_region.region(
        model, down, x0, white, target, options.strength, options.nfe, options.seed, choices
    )
    seconds = time.perf_counter() - started
    facts = {**edit_region.errors(edited, x0, white), "moved, RMS": _rms(edited - x0)}
    told = f"kept region: RMS error {facts['kept region, RMS error']:.2g}; elsewhere {facts['drawn anew, RMS change']:.2g}"
    shown = {"before": x0, "kept": edit_region.kept(x0, white, span), "after": edited}
    caption = "Above what was given, in the middle what had to stay of it, below the edit."
    return Outcome(edited, shown, caption, facts, told, (up, along * _branches(options))), seconds


def _branches(options: Options) -> int:
    return 2 if options.guidance != 1 else 1


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _pictures(options: Options, model: Any) -> tuple[Tensor, list[str] | None]:
    """Pictures (B, *model.shape), and their classes where the data say so."""
    if options.image is None:
        name = model.meta.get("training", {}).get("options", {}).get("data")
        if name not in data.BUNDLED:
            raise ValueError(f"--index: {options.model} was not trained on bundled data; give IMAGE, a file")
        known = data.load(name)
        if outside := [i for i in options.index if not 0 <= i < len(known)]:
            raise ValueError(f"--index {outside[0]} must lie in 0 … {len(known) - 1}, the pictures of {name}")
        rows = torch.tensor(options.index)
        return known.all()[rows], None if known.labels is None else [str(known.classes[k]) for k in known.labels[rows]]
    file = options.image
    if not file.is_file():
        raise ValueError(f"IMAGE {str(file)!r} is missing or no file")
    if file.suffix.lower() in PICTURES:
        channels, height, width = model.shape if len(model.shape) == 3 else (0, 0, 1)
        if height != width or channels not in (1, 3):
            raise ValueError(
                f"IMAGE {str(file)!r}: the model makes {model.shape}, no square pictures; give an .npy of that shape"
            )
        try:
            pixels = decode(lambda: need("PIL.Image").open(file), height, channels)
        except OSError as error:  # what Pillow raises for files that are damaged or no pictures
            raise ValueError(f"IMAGE {str(file)!r} cannot be read: {error}") from None
        x = torch.from_numpy(pixels.copy()).float()[None] / 127.5 - 1
        low, high = model.meta.get("range", (-1.0, 1.0))
        return low + (x + 1) / 2 * (high - low), None
    found = data.load(file, labels="none")
    if found.shape != model.shape:
        raise ValueError(f"IMAGE {str(file)!r} holds samples of shape {found.shape}; the model makes {model.shape}")
    x = found.all()
    low, high = model.meta.get("range", (-1.0, 1.0))
    if float(x.min()) < low - (high - low) / 4 or float(x.max()) > high + (high - low) / 4:
        raise ValueError(
            f"IMAGE {str(file)!r} has values from {float(x.min()):.3g} to {float(x.max()):.3g}; the model's lie in "
            f"{low:g} … {high:g}: scale it, or save it as uint8"
        )
    return x, None


def _condition(model: Any, label: str | None, known: list[str] | None, n: int, count: int, option: str) -> dict[str, Tensor]:
    """Keywords of the network for `count` pictures, n in a row of one class."""
    names = [str(name) for name in model.meta.get("classes", [])]
    if not names:
        if label is not None:
            raise ValueError(f"{option} {label}: the model has no classes; translate with --into MODEL")
        return {}
    wanted = [label] * (count // n) if label is not None else known
    if wanted is None:
        raise ValueError(f"give {option}, one of {', '.join(names)}")
    for word in wanted:
        if word not in names and not (word.isdigit() and int(word) < len(names)):
            raise ValueError(f"{option} {word!r} is unknown; the model's classes are {', '.join(names)}")
    numbers = torch.tensor([names.index(word) if word in names else int(word) for word in wanted])
    device = next(model.parameters()).device
    return measure.condition(model, numbers.repeat_interleave(n).to(device))


def _write(options: Options, found: Outcome, span: Any, seconds: float) -> None:
    """The files, and what is said on the terminal."""
    edited, (up, down), facts = found.edited.detach().float().cpu(), found.calls, found.facts
    files = [options.out / "edited.npy"]
    with atomic_file(files[0]) as temporary, temporary.open("wb") as stream:
        np.save(stream, edited.numpy())
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(
        options.out / "edit.json",
        {**plain, "calls up": up, "calls down": down, "seconds": seconds, **facts, "unstir": __version__},
    )
    report = Report(f"{len(edited)} edits by {options.method}").text(
        f"{options.model}, class {options.from_class or 'of the data'} → {options.to_class or options.into}; strength "
        f"{options.strength:g}, {options.nfe} rows, {up} network calls up and {down} down, guidance {options.guidance:g}, "
        f"seed {options.seed}; {seconds:.2f} s."
    )
    report.table(list(facts.items()), ["", "distance"], caption="In the units of the data.")
    if edited.ndim == 4 and edited.shape[1] in (1, 3):
        shown = {name: x[:SHOWN].detach().float().cpu() for name, x in found.shown.items()}
        sheet = labelled_rows(shown, value_range=span)
        save_png(sheet, options.out / "before-after.png")
        save_png(grid(edited, scale=1, value_range=span), options.out / "edited.png")
        report.picture(sheet, found.caption)
        files += [options.out / "edited.png", options.out / "before-after.png"]
    report.save(options.out / "report.html")
    show.say(
        f"{len(edited)} edits with {options.method}, {up} calls up and {down} down, seed {options.seed}: "
        f"{seconds:.2f} s; moved by {facts['moved, RMS']:.3g} (RMS)"
    )
    show.say(found.told)
    show.wrote(*files, options.out / "edit.json", options.out / "report.html")
