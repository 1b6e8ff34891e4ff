"""The one executor: every plan, every denoiser, every kind of state runs through `steps`.

It is a generator: nothing is hidden, and a user may stop, look or drive it. `sample` exhausts it.
Coefficients are float64 on the CPU and applied in the state's dtype (float32 for half types).
Nothing is updated in place, so with grad=True it is differentiable in states and coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .._calls import counting
from .._random import child, draw
from ..denoiser.denoiser import accepts, combine
from ..process.base import expand
from ..process.frames import leave
from .frames import blind, residual
from .hooks import Context, Hook, Steered, call_hooks, carried
from .joint import JointPlan
from .plan import Plan
from .state import State, Step, begin, check_classes, tree_map

Noise = Callable[[int], Any] | Mapping[int, Any]


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
    last_only: bool = False,
) -> tuple[Iterator[Step], State]:
    """A run that has not begun, and its state; the caller sets autograd and counts calls (`_guarded`, `sample`).

    last_only: of a plan whose rows are known, yield only the last step.
    """
    plan = JointPlan(plan) if isinstance(plan, dict) else plan
    if not hasattr(plan, "generate") and not isinstance(plan, Plan | JointPlan):
        raise TypeError(
            f"plan is {type(plan).__name__}; give an unstir.Plan (see unstir.plan), a dict of plans or a row generator"
        )
    process, own = getattr(plan, "process", None), getattr(model, "process", None)
    if process is not None and own is not None and own is not process and own != process:
        raise ValueError(
            f"the plan was made for the process {process!r} and the model for {own!r}; "
            "make the plan for the model's process, or use model.on(plan.process)"
        )
    if process is not None and process.anchored and getattr(model, "sees_anchor", True) is False and not blind(plan):
        raise ValueError(
            f"the network does not see the anchor, so its D is E[x0 | x_t], and {getattr(plan, 'name', 'this plan')!r} needs "
            "E[x0 | x_t, y]: use the solver 'bridge', or train with the anchor (Denoiser(sees_anchor=True))"
        )
    state = begin(model, plan, x, shape, seed, index, anchor, dtype, device)
    if cond:
        check_classes(model, cond)
    given = tuple(hooks) if isinstance(hooks, list | tuple) else (hooks,)
    for hook in given:
        if not callable(hook) and not any(hasattr(hook, place) for place in ("start", "on_mean", "on_row", "index")):
            raise TypeError(
                f"hooks has {hook!r}, which listens nowhere; give a function (ctx, x) or an object with on_mean or on_row"
            )
    state.hooks = (*(hook for hook in getattr(model, "hooks", ()) if hook not in given), *given)
    return _run(model, plan, state, anchor, noise, cond, last_only), state


def _guarded(run: Iterator[Step], state: State, grad: bool) -> Iterator[Step]:
    """The rows of `run`, each with autograd off unless wanted and its calls counted, the caller's code between them not."""
    while True:
        with nullcontext() if grad else torch.no_grad(), counting(state.calls):
            step = next(run, None)
        if step is None:
            return
        yield step


def _run(
    model: Any,
    plan: Any,
    state: State,
    anchor: Tensor | None,
    noise: Noise | None,
    cond: dict[str, Any],
    last_only: bool,
) -> Iterator[Step]:
    static = not hasattr(plan, "generate")
    offset = plan.offset if static else 0
    release = plan.releases if static else None
    window = getattr(plan, "window", 4)  # of generated rows, whose later lags are not known
    process = getattr(plan, "process", None)
    anchored = process is not None and process.anchored
    frame = getattr(plan, "frame", "centred")
    relative = anchored and frame == "residual"
    if anchored and getattr(model, "sees_anchor", False):
        cond = {**cond, "anchor": anchor}
    # A plain denoiser hands the context on to a network that asks for it.
    wants_ctx = accepts(model, "ctx") and getattr(model, "_wants_ctx", True)
    half = state.half
    rows: Any = plan.rows if static else plan.generate(state)
    final = offset + len(rows) - 1 if static else None  # the last row, where it is known
    last_only = last_only and static
    denoise = _direct(model)
    hooks, listening = state.hooks, bool(state.hooks) or wants_ctx

    for number, row in enumerate(rows, offset):
        x, data, now, ctx = state.x, None, None, None
        if listening:
            ctx = Context(plan, row, number, number == offset, number == final, x, run=state)
            if ctx.first:
                for hook in hooks:
                    if hasattr(hook, "start"):
                        hook.start(ctx)
        if row.evaluate:
            state.calls.rows += 1
            seen = x if not anchored else leave(process, frame, x, row.t, anchor)  # type: ignore[arg-type]
            if half is not None:
                seen = seen.to(half)
            more = {**cond, **row.kwargs} if row.kwargs else cond
            data = denoise(seen, row.t, ctx=ctx, **more) if wants_ctx else denoise(seen, row.t, **more)
            if relative:
                data = residual(data, anchor)  # type: ignore[arg-type]
            previous = state.history.get(number - 1) if row.momentum else None
            if type(data) is Steered:
                carry, base, data = data.carry, _checked(data.base, x, half), _checked(data.data, x, half)
                used, keep = carried(data, base, carry, row, _alpha_next(plan, row, x))
                now = line(row, x, used, previous)
                state.history[number] = now if keep is used else line(row, x, keep, previous)
            else:
                if type(data) is not Tensor or half is not None or data.shape != x.shape:
                    data = _checked(data, x, half)
                now = state.history[number] = data if row.plain else line(row, x, data, previous)
        shape = None if row.numeric or type(x) is not Tensor else x.shape
        x = advance(row, x, state.history, now, number)
        if shape is not None and x.shape != shape:
            raise ValueError(
                f"row {number} changes the state's shape from {tuple(shape)} to {tuple(x.shape)}; its tensors do not fit it"
            )
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
        if last_only and number != final:
            continue
        shown = x if half is None else x.to(half)
        if anchored:
            shown = leave(process, frame, shown, row.to, anchor)  # type: ignore[arg-type]
        yield Step(number, row.t, row.to, shown, data, row, state, state.aux)
    state.check()


def _direct(model: Any) -> Any:
    """The model's forward, where calling the module would do no more: a tenth of the engine's time per row."""
    if not isinstance(model, torch.nn.Module) or type(model).__call__ is not torch.nn.Module.__call__:
        return model
    own = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    shared = torch.nn.modules.module
    everywhere = (shared._global_forward_hooks, shared._global_forward_pre_hooks, shared._global_backward_hooks)
    return model if any(own) or any(everywhere) else model.forward


def _checked(data: Any, x: Any, half: torch.dtype | None) -> Any:
    """The model's result, if it has the form of the state; float32 in a half-precision run."""
    if isinstance(x, dict):
        if not isinstance(data, dict) or data.keys() != x.keys():
            raise TypeError(
                f"the model returned {_form(data)} for a state with the leaves {', '.join(x)}; return a dict of them"
            )
        return {k: _checked(data[k], x[k], half) for k in x}
    if not isinstance(data, Tensor):
        raise TypeError(
            f"the model returned {type(data).__name__}; it must return the data prediction, a tensor of the state's shape"
        )
    if data.shape != x.shape:
        raise ValueError(
            f"the model returned shape {tuple(data.shape)} for a state of shape {tuple(x.shape)}; the two must agree"
        )
    return data if half is None else data.float()


def _form(data: Any) -> str:
    return f"a dict with {', '.join(map(str, data))}" if isinstance(data, dict) else type(data).__name__


def _alpha_next(plan: Any, row: Any, x: Any) -> Any:
    """α_{i+1} for `carry`: a number, a tensor shaped to broadcast (per-sample times), or {leaf: …}."""
    if isinstance(x, dict):
        parts = plan.plans if isinstance(plan, JointPlan) else dict.fromkeys(x, plan)
        return {k: _alpha_next(parts[k], row.leaf(k), x[k]) for k in x}
    alpha = plan.process.alpha(row.to)
    return expand(alpha, x) if alpha.ndim else float(alpha)


# -- the three lines of a row, on tensors and on dicts of tensors ------------------------------------
def line(row: Any, x: Any, data: Any, previous: Any) -> Any:
    """F_i = p X + q D + s F_{i−1}."""
    if isinstance(x, dict):
        return {k: line(row.leaf(k), x[k], data[k], None if previous is None else previous[k]) for k in x}
    if type(row.s) is float and row.s == 0:
        return combine(((row.p, x), (row.q, data)))
    return combine(((row.p, x), (row.q, data), (row.s, previous)))


def advance(row: Any, x: Any, history: Mapping[int, Any], now: Any, number: int) -> Any:
    """a X + Σ b F + e; lag 0 is `now`, which may differ from what the history keeps (`carry`).

    A generated row without a call may find an F of its own that its generator put into the history.
    """
    if isinstance(x, dict):
        each = {k: {j: f[k] for j, f in history.items()} for k in x}
        return {k: advance(row.leaf(k), x[k], each[k], None if now is None else now[k], number) for k in x}
    terms = [(row.a, x)]
    for lag, weight in row.lags:
        terms.append((weight, now if lag == 0 and now is not None else history[number - lag]))
    mean = combine(terms)
    return mean if type(row.e) is float and row.e == 0 else mean + (row.e.to(mean) if isinstance(row.e, Tensor) else row.e)


def _add_noise(row: Any, mean: Any, keys: list[int], number: int, noise: Noise | None) -> Any:
    """mean + c z, z drawn from the samples' own streams or supplied by the caller."""
    given = None if noise is None else _given_noise(noise, number, mean)
    if isinstance(mean, dict):
        out = {}
        for leaf, (name, m) in enumerate(mean.items()):
            z = _draw([child(k, 1 + leaf) for k in keys], number + 1, m) if given is None else given[name]
            out[name] = combine(((1.0, m), (row.leaf(name).c, z)))
        return out
    return combine(((1.0, mean), (row.c, _draw(keys, number + 1, mean) if given is None else given)))


def _given_noise(noise: Noise, number: int, mean: Any) -> Any:
    if not callable(noise) and number not in noise:
        raise ValueError(f"noise has no entry for row {number}, which adds noise; give one for every such row")
    z = noise(number) if callable(noise) else noise[number]
    tree_map(lambda m, n: _check_noise(m, n, number), mean, z)
    return z


def _check_noise(mean: Tensor, z: Any, number: int) -> None:
    if getattr(z, "shape", None) != mean.shape:
        raise ValueError(f"noise of row {number} has shape {getattr(z, 'shape', None)}; the state has {tuple(mean.shape)}")


def _draw(keys: list[int], stream: int, like: Tensor) -> Tensor:
    return draw(keys, like.shape[1:], stream, like.dtype, like.device)
