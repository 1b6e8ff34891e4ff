"""From words on the command line to a typed record (tyro), and the small texts that options may hold."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from ..solvers import GRIDS

T = TypeVar("T")


def parse(record: type[T], args: Sequence[str], command: str, default: T | None = None) -> T | None:
    """The options in `args`; None when `--help` was asked for. ValueError, in one line, for anything else.

    default: a record whose values stand where `args` say nothing (from a file); switches then have both forms, --x and --no-x.
    """
    try:
        import tyro
    except ImportError:
        raise ImportError("the command line needs tyro and rich: pip install 'unstir[cli]'") from None
    prog, said = f"unstir {command}", io.StringIO()
    settings = (tyro.conf.OmitSubcommandPrefixes, *([tyro.conf.FlagCreatePairsOff] if default is None else []))
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(record, prog=prog, args=list(args), config=settings, **given)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(f"{_unboxed(said.getvalue())} (see {prog} --help)") from None


def _unboxed(text: str) -> str:
    """The message inside the box that tyro draws, down to its first rule, as one line.

    The box is ╭─ title ─╮ around lines in │, or, where stdout has no UTF-8, the title and a rule above plain lines.
    """
    drawn = "╭" in text
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ \n") for line in text.splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"][0 if drawn else 2 :]
    rule = next((i for i, line in enumerate(lines) if not line.strip("─-")), len(lines))
    return " ".join(" ".join(lines[:rule]).split()).rstrip(".")


def value(text: str) -> Any:
    """An option of a solver: a whole number, a number, true or false, else the word itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def pairs(texts: Sequence[str], argument: str = "--set") -> dict[str, Any]:
    """{"eta": 1.0} of ("eta=1.0",)."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, given = text.partition("=")
        if not (equals and key.strip().isidentifier() and given.strip()):
            raise ValueError(f"{argument} {text!r} must be NAME=VALUE, for instance eta=1.0")
        if key.strip() in found:
            raise ValueError(f"{argument} gives {key.strip()} twice")
        found[key.strip()] = value(given.strip())
    return found


def grid(text: str) -> dict[str, Any]:
    """Arguments of `unstir.plan` for a grid given as "karras", "karras:5" (its one option) or "1,0.5,0" (the nodes)."""
    if "," in text:
        try:
            return {"grid": [float(node) for node in text.split(",")]}
        except ValueError:
            raise ValueError(f"--grid {text!r} must be a name ({', '.join(GRIDS)}) or times separated by commas") from None
    name, colon, number = text.partition(":")
    if not colon:
        return {"grid": text}
    option = list(inspect.signature(GRIDS[name]).parameters)[4:] if name in GRIDS else []
    if not option or not isinstance(value(number), int | float):
        takers = ", ".join(n for n, g in GRIDS.items() if len(inspect.signature(g).parameters) > 4)
        raise ValueError(f"--grid {text!r}: a number after the colon is for {takers}, for instance karras:5")
    return {"grid": name, "grid_options": {option[0]: value(number)}}
