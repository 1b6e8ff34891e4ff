"""Counting network calls: forward and backward apart, nested ones included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Calls:
    """Network calls of one run. `rows` is how many the plan itself asked for; the rest are nested."""

    forward: int = 0
    backward: int = 0
    rows: int = 0

    @property
    def nested(self) -> int:
        """Forward calls beyond one per evaluating row (guidance branches, inner loops)."""
        return self.forward - self.rows


_active: ContextVar[Calls | None] = ContextVar("unstir_calls", default=None)


@contextmanager
def counting(calls: Calls) -> Iterator[Calls]:
    """Adds every `Denoiser` call made inside the block, in this thread, to `calls`."""
    token = _active.set(calls)
    try:
        yield calls
    finally:
        _active.reset(token)


def count_calls() -> AbstractContextManager[Calls]:
    """`with count_calls() as calls:` counts every `Denoiser` call made outside a run of the executor.

    A run has a counter of its own: `unstir.sample(..., full=True).calls`.
    """
    return counting(Calls())


def count_call(raw: Any) -> None:
    """Registers one forward call with the active counter, and its backward call when it happens."""
    calls = _active.get()
    if calls is None:
        return
    calls.forward += 1
    if torch.is_grad_enabled() and isinstance(raw, Tensor) and raw.requires_grad:

        def backward(grad: Tensor) -> None:
            calls.backward += 1

        raw.register_hook(backward)
