"""`unstir systems`: the table of published systems."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .._files import write_text
from ..systems import SYSTEMS, summary
from . import show


@dataclass(frozen=True)
class Options:
    """List the published systems that are built from the parts of this library."""

    json: bool = False
    """Print JSON instead of a table."""

    write: Path | None = None
    """Write the table of all claims and what was measured to this Markdown file."""

    results: Path = Path("out")
    """Folder with the results of `unstir reproduce` that --write reads."""


def run(options: Options) -> int:
    """Carries out `unstir systems`."""
    if options.json:
        print(json.dumps([asdict(s) | {"module": s.module} for s in SYSTEMS.values()], indent=2, ensure_ascii=False))
        return 0
    if options.write is not None:
        write_text(options.write, summary(options.results))
        show.wrote(options.write)
        return 0
    if not SYSTEMS:
        show.say("no systems yet")
        return 0
    rows = [(s.id, s.summary, s.paper[-4:]) for s in SYSTEMS.values()]  # the year; the titles would fill the screen
    show.table(rows, ("id", "what it does", "paper"), title=f"{len(SYSTEMS)} systems")
    show.say("`unstir reproduce ID` names the paper, runs the system and measures the claim in miniature; --json has all.")
    return 0
