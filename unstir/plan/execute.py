"""The one executor: every plan, every denoiser, every kind of state runs through `steps`.

It is a generator: nothing is hidden, and a user may stop, look or drive it. `sample` exhausts it.
Coefficients are float64 on the CPU and applied in the state's dtype (float32 for half types).
Nothing is updated in place, so with grad=True it is differentiable in states and coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._calls import Calls, counting
from .._random import PRIOR, draw, mix, sample_keys
from ..denoiser.denoiser import accepts, combine
from ..process.base import expand
from .hooks import Context, Hook, Steered, call_hooks, carried
from .plan import JointPlan, Plan

Noise = Callable[[int], Any] | Mapping[int, Any]
HALF = (torch.float16, torch.bfloat16)


@dataclass
class State:
    """All there is of a run between two rows: pass it as `x` to go on with the tail of a split plan.

    x is centred (x − βy) where the process is anchored; history is {row number: F}; keys are the
    random keys of the samples.
    """

    x: Any
    keys: list[int]
    history: dict[int, Any] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)
    hooks: tuple[Hook, ...] = ()
    marks: list[tuple[int, Any, Tensor]] = field(default_factory=list)

    def forget(self) -> None:
        """Let every remembered F be the newest one: the next rows act as if the past had been constant."""
        if self.history:
            self.history = dict.fromkeys(self.history, self.history[max(self.history)])

    def permute(self, perm: Tensor) -> None:
        """Reorder the samples of the history and of every hook with an `index` method."""
        self.history = {i: tree_map(lambda f: f[perm], value) for i, value in self.history.items()}
        for hook in self.hooks:
            if hasattr(hook, "index"):
                hook.index(perm)

    def check(self) -> None:
        """Raise `NonFiniteError` naming the first row whose state was not finite (one wait for the device)."""
        if self.marks:
            finite = torch.isfinite(torch.stack([mark.detach() for _, _, mark in self.marks]))
            if not bool(finite.all()):
                number, t, _ = self.marks[int((~finite).nonzero()[0])]
                raise NonFiniteError(number, t)
        self.marks.clear()


@dataclass
class Step:
    """What `steps` yields after a row. data: D predicted at time t; x: the state at time `to` that the row led to."""

    index: int
    t: Any
    to: Any
    x: Any
    data: Any
    row: Any
    state: State


class NonFiniteError(ValueError):
    """A state contains NaN or infinity; `row` is the row in which it appeared first."""

    def __init__(self, row: int, t: Any) -> None:
        self.row = row
        super().__init__(
            f"the state became non-finite in row {row} (t = {t}): the network returned NaN or infinity there, "
            "or the plan is unstable for this model; try more steps, a lower order or a smaller guidance scale"
        )


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` on every leaf of a state: a tensor, or a dict of tensors."""
    if isinstance(tree, dict):
        return {key: tree_map(function, leaf, *(other[key] for other in others)) for key, leaf in tree.items()}
    return function(tree, *others)


def steps(
    model: Any,
    plan: Any,
    x: Any = None,
    *,
    shape: Any = None,
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    hooks: Sequence[Hook] | Hook = (),
    anchor: Tensor | None = None,
    noise: Noise | None = None,
    grad: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    **cond: Any,
) -> Iterator[Step]:
    """Run a plan row by row; see `unstir.sample` for the arguments. Yields a `Step` after every row.

    With grad=False the rows run without autograd, whatever the caller does between them.
    A state that is not finite raises `NonFiniteError` when the run ends.
    """
    run, state = launch(model, plan, x, shape, seed, index, hooks, anchor, noise, dtype, device, cond)
    return _guarded(run, state, grad)


def launch(
    model: Any,
    plan: Any,
    x: Any,
    shape: Any,
    seed: Any,
    index: Any,
    hooks: Any,
    anchor: Any,
    noise: Any,
    dtype: Any,
    device: Any,
    cond: Any,
) -> tuple[Iterator[Step], State]:
    """A run that has not begun, and its state; the caller sets autograd and counts calls (`_guarded`, `sample`)."""
    plan = JointPlan(plan) if isinstance(plan, dict) else plan
    if not hasattr(plan, "generate") and not isinstance(plan, Plan | JointPlan):
        raise TypeError(
            f"plan is {type(plan).__name__}; give an unstir.Plan (see unstir.plan), a dict of plans or a row generator"
        )
    state = _begin(model, plan, x, shape, seed, index, anchor, dtype, device)
    state.hooks = tuple(hooks) if isinstance(hooks, list | tuple) else (hooks,)
    return _run(model, plan, state, anchor, noise, cond), state


def _guarded(run: Iterator[Step], state: State, grad: bool) -> Iterator[Step]:
    """The rows of `run`, each with autograd off unless wanted and its calls counted, the caller's code between them not."""
    while True:
        with nullcontext() if grad else torch.no_grad(), counting(state.calls):
            step = next(run, None)
        if step is None:
            return
        yield step


def _run(
    model: Any, plan: Any, state: State, anchor: Tensor | None, noise: Noise | None, cond: dict[str, Any]
) -> Iterator[Step]:
    static = not hasattr(plan, "generate")
    offset = plan.offset if static else 0
    release = plan.releases() if static else None
    process, anchored = plan.process, plan.process.anchored
    if anchored and getattr(model, "sees_anchor", False):
        cond = {**cond, "anchor": anchor}
    wants_ctx = accepts(model, "ctx")
    window = getattr(plan, "window", 4)  # of generated rows, whose later lags are not known
    # The state of a half-precision run is kept in float32; only the network sees the half type.
    half = state.x.dtype if isinstance(state.x, Tensor) and state.x.dtype in HALF else None
    if half is not None:
        state.x = state.x.float()
    rows: Any = plan.rows if static else plan.generate(state)
    hooks, listening = state.hooks, bool(state.hooks) or wants_ctx

    for number, row in enumerate(rows, offset):
        x, data, now, ctx = state.x, None, None, None
        if listening:
            last = static and number - offset + 1 == len(rows)
            ctx = Context(plan, row, number, number == offset, last, x, run=state)
            if ctx.first:
                for hook in hooks:
                    if hasattr(hook, "start"):
                        hook.start(ctx)
        if row.evaluate:
            state.calls.rows += 1
            seen = x if not anchored else process.uncentre(x, row.t, anchor)
            if half is not None:
                seen = seen.to(half)
            more = {**cond, **row.kwargs} if row.kwargs else cond
            data = model(seen, row.t, ctx=ctx, **more) if wants_ctx else model(seen, row.t, **more)
            if half is not None and isinstance(data, Tensor):
                data = data.float()
            keep = None
            if type(data) is Steered:
                data, keep = carried(data, row, float(process.alpha(row.to)))
            previous = state.history.get(number - 1)
            now = _line(row, x, data, previous)
            state.history[number] = now if keep is None else _line(row, x, keep, previous)
        x = _advance(row, x, state.history, now, number)
        if ctx is not None:
            ctx.data, ctx.mean = data, x
            x = call_hooks(hooks, "on_mean", ctx, x)
        if row.noisy:
            x = _add_noise(row, x, state.keys, number, noise)
        if ctx is not None:
            x = call_hooks(hooks, "on_row", ctx, x)
        state.x = x
        # One NaN or infinity makes a sum non-finite; the sums are looked at once, when the run ends.
        state.marks.append(
            (number, row.t, x.sum() if type(x) is Tensor else torch.stack([leaf.sum() for leaf in x.values()]).sum())
        )
        for i in release[number - offset] if release is not None else [i for i in state.history if i <= number - window]:
            del state.history[i]
        shown = x if half is None else x.to(half)
        yield Step(number, row.t, row.to, shown if not anchored else process.uncentre(shown, row.to, anchor), data, row, state)
    state.check()


# -- the three lines of a row, on tensors and on dicts of tensors ------------------------------------
def _line(row: Any, x: Any, data: Any, previous: Any) -> Any:
    """F_i = p X + q D + s F_{i−1}."""
    if isinstance(x, dict):
        return {k: _line(row.leaf(k), x[k], data[k], None if previous is None else previous[k]) for k in x}
    if type(row.s) is float and row.s == 0:
        return combine(((row.p, x), (row.q, data)))
    if previous is None:
        raise ValueError("a row with s ≠ 0 needs the F of the row before it; run the plan from its first row")
    return combine(((row.p, x), (row.q, data), (row.s, previous)))


def _advance(row: Any, x: Any, history: Mapping[int, Any], now: Any, number: int) -> Any:
    """a X + Σ b F + e; lag 0 is `now`, which may differ from what the history keeps (`carry`).

    A generated row without a call may find an F of its own that its generator put into the history.
    """
    if isinstance(x, dict):
        each = {k: {j: f[k] for j, f in history.items()} for k in x}
        return {k: _advance(row.leaf(k), x[k], each[k], None if now is None else now[k], number) for k in x}
    terms = [(row.a, x)]
    for lag, weight in row.b.items():
        terms.append((weight, history[number - lag] if lag or now is None else now))
    mean = combine(terms)
    return mean if type(row.e) is float and row.e == 0 else mean + (row.e.to(mean) if isinstance(row.e, Tensor) else row.e)


def _add_noise(row: Any, mean: Any, keys: list[int], number: int, noise: Noise | None) -> Any:
    """mean + c z, z drawn from the samples' own streams or supplied by the caller."""
    given = None if noise is None else noise(number) if callable(noise) else noise[number]
    if isinstance(mean, dict):
        out = {}
        for leaf, (name, m) in enumerate(mean.items()):
            z = _draw([mix(k, 1 + leaf) for k in keys], number + 1, m) if given is None else given[name]
            out[name] = combine(((1.0, m), (row.leaf(name).c, z)))
        return out
    return combine(((1.0, mean), (row.c, _draw(keys, number + 1, mean) if given is None else given)))


def _draw(keys: list[int], stream: int, like: Tensor) -> Tensor:
    return draw(keys, like.shape[1:], stream, like.dtype, like.device)


# -- the start ------------------------------------------------------------------------------------------
def _begin(
    model: Any, plan: Any, x: Any, shape: Any, seed: Any, index: Any, anchor: Tensor | None, dtype: torch.dtype, device: Any
) -> State:
    """A `State` to go on from, a given x, or a draw of the prior at the plan's start."""
    if isinstance(x, State):
        return State(x.x, x.keys, dict(x.history), x.calls)
    process = plan.process
    if process.anchored and anchor is None:
        raise ValueError(f"the plan's process {process!r} is anchored: pass anchor=, a tensor of the state's shape")
    if x is not None:
        tree_map(_check_leaf, x)
        batch = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
        return State(
            x if process is None or not process.anchored else process.centre(x, plan.start, anchor),
            sample_keys(batch, seed, index),
        )
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        device = parameter.device if parameter is not None else "cpu"
    shape = _full_shape(model, shape)
    if not isinstance(shape, dict):
        keys = sample_keys(shape[0], seed, index)
        return State(_scaled(draw(keys, shape[1:], PRIOR, dtype, device), plan), keys)
    keys = sample_keys(next(iter(shape.values()))[0], seed, index)
    start = {}
    for leaf, (name, size) in enumerate(shape.items()):
        z = draw([mix(k, 1 + leaf) for k in keys], size[1:], PRIOR, dtype, device)
        start[name] = _scaled(z, plan.plans[name] if isinstance(plan, JointPlan) else plan)
    return State(start, keys)


def _scaled(z: Tensor, plan: Any) -> Tensor:
    return expand(plan.process.sigma(plan.start), z) * z


def _full_shape(model: Any, shape: Any) -> Any:
    if shape is None:
        raise ValueError("give shape=(batch, …), or x= with the start state")
    if isinstance(shape, dict):
        return {name: _full_shape(None, size) for name, size in shape.items()}
    if type(shape) is int:
        own = getattr(model, "shape", None)
        if own is None:
            raise ValueError(f"shape={shape}: this model does not know its sample shape; give the full (batch, …)")
        shape = (shape, *own)
    try:
        full: tuple[int, ...] = tuple(int(n) for n in shape)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise TypeError(f"shape={shape!r} must be a tuple of sizes (batch, …)") from None
    if not full or any(n < 1 for n in full):
        raise ValueError(f"shape={full} must be (batch, …), all sizes at least 1")
    return full


def _check_leaf(leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"x is {type(leaf).__name__}; the state must be a tensor or a dict of tensors")
    if not leaf.is_floating_point():
        raise TypeError(f"x has dtype {leaf.dtype}; the state must be floating point (x.float())")
    if leaf.ndim < 1 or leaf.numel() == 0:
        raise ValueError(f"x has shape {tuple(leaf.shape)}; the state must be (batch, …), all sizes at least 1")
    if not bool(torch.isfinite(leaf.sum(dtype=torch.float64))):
        raise ValueError("x contains NaN or infinite values")
