"""`unstir plan`: list the solvers, or print, save and draw the table of one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import Tensor

from .. import process, solvers
from .._files import atomic_file
from ..plan import Plan, Row
from ..plan.text import used_letters
from . import parse, show

PROCESSES = {"vp": process.VP, "cosine": process.Cosine, "subvp": process.SubVP, "ve": process.VE, "edm": process.EDM}
PROCESSES["flow"] = process.Flow
PEERS = ("a1111", "comfyui", "k-diffusion", "diffusers")  # the shortest names first


@dataclass(frozen=True)
class Options:
    """Print the table of numbers that a solver is; without a name, list the solvers.

    unstir plan dpmpp-3m --nfe 8 --process flow --save plan.json
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = "list"
    """A solver's name, or "list"."""
    process: Literal["vp", "cosine", "subvp", "ve", "edm", "flow"] = "vp"
    """The forward process."""
    nfe: int = 10
    """Network calls: the rows of the table."""
    grid: str = "auto"
    """auto, a name (logsnr, karras:7, …), or times such as 1,0.6,0.2,0 (then --nfe has no effect)."""
    start: float = 1.0
    """Time to start from; 1 is pure noise."""
    end: float = 0.0
    """Time to end at; 0 is clean data."""
    set: tuple[str, ...] = ()
    """Options of the solver, for instance eta=1.0 order=2."""
    save: Path | None = None
    """Write the plan as JSON, for `unstir sample --plan`."""
    picture: Path | None = None
    """Draw the table as a .png or .svg."""


def run(options: Options) -> int:
    """Carries out `unstir plan`."""
    if options.name == "list":
        _list()
        return 0
    given = parse.grid(options.grid)
    explicit = isinstance(given["grid"], list)
    entry = solvers.find(solvers.split_name(options.name)[0])
    plan = solvers.plan(
        options.name,
        PROCESSES[options.process](),
        nfe=None if explicit else options.nfe,
        start=options.start,
        end=options.end,
        **given,
        **_settings(entry, options.set),
    )
    drawing = None if options.picture is None else draw(plan, options.picture)
    print(plan)
    show.say("")
    show.say(f"paper        {entry.paper}")
    for peer, name in entry.peers.items():
        show.say(f"{peer:<12} {name}")
    show.say(f"fingerprint  {plan.fingerprint()}")
    if options.save is not None:
        show.wrote(plan.save(options.save))
    if options.picture is not None and drawing is not None:
        with atomic_file(options.picture) as temporary:
            temporary.write_bytes(drawing)
        show.wrote(options.picture)
    return 0


def _settings(entry: solvers.Solver, texts: tuple[str, ...]) -> dict[str, Any]:
    """The options in `--set`; ValueError where the solver wants a number and got a word."""
    settings, known = parse.pairs(texts), inspect.signature(entry.compile).parameters
    for name, value in settings.items():
        usual = entry.options.get(name, known[name].default if name in known else None)
        if isinstance(usual, int | float) and isinstance(value, str):
            raise ValueError(f"--set {name}={value}: {name} must be a number, for instance {name}={usual}")
    return settings


def draw(plan: Plan, path: Path) -> bytes:
    """The plan's table as the bytes of a picture, of the kind that `path` ends in."""
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"--picture {str(path)!r} must end in .png or .svg")
    return picture(plan, kind)


def picture(plan: Plan, kind: str = "svg") -> bytes:
    """The plan's table as a picture; columns that are everywhere their default are left out."""
    from ..evaluate import plan_plot

    lags = sorted({lag for row in plan.rows for lag in row.b})
    columns = [*used_letters(plan), "a", *(f"b{lag}" for lag in lags), "c"]
    numbers = [[_entry(row, c) for c in columns] for row in plan.rows]
    lam = [float(plan.process.logsnr(row.t).float().mean()) for row in plan.rows]  # of per-sample times, the middle
    return plan_plot(lam, numbers, columns, title=f"{plan.name}, {len(plan)} calls", format=kind)


def _entry(row: Row, column: str) -> float | None:
    value: Any = row.b.get(int(column[1:])) if column[0] == "b" else getattr(row, column)
    return None if isinstance(value, Tensor) else value


def _list() -> None:
    rows = []
    for name, entry in solvers.SOLVERS.items():
        noisy = solvers.plan(name, process.VP(), nfe=4).stochastic
        known = next((entry.peers[peer] for peer in PEERS if peer in entry.peers), "")
        rows.append((name, f"{entry.order:g}", "yes" if noisy else "no", known))
    show.table(rows, ("solver", "order>", "noise", "known elsewhere as"), title=f"{len(rows)} solvers")
    show.say("`unstir plan NAME` prints a table, its paper and all other names; the names of peers are understood too.")
