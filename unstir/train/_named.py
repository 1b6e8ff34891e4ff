"""Parts chosen by a short text, `name` or `name:1,2`: the numbers are the part's parameters in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import TypeVar

Part = TypeVar("Part")


def named(argument: str, text: str, table: Mapping[str, Callable[..., Part]]) -> Part:
    """table[name](*numbers) for text "name:number,number"; ValueError names what is known."""
    name, _, tail = text.partition(":")
    if name not in table:
        raise ValueError(f"{argument}={text!r} is unknown; one of {', '.join(table)}")
    options = list(signature(table[name]).parameters)
    try:
        numbers = [float(n) for n in tail.split(",")] if tail else []
    except ValueError:
        raise ValueError(f"{argument}={text!r}: {tail!r} must be numbers separated by commas") from None
    if len(numbers) > len(options):
        raise ValueError(f"{argument}={text!r} has {len(numbers)} numbers; {name} takes {len(options)} ({', '.join(options)})")
    return table[name](*numbers)
