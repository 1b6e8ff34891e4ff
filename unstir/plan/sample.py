"""`sample`: exhaust a plan and return the end state; and the fast executors for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._calls import counting
from .._random import draw, sample_keys
from .execute import launch, steps
from .hooks import Hook
from .plan import Plan
from .state import HALF, State, begin, check_leaf

EXECUTORS = ("eager", "compile", "graph")


def sample(
    model: Any,
    plan: Any = None,
    *,
    shape: Any = None,
    x: Any = None,
    nfe: int | None = None,
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    hooks: Sequence[Hook] | Hook = (),
    anchor: Tensor | None = None,
    noise: Any = None,
    grad: bool = False,
    executor: str = "eager",
    full: bool = False,
    on_step: Callable[[Any], None] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    **cond: Any,
) -> Any:
    """Run a model through a plan and return the end state.

    model: a `Denoiser`, or any callable model(x, t, **cond) -> data prediction.
    plan: an `unstir.Plan`, a solver's name (then give nfe), a dict of plans for a dict state, or None:
        the plan shipped with the model for this nfe, else "auto".
    shape: (batch, …) of the start, drawn from the prior; an integer is a batch of a model that
        knows its sample shape. Or give the start state as x, or a `State` of a split plan's head.
    nfe: number of network calls when plan is None or a name (default 20).
    seed, index: sample i of the batch uses the random stream (seed, index[i]), index = 0, 1, … by
        default, or a seed of its own if seed is a sequence. A sample therefore does not depend on
        the batch it is drawn in, nor on the device. In float64 the noise is another one than in float32
        (which half types draw in): to compare the two, give x= and noise=.
        Index ~i is the twin of i: the same noise with the other sign, start and rows alike.
    hooks: see `unstir.plan.hooks`; those that the model brings along (`model.hooks`) run first.
    anchor: y of an anchored process.
    noise: {row: tensor} or row -> tensor, used instead of drawn noise; `unstir.brownian` gives plans of any length one path.
    grad: keep the autograd graph.
    executor: "eager"; "compile" runs the network through torch.compile; "graph" captures the whole
        run as one CUDA graph, once per (plan, shape) (see `capture`).
    full: return the final `State` (x, history, counts of calls, aux) instead of x.
    on_step: called with every `Step`, for progress.
    cond: passed to the network.

    Raises ValueError or TypeError naming the argument, and `NonFiniteError` naming the row.
    """
    plan = choose(model, plan, nfe)
    if executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r} must be one of {', '.join(EXECUTORS)}")
    if executor == "graph":
        if hooks or full or on_step or grad or anchor is not None or noise is not None:
            raise ValueError(
                "executor='graph' runs without hooks, noise=, anchor=, grad, full and on_step; use 'eager' for those"
            )
        start = x if x is not None else begin(model, plan, None, shape, seed, index, None, dtype, device).x
        return capture(model, plan, start, **cond)(start, seed=seed, index=index)
    if executor == "compile":
        model = compiled(model)
    run, state = launch(
        model, plan, x, shape, seed, index, hooks, anchor, noise, dtype, device, cond, last_only=on_step is None
    )  # fmt: skip
    step = None
    with nullcontext() if grad else torch.no_grad(), counting(state.calls):
        for step in run:
            if on_step is not None:
                on_step(step)
    if step is None:
        raise ValueError("the row generator gave no rows")
    return state if full else step.x


def choose(model: Any, plan: Any, nfe: int | None) -> Any:
    """The plan that `sample` runs: the given one, the model's own for this nfe, or a named solver's."""
    if plan is not None and not isinstance(plan, str):
        if nfe is not None:
            raise ValueError(f"nfe={nfe} has no effect on a given plan of {len(plan)} calls; give a plan or nfe")
        return plan
    from ..solvers import plan as make

    nfe = 20 if nfe is None else int(nfe) if isinstance(nfe, np.integer) else nfe
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ValueError(f"nfe={nfe!r} must be an integer of at least 1, the number of network calls")
    shipped = getattr(model, "plans", {})
    if plan is None and nfe in shipped:
        return shipped[nfe]
    if not hasattr(model, "process"):
        raise TypeError(f"model {type(model).__name__} has no process; give plan=, a plan made for its process")
    return make(plan or "auto", model, nfe=nfe)


def compiled(model: Any) -> Any:
    """The model with its network through torch.compile, made once per model."""
    if not isinstance(getattr(model, "network", None), torch.nn.Module):
        raise TypeError("executor='compile' needs a Denoiser whose network is a torch.nn.Module")
    if "_compiled" not in model.__dict__:
        import copy

        twin = copy.copy(model)
        twin._modules = dict(model._modules)
        twin.network = torch.compile(model.network, dynamic=False)
        model.__dict__["_compiled"] = twin  # not a submodule: the weights are shared, the state dict unchanged
    return model.__dict__["_compiled"]


def capture(model: Any, plan: Plan, example: Tensor, **cond: Any) -> Callable[..., Tensor]:
    """The whole run of a plan as one CUDA graph: run(x, seed=0, index=None) -> end state.

    Every kernel of every row is launched by one call, so the host costs nothing per row. Captured
    graphs are kept with the model, per plan, shape, dtype and conditions (identical tensors).
    The tensors in cond are read where they lie: write new values into them in place.

    Raises ValueError without CUDA.
    """
    if not (isinstance(example, Tensor) and example.is_cuda):
        raise ValueError("executor='graph' needs a CUDA state; on the CPU use executor='eager' or 'compile'")
    check_leaf(example)
    if example.dtype in HALF:
        raise ValueError("executor='graph' keeps the state in float32; use torch.autocast in the network for half precision")
    key = (plan.fingerprint(), tuple(example.shape), example.dtype, tuple((k, id(v)) for k, v in sorted(cond.items())))
    cache = model.__dict__.setdefault("_graphs", {})
    if key not in cache:
        cache[key] = _capture(model, plan, example, cond)
    return cache[key]


def _capture(model: Any, plan: Plan, example: Tensor, cond: dict[str, Any]) -> Callable[..., Tensor]:
    x = example.clone()
    noisy = [n for n, row in enumerate(plan.rows, plan.offset) if row.noisy]
    noises = {n: torch.zeros_like(x) for n in noisy}

    def run() -> Tensor:
        out = x
        for step in steps(model, plan, State(x, [0] * len(x)), noise=noises, **cond):
            step.state.marks.clear()  # checking waits for the device, which a capture may not
            out = step.x
        return out

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay(start: Tensor, *, seed: int | Sequence[int] = 0, index: Sequence[int] | None = None) -> Tensor:
        x.copy_(start)
        keys = sample_keys(len(start), seed, index)
        for n, z in noises.items():
            z.copy_(draw(keys, start.shape[1:], n + 1, start.dtype, start.device))
        graph.replay()
        return out.clone()

    return replay
