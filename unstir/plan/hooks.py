"""What hooks and transforms see of a running plan, and how a changed prediction is carried.

A hook is a callable hook(ctx, x) -> x or None, run between rows, or an object with any of

    start(ctx)             once, before the first row (ctx.x is the start state)
    on_mean(ctx, mean)     on the mean of the row, before its noise is added
    on_row(ctx, x)         on the new state
    index(perm)            the samples were permuted or resampled: permute your own state too

Returning None leaves the state as it is. A hook's state lives for one run: make it in `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._calls import Calls
from ..denoiser.denoiser import combine
from ..denoiser.inner import Steered  # noqa: F401  (what a transform may return)

CARRIES = ("data", "noise", "velocity")


def carried(data: Any, base: Any, carry: str, row: Any, alpha: Any) -> tuple[Any, Any]:
    """(D for this row, D to remember): D'' = D + (shift/B_i)(D' − D); history keeps D' (D for "velocity").

    data is D', base is D; alpha is α_{i+1}, a number or shaped to broadcast; dicts go leaf by leaf.
    """
    if carry not in CARRIES:
        raise ValueError(f"carry={carry!r} is unknown; one of {', '.join(CARRIES)}")
    if carry == "data":
        return data, data
    if isinstance(data, dict):
        each = {k: carried(data[k], base[k], carry, row.leaf(k), alpha[k]) for k in data}
        return {k: now for k, (now, _) in each.items()}, {k: keep for k, (_, keep) in each.items()}
    gain = row.gain
    if isinstance(gain, float) and gain == 0:
        raise ValueError(f"carry={carry!r} needs a row that uses its own prediction; this one has B_i = 0")
    shift = alpha if carry == "noise" else 1.0
    now = combine(((1.0, base), (shift / gain, data - base)))
    return now, (base if carry == "velocity" else data)


@dataclass
class Context:
    """The row context, handed to hooks and to every denoiser that asks for it (keyword `ctx`).

    index: row number; t, to: times of X_i and X_{i+1}; x: X_i; data: D_i (None before the call);
    mean, std: mean M and noise level c_i of the row (None before they exist).
    """

    plan: Any
    row: Any
    index: int
    first: bool
    last: bool
    x: Any
    data: Any = None
    mean: Any = None
    branch: str = "conditional"
    run: Any = None

    @property
    def t(self) -> Any:
        return self.row.t

    @property
    def to(self) -> Any:
        return self.row.to

    @property
    def std(self) -> Any:
        return self.row.c

    @property
    def boundary(self) -> bool:
        """Is X_{i+1} a genuine solution value, which hooks may edit?"""
        return self.row.boundary

    @property
    def jump(self) -> bool:
        """Does this row go up in noise (restart, time travel)?"""
        to, t = (torch.as_tensor(time, dtype=torch.float64) for time in (self.row.to, self.row.t))
        return bool((to > t).any())

    @property
    def history(self) -> Mapping[int, Any]:
        """F of earlier rows, by row number."""
        return self.run.history

    @property
    def calls(self) -> Calls:
        """Network calls so far."""
        return self.run.calls

    def give(self, **aux: Any) -> None:
        """Hand out what a denoiser found beside D, by name: `Step.aux` and `State.aux` hold that of the last evaluation.

        Of a guided evaluation only the conditional branch is kept.
        """
        if self.branch == "conditional":
            self.run.aux = {**self.run.aux, **aux}

    @contextmanager
    def within(self, branch: str) -> Iterator[None]:
        """Names the branch of the evaluations inside: what is remembered there belongs to it, and aux only to "conditional".

        Guidance inside guidance has branches of its own: "unconditional/conditional" is the inner one's of the outer's.
        """
        outer = self.branch
        self.branch = branch if outer == "conditional" else f"{outer}/{branch}"
        try:
            yield
        finally:
            self.branch = outer

    def reset_history(self) -> None:
        """Forget F of earlier rows (after an edit that makes them misleading); their weight falls on F_i."""
        self.run.forget()

    def permute(self, perm: Tensor) -> None:
        """Resample particles: permutes the history and the state of every hook.

        The hook that calls it returns x[perm] itself. Noise streams belong to the place in the
        batch, not to the particle, so copies separate again and seeds stay reproducible.
        """
        self.run.permute(perm)


Hook = Any


def call_hooks(hooks: tuple[Hook, ...], place: str, ctx: Context, x: Any) -> Any:
    """Run every hook that listens at `place` ("on_mean" or "on_row") in order; each sees the last one's x."""
    for hook in hooks:
        listen: Callable[..., Any] | None = getattr(hook, place, None)
        if listen is None and place == "on_row" and callable(hook) and not hasattr(hook, "on_mean"):
            listen = hook
        changed = listen(ctx, x) if listen is not None else None
        if changed is not None:
            if not ctx.boundary:
                raise ValueError(
                    f"row {ctx.index} leads to an inner stage, not to a solution value; edit x only where ctx.boundary is True"
                )
            x = changed
    return x
