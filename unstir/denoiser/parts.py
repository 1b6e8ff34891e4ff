"""Small parts of denoisers: what networks return, what they ask for, and weighted sums of states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


def split_output(out: Any) -> tuple[Any, tuple[Any, ...]]:
    """(prediction, further outputs) of whatever a network returned."""
    if isinstance(out, Tensor):
        return out, ()
    if isinstance(out, tuple | list):
        return out[0], tuple(out[1:])
    if hasattr(out, "sample") and isinstance(out.sample, Tensor):
        return out.sample, ()
    if isinstance(out, Mapping):
        if isinstance(out.get("sample"), Tensor):
            rest = {k: v for k, v in out.items() if k != "sample"}
            return out["sample"], (rest,) if rest else ()
        return dict(out), ()
    raise TypeError(f"the network returned {type(out).__name__}; return a tensor, a tuple or an object with .sample")


def check_output(raw: Any, x: Any) -> None:
    """ValueError unless a network's output has the form of the state x, a tensor or a dict of tensors."""
    if type(x) is dict:
        if not isinstance(raw, Mapping) or raw.keys() != x.keys():
            got = ", ".join(map(str, raw)) if isinstance(raw, Mapping) else type(raw).__name__
            raise ValueError(f"the network returned {got} for a state with the leaves {', '.join(x)}; return a dict of them")
        for leaf, value in x.items():
            check_output(raw[leaf], value)
    elif isinstance(raw, Tensor) and raw.shape != x.shape:
        raise ValueError(
            f"the network returned shape {tuple(raw.shape)} for a state of shape {tuple(x.shape)}; "
            "return a tensor of the state's shape (extra outputs as further entries of a tuple)"
        )


def tree(function: Callable[..., Any], x: Any, *others: Any) -> Any:
    """`function` on every leaf of a state (or of whatever is one for each leaf): a tensor, or a dict."""
    if isinstance(x, Mapping):
        return {leaf: function(value, *(other[leaf] for other in others)) for leaf, value in x.items()}
    return function(x, *others)


def nested(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`function` on every tensor in tuples, lists and dicts, at any depth; anything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(nested(function, part) for part in value)
    return {key: nested(function, part) for key, part in value.items()} if isinstance(value, dict) else value


def combine(terms: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """Σ w · x over (w, x) pairs with weights that are numbers or broadcasting tensors.

    Weights 0 are skipped and a weight 1 is not multiplied, so that a row which returns its
    prediction returns it exactly. What is given is never changed; a sum of its own grows in place,
    unless autograd is watching.
    """
    total: Tensor | None = None
    free = not torch.is_grad_enabled()
    own = False  # is `total` ours to change?
    for weight, x in terms:
        if type(weight) is not float:
            return _combine_tensors(terms)
        if own:
            total.add_(x, alpha=weight)  # type: ignore[union-attr]
        elif weight == 0.0:
            continue
        elif total is not None:
            total, own = torch.add(total, x, alpha=weight), free
        elif weight == 1.0:
            total = x
        else:
            total, own = x * weight, free
    return torch.zeros_like(terms[0][1]) if total is None else total


def _combine_tensors(terms: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """`combine` where weights may be tensors or any numbers; never in place."""
    total: Tensor | None = None
    for weight, x in terms:
        if isinstance(weight, Tensor):
            w = weight.to(x)
            total = x * w if total is None else torch.addcmul(total, x, w)
        elif float(weight) != 0:
            part = x if float(weight) == 1 else x * float(weight)
            total = part if total is None else total + part
    return torch.zeros_like(terms[0][1]) if total is None else total


def accepts(function: Callable[..., Any], name: str, any_keyword: bool = False) -> bool:
    """Does a network or transform ask for the keyword `name` by naming it in its signature (or, any_keyword, by **)?"""
    if isinstance(function, nn.Module):
        return _names(type(function).forward, name, any_keyword)
    try:
        return _names(function, name, any_keyword)
    except TypeError:  # not hashable
        return False


@lru_cache(maxsize=1024)
def _names(function: Callable[..., Any], name: str, any_keyword: bool = False) -> bool:
    try:
        known = inspect.signature(function).parameters
        return name in known or (any_keyword and any(p.kind is p.VAR_KEYWORD for p in known.values()))
    except (TypeError, ValueError):
        return False
