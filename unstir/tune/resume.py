"""A fit as a JSON file, so that an interrupted `learn` goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import read_json, write_json
from ..plan.plan import Plan
from ..process import Process, from_spec
from .fit import Fit
from .table import Table
from .teacher import Source

FORMAT, VERSION = "unstir-fit", 2
_NUMBERS = ("damping", "best_error", "done", "waited", "stage", "hard")
_TENSORS = ("lam", "shift", "mix", "gain")


def signature(source: Source, teacher: Plan, base: Plan, *facts: Any) -> str:
    """Names all that a fit depends on; a file of another signature is not gone on from."""
    text = json.dumps([source.signature(teacher), base.fingerprint(), *facts], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save_fit(file: Path | None, fit: Fit) -> None:
    """Writes where the fit stands, atomically; nothing without a file."""
    if file is not None:
        best = None if fit.best is None else _table(fit.best)
        now = {"table": _table(fit.table), "best": best, "origin": fit.origin.tolist()}
        numbers = {k: getattr(fit, k) for k in _NUMBERS}
        write_json(file, {"format": FORMAT, "version": VERSION, **now, **numbers})


def load_fit(file: Path | None, process: Process) -> Fit | None:
    """The fit in the file; None if there is none. ValueError if it is damaged or of another process."""
    if file is None or not file.exists():
        return None
    data = read_json(file)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ValueError(f"{file} is no fit of this unstir; remove it")
    try:
        table, best = (None if data[k] is None else _read(data[k]) for k in ("table", "best"))
        numbers = {k: data[k] for k in _NUMBERS}
        numbers["hard"] = tuple(data["hard"])
        fit = Fit(table, torch.tensor(data["origin"], dtype=torch.float64), best=best, **numbers)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it") from None
    if fit.table.process != process:
        raise ValueError(f"{file} is a fit on {fit.table.process!r}, not {process!r}; remove it")
    return fit


def _table(table: Table) -> dict[str, Any]:
    constant = table.constant.tolist() if isinstance(table.constant, Tensor) else table.constant
    plain = {k: getattr(table, k) for k in ("start", "end", "lags", "free", "shifts")}
    return {"process": table.process.spec(), "constant": constant, **{k: getattr(table, k).tolist() for k in _TENSORS}, **plain}


def _read(data: dict[str, Any]) -> Table:
    given = dict(data)
    tensors = {k: torch.tensor(given.pop(k), dtype=torch.float64) for k in _TENSORS}
    constant = given.pop("constant")
    constant = torch.tensor(constant, dtype=torch.float64) if isinstance(constant, list) else constant
    return Table(process=from_spec(given.pop("process")), constant=constant, **tensors, **given)
