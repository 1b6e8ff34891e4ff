"""`unstir reproduce`: run one system and say whether its claims held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import systems
from ..train.config import device_of
from . import FAILED, OK, show


@dataclass(frozen=True)
class Options:
    """Run a system on real data beside its baseline; exit code 0 when its claims held, 1 when one did not.

    unstir reproduce ID --device cuda --large
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """A system's id; `unstir systems` lists them."""
    device: str = "cpu"
    """cpu, cuda, …; auto takes CUDA if there is one."""
    large: bool = False
    """The larger version of the experiment."""
    out: Path = Path("out")
    """The run writes into a folder named by the id in this one."""


def run(options: Options) -> int:
    """Carries out `unstir reproduce`."""
    system = systems.find(options.id)
    device = str(device_of(options.device))
    show.say(f"{system.id}: {system.title} ({system.paper})")
    result = systems.reproduce(system.id, options.out, device=device, large=options.large)
    rows = [(c.text, f"{c.measured:.4g}", f"{c.sense} {c.threshold:.4g}", "yes" if c.held else "NO") for c in result.claims]
    show.table(rows, ("claim", "measured>", "needed>", "held"))
    show.wrote(*sorted(path for path in (options.out / system.id).rglob("*") if path.is_file()))
    show.say("the claims held" if result.held else "not all claims held")
    return OK if result.held else FAILED
