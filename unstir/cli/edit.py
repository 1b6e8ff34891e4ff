"""`unstir edit`: pictures of one class, or of one model, as pictures of another, and what the way there and back lost."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from . import measure, show
from .parse import pairs

SHOWN = 10  # pictures on the sheet


@dataclass(frozen=True)
class Options:
    """Turn pictures of one class into pictures of another, keeping what the two have in common.

    unstir edit digits --index 3 13 23 --from-class 3 --to-class 8 --method obelm
    unstir edit MODEL photo.png --from-class cat --to-class dog --strength 0.5

    Methods: sdedit stirs the picture and draws the rest anew; ddim, bdia, obelm and edict go up into noise by a way that
    can be gone back (all but ddim without error); cyclediffusion keeps the noises of a stochastic plan.
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
    """sdedit, ddim, bdia, obelm, edict or cyclediffusion."""
    strength: float = 0.6
    """How far up into noise, in [0.05, 1]: low keeps the picture, high follows the class."""
    nfe: int = 40
    """Rows of the plan; a method makes one or two network calls a row, each way."""
    guidance: float = 1.0
    """Scale of classifier-free guidance on the way down; 1 is none."""
    set: tuple[str, ...] = ()
    """Options of the method or its solver, NAME=VALUE, for instance eta=0.5 or gamma=0.96."""
    n: int = 1
    """Edits of each picture, by the methods that draw noise."""
    seed: int = 0
    """An edit is a function of the seed, the picture and its place."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    out: Path = Path("out/edit")
    """Folder for edited.npy, edited.png, before-after.png, edit.json and report.html."""

    def __post_init__(self) -> None:
        if self.method not in steer.EDITS:
            raise ValueError(f"--method {self.method!r} is unknown; one of {', '.join(steer.EDITS)}")
        if (self.image is None) == (not self.index):
            raise ValueError("give either IMAGE, a file, or --index, numbers of bundled pictures")
        if self.n < 1:
            raise ValueError(f"--n {self.n} must be at least 1, the edits of each picture")
        if self.n > 1 and self.method not in ("sdedit", "cyclediffusion"):
            raise ValueError(f"--n {self.n}: {self.method} draws no noise, so its edits are all alike; use --n 1")
        if self.to_class is None and self.into is None:
            raise ValueError("say what the pictures are to become: --to-class CLASS, or --into MODEL")


def run(options: Options) -> int:
    """Carries out `unstir edit`."""
    model = measure.load(options.model, options.device)
    into = model if options.into is None else measure.load(options.into, options.device)
    if into.shape != model.shape or into.process != model.process:
        raise ValueError(
            f"--into {options.into} makes {into.shape} on {into.process!r}; MODEL {model.shape} on {model.process!r}"
        )
    x0, known = _pictures(options, model)
    span = tuple(model.meta.get("range", (-1.0, 1.0)))
    x0 = x0.repeat_interleave(options.n, 0).to(next(model.parameters()))
    # Of a picture that is not given by --index the class has to be told.
    source = _condition(model, options.from_class, known, options.n, len(x0), "--from-class")
    target = _condition(into, options.to_class, None, options.n, len(x0), "--to-class")
    if options.method in ("bdia", "obelm", "edict"):  # what is undone is undone to rounding
        model, into, x0 = model.double(), into.double(), x0.double()
    down = into if options.guidance == 1 else steer.cfg(into, options.guidance)
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
    x0, edited, back = (x.detach().float().cpu() for x in (x0, edited, back))
    _write(options, x0, edited, back, span, facts, (up, along * (2 if options.guidance != 1 else 1)), seconds)
    return 0


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


def _write(
    options: Options, x0: Tensor, edited: Tensor, back: Tensor, span: Any, facts: dict[str, float],
    calls: tuple[int, int], seconds: float,
) -> None:  # fmt: skip
    """The files, and what is said on the terminal."""
    files = [options.out / "edited.npy"]
    with atomic_file(files[0]) as temporary, temporary.open("wb") as stream:
        np.save(stream, edited.numpy())
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(
        options.out / "edit.json",
        {**plain, "calls up": calls[0], "calls down": calls[1], "seconds": seconds, **facts, "unstir": __version__},
    )
    report = Report(f"{len(edited)} edits by {options.method}").text(
        f"{options.model}, class {options.from_class or 'of the data'} → {options.to_class or options.into}; strength "
        f"{options.strength:g}, {options.nfe} rows, {calls[0]} network calls up and {calls[1]} down, guidance "
        f"{options.guidance:g}, seed {options.seed}; {seconds:.2f} s."
    )
    report.table(list(facts.items()), ["", "distance"], caption="In the units of the data. Round trip: back to the own class.")
    if x0.ndim == 4 and x0.shape[1] in (1, 3):
        sheet = labelled_rows({"before": x0[:SHOWN], "after": edited[:SHOWN], "round trip": back[:SHOWN]}, value_range=span)
        save_png(sheet, options.out / "before-after.png")
        save_png(grid(edited, scale=1, value_range=span), options.out / "edited.png")
        report.picture(sheet, "Above what was given, in the middle the edit, below the way up and back without an edit.")
        files += [options.out / "edited.png", options.out / "before-after.png"]
    report.save(options.out / "report.html")
    show.say(
        f"{len(edited)} edits with {options.method}, {calls[0]} calls up and {calls[1]} down, seed {options.seed}: "
        f"{seconds:.2f} s; moved by {facts['moved, RMS']:.3g} (RMS)"
    )
    show.say(
        f"round trip to the own class: RMS error {facts['round trip, RMS']:.2g}, largest {facts['round trip, largest']:.2g}"
    )
    show.wrote(*files, options.out / "edit.json", options.out / "report.html")
