"""A plan as text: the printed table (80 columns), JSON with a format version, the fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import read_json, write_text
from ..process import from_spec
from .plan import Plan
from .row import Row

FORMAT, VERSION = "unstir-plan", 1
_LETTERS = ("a", "c", "p", "q", "s", "e")
_DEFAULTS = {"c": 0.0, "p": 0.0, "q": 1.0, "s": 0.0, "e": 0.0, "evaluate": True, "boundary": True}


def table(plan: Plan, width: int = 80) -> str:
    """The table in at most `width` columns; lags that do not fit are summed up in the last one."""
    lags = sorted({lag for row in plan.rows for lag in row.b})
    extra = used_letters(plan)
    # Row number, t, λ, a, c and the flags take 4 + 4·9 + 4 columns, the note on hidden lags 9.
    room = (width - 44 - 9) // 9
    extra = extra[: max(0, room - min(2, len(lags)))]
    shown = lags[: max(1, room - len(extra))]
    hidden = len(lags) - len(shown)
    heads = ["t", "λ", *extra, "a", *[f"b{lag}" for lag in shown], "c"]
    lines = [
        f"{plan.name}: {len(plan)} calls, order {plan.order if plan.order is not None else '?'}, "
        f"{'stochastic' if plan.stochastic else 'deterministic'}, {len(plan.rows)} rows",
        f"{plan.process!r}"[:width],
        *_warning(plan),
        "row " + "".join(f"{h:>9}" for h in heads) + (f"  +{hidden} lags" if hidden else ""),
    ]
    for i, row in enumerate(plan.rows):
        lam = plan.process.logsnr(row.t) if row.evaluate else None
        cells = [_number(row.t), _number(float(lam) if lam is not None and lam.ndim == 0 else lam)]
        cells += [_number(getattr(row, k)) for k in extra]
        cells += [_number(row.a), *[_number(row.b[lag]) if lag in row.b else "·" for lag in shown], _number(row.c)]
        flags = ("" if row.boundary else " s") + ("" if row.evaluate else " n")
        lines.append(f"{i + plan.offset:>3} " + "".join(f"{c:>9}" for c in cells) + flags)
    lines.append(
        f"end {_number(plan.end):>8}  s: leads to an inner stage, n: no call"
        if _flagged(plan)
        else f"end {_number(plan.end):>8}"
    )
    return "\n".join(lines)


def _warning(plan: Plan) -> list[str]:
    """A line for a process that does not reach its anchor, where sampling begins with it."""
    off = getattr(plan.process, "mismatch", 0.0)
    if off <= 0.1 or plan.start != 1:
        return []
    alpha = float(plan.process.alpha(1.0))
    return [f"its start y + σz is off by {alpha:.2g} (x0 − y), {off:.2g} σ a unit: see solvers.refined"]


def used_letters(plan: Plan) -> list[str]:
    """Which of p, q, s and e the table needs: a column that is everywhere its default says nothing."""
    return [k for k in ("p", "q", "s", "e") if any(not _is(getattr(row, k), _DEFAULTS[k]) for row in plan.rows)]


def _flagged(plan: Plan) -> bool:
    return any(not row.boundary or not row.evaluate for row in plan.rows)


def _is(value: Any, default: Any) -> bool:
    return not isinstance(value, Tensor) and value == default


def _number(value: Any) -> str:
    if value is None:
        return "·"
    if isinstance(value, Tensor):
        return "tensor"
    if value == 0:
        return "0"
    text = f"{value:.4f}"
    return text if len(text) <= 8 and abs(value) >= 0.001 else f"{value:.1e}"


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-able data."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": plan.name,
        "order": plan.order,
        "nfe": len(plan),
        "offset": plan.offset,
        "keep": sorted(plan.keep),
        "fingerprint": fingerprint(plan),
        "process": plan.process.spec(),
        **_frame(plan),
        "options": _plain(dict(plan.options)),
        "rows": [_row_to_dict(row) for row in plan.rows],
    }


def _frame(plan: Plan) -> dict[str, str]:
    return {} if plan.frame == "centred" else {"frame": plan.frame}


def _row_to_dict(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {"t": _plain(row.t), "to": _plain(row.to), "a": _plain(row.a)}
    if row.b:
        out["b"] = {str(lag): _plain(weight) for lag, weight in sorted(row.b.items())}
    for key, default in _DEFAULTS.items():
        if not _is(getattr(row, key), default):
            out[key] = _plain(getattr(row, key))
    for key, value in row.kwargs.items():
        try:
            out.setdefault("kwargs", {})[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise TypeError(f"the keyword {key!r} of a row is {type(value).__name__}, which JSON cannot give back") from None
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": value.detach().to("cpu", torch.float64).tolist()}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return repr(value)  # an option of the recipe that is a function or statistics; the rows say what it did


def _entry(value: Any) -> Any:
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=torch.float64)
    return value if isinstance(value, bool) else float(value)


def from_dict(data: Any, where: str = "plan") -> Plan:
    """The plan that `to_dict` described; ValueError names what is wrong."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f'{where} is not a plan (no "format": "{FORMAT}")')
    if data.get("version") != VERSION:
        raise ValueError(f"{where} has format version {data.get('version')!r}; this unstir reads version {VERSION}")
    try:
        rows = [
            Row(
                b={int(lag): _entry(w) for lag, w in row.get("b", {}).items()},
                kwargs=dict(row.get("kwargs", {})),
                **{key: _entry(value) for key, value in row.items() if key not in ("b", "kwargs")},
            )
            for row in data["rows"]
        ]
        process = from_spec(data["process"])
        known = {key: data[key] for key in ("name", "options", "order", "offset")}
        plan = Plan(rows, process, keep=frozenset(data["keep"]), frame=data.get("frame", "centred"), **known)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from None
    if data.get("fingerprint") != fingerprint(plan):
        raise ValueError(f"{where} was altered: its fingerprint does not match its numbers")
    return plan


def fingerprint(plan: Plan) -> str:
    """First 16 hex digits of the SHA-256 of all rows and the process (not of the name or the recipe)."""
    rows = [_row_to_dict(row) for row in plan.rows]
    content = {"process": plan.process.spec(), "offset": plan.offset, "keep": sorted(plan.keep), "rows": rows, **_frame(plan)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def save(plan: Plan, path: str | Path) -> Path:
    """Write JSON atomically; returns the path."""
    write_text(path, json.dumps(to_dict(plan), indent=1, allow_nan=False) + "\n")
    return Path(path)


def load(path: str | Path) -> Plan:
    """Read a plan; ValueError for anything that is not one."""
    return from_dict(read_json(path), str(path))
