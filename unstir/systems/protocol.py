"""What a system's `reproduce` returns, and how one is run: claims are measured numbers beside their thresholds."""

from __future__ import annotations

import difflib
import importlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__
from .._files import read_json, write_json
from .index import SYSTEMS, System


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper in miniature: `measured` must be ≤ or ≥ `threshold`. NaN never holds."""

    text: str
    measured: float
    sense: Literal["<=", ">="]
    threshold: float

    @property
    def held(self) -> bool:
        """Did the measurement confirm the sentence?"""
        return self.measured <= self.threshold if self.sense == "<=" else self.measured >= self.threshold


def at_most(text: str, measured: Any, threshold: Any) -> Claim:
    """The claim that `measured` ≤ `threshold`; the threshold is often the baseline of the same run."""
    return Claim(text, float(measured), "<=", float(threshold))


def at_least(text: str, measured: Any, threshold: Any) -> Claim:
    """The claim that `measured` ≥ `threshold`."""
    return Claim(text, float(measured), ">=", float(threshold))


@dataclass(frozen=True)
class Result:
    """What a run of a system found. figures: any further numbers, texts, lists and dicts of them."""

    claims: Sequence[Claim]
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.claims:
            raise ValueError("claims is empty; a result needs at least one measured claim")

    @property
    def held(self) -> bool:
        """Do all claims hold?"""
        return all(claim.held for claim in self.claims)


def find(name: str) -> System:
    """The system with this id; ValueError lists the close ones."""
    key = name.lower().replace("_", "-")
    if key in SYSTEMS:
        return SYSTEMS[key]
    close = difflib.get_close_matches(key, SYSTEMS, 3, 0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`unstir systems` lists all"
    raise ValueError(f"unknown system {name!r}; {hint}")


def reproduce(name: str, out: str | Path = "out", *, device: str = "cpu", large: bool = False) -> Result:
    """Runs a system in the folder `out`/<id>, where it leaves its pictures, and writes `result.json` there.

    An earlier result is removed first, so that a run which fails leaves none.
    """
    system = find(name)
    run = importlib.import_module(system.module).reproduce
    folder = Path(out) / system.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    started = time.perf_counter()
    result = run(folder, device, large)
    write_json(folder / "result.json", record(system, result, time.perf_counter() - started, device, large))
    return result


def summary(out: str | Path = "out") -> str:
    """The table of all systems as Markdown, from the `result.json` files of their last runs in `out`.

    A row shows every claim with what was measured; a claim that did not hold is marked, and so is a
    system that was not run.
    """
    lines = [
        "# Systems",
        "",
        "Written by `unstir systems --write docs/systems.md` from the results of `unstir reproduce ID`. Every claim is a",
        "sentence of the paper in miniature: what was measured, and what it had to be, baselines measured in the same run.",
        "",
        "| system | paper | holds | claims | seconds |",
        "|---|---|---|---|---|",
    ]
    for system in SYSTEMS.values():
        file = Path(out) / system.id / "result.json"
        if not file.is_file():
            lines.append(f"| `{system.id}` | {system.paper} | not run | | |")
            continue
        found = read_json(file)
        claims = "<br>".join(_sentence(claim) for claim in found["claims"])
        held = "yes" if found["held"] else "**no**"
        lines.append(f"| `{system.id}` | {system.paper} | {held} | {claims} | {found['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _sentence(claim: Mapping[str, Any]) -> str:
    relation = "≤" if claim["sense"] == "<=" else "≥"
    text = f"{claim['text']}: {_short(claim['measured'])} {relation} {_short(claim['threshold'])}"
    return text if claim["held"] else f"✗ {text}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | int) else str(value)


def record(system: System, result: Result, seconds: float, device: str, large: bool) -> dict[str, Any]:
    """result.json as data."""
    return {
        "id": system.id,
        "title": system.title,
        "paper": system.paper,
        "held": result.held,
        "claims": [
            {"text": c.text, "measured": plain(c.measured), "sense": c.sense, "threshold": plain(c.threshold), "held": c.held}
            for c in result.claims
        ],
        "figures": plain(dict(result.figures)),
        "device": device,
        "large": large,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "unstir": __version__,
    }


def plain(value: Any) -> Any:
    """`value` as JSON has it: tensors and arrays as lists, numbers that are not finite as texts ("nan", "inf")."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    number = float(value)
    return number if math.isfinite(number) else str(number)
