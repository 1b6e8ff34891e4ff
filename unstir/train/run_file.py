"""A run's options as a file: `run.yaml` beside its log, and what `unstir train --config` reads.

Every line is `option: value` with the option's documentation above it; the values are JSON, which is YAML, so that writing
needs no library. Reading takes any YAML or JSON with options of `TrainConfig`, checked one by one.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from .._files import write_text
from .config import TrainConfig

NAME = "run.yaml"
_ONCE = ("resume", "override", "config")  # belong to one call of the command, not to the run


def documented(record: type = TrainConfig) -> dict[str, str]:
    """{option: its documentation}, the strings below the fields of the class; empty where the source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(record)))
    except (OSError, TypeError):
        return {}
    found, name = {}, ""
    for node in tree.body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name], name = inspect.cleandoc(str(node.value.value)), ""
    return found


def write(config: TrainConfig, path: str | Path) -> None:
    """Writes every option of a run that is not of one call only, atomically."""
    about, lines = documented(), ["# Written by unstir train; `unstir train --config run.yaml` starts such a run again.", ""]
    for name, value in config.spec().items():
        if name not in _ONCE:
            lines += [f"# {line}" for line in textwrap.wrap(about.get(name, ""), 118)]
            lines.append(f"{name}: {_written(value)}")
    write_text(path, "\n".join(lines) + "\n")


def _written(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # YAML 1.1 takes 1e-05 for a word: a number needs a point.
    return text.replace("e", ".0e", 1) if isinstance(value, float) and "e" in text and "." not in text else text


def read(path: str | Path, record: type = TrainConfig) -> dict[str, Any]:
    """{option: value} of a YAML or JSON file, with values of the types that the record (of a command) wants.

    Raises ValueError, in one line, for a missing or unreadable file, an unknown option (naming the closest right one), or a
    value of the wrong type; ImportError without PyYAML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"config={str(path)!r} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config={str(path)!r} cannot be read: {' '.join(str(error).split())}") from None
    try:
        import yaml
    except ImportError:
        raise ImportError("reading a configuration needs PyYAML: pip install 'unstir[cli]'") from None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {'nothing' if found is None else type(found).__name__}; give lines of option: value")
    hints = typing.get_type_hints(record)
    values = {}
    for given, value in found.items():
        name = str(given).replace("-", "_")
        if name not in hints:
            raise ValueError(f"{path} has the unknown option {given!r}{_hint(name, record)}")
        if name in _ONCE:
            raise ValueError(f"{path}: {name} belongs on the command line (--{name}), not into a file")
        values[name] = _typed(value, hints[name], f"{path}: {name}")
    return values


def _hint(name: str, record: type) -> str:
    """The closest option, by its letters or else by the words of its documentation."""
    names = [f.name for f in fields(record) if f.name not in _ONCE]
    close = difflib.get_close_matches(name, names, 1, 0.65)
    words = name.lower().replace("_", " ").rstrip("s")
    about = [n for n, text in (documented() | documented(record)).items() if words in text.lower() and n in names]
    if close or about:
        return f"; did you mean {(close or about)[0]}?"
    return f"; known are {', '.join(names)}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _typed(value, next(kind for kind in inside if kind is not type(None)), where)
    if origin is Literal:
        if value not in inside:
            raise ValueError(f"{where} is {value!r}; one of {', '.join(map(str, inside))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [] if value is None else [value]
        return tuple(_typed(item, inside[0], where) for item in items)
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)  # also of "1e-3", which YAML takes for a word
        except (TypeError, ValueError):
            number = None
        if number is not None and (hint is float or number == int(number)):
            return hint(number)
    if hint in (str, Path) and isinstance(value, str | int | float) and not isinstance(value, bool):
        return hint(str(value))
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "a text")
    raise ValueError(f"{where} is {value!r}; {wanted} was expected")


def changes(before: Mapping[str, Any], config: TrainConfig) -> Sequence[tuple[str, Any, Any]]:
    """(option, before, now) for every option that the numbers of a run depend on and that differs.

    before: as `read` gives it; options that it lacks had their default.
    """
    then = TrainConfig(**before).identity()
    return [(name, then[name], value) for name, value in config.identity().items() if then[name] != value]
