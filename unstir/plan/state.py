"""The state of a run: what it is between two rows, and how it begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._calls import Calls
from .._random import child, sample_keys
from ..denoiser.parts import nested
from ..process.frames import enter, leave
from .joint import JointPlan

HALF = (torch.float16, torch.bfloat16)


@dataclass
class State:
    """All there is of a run between two rows: pass it as `x` to go on with the tail of a split plan.

    x is in the plan's frame (centred, x − βy) where the process is anchored, and float32 in a half-precision run, whose
    dtype is `half`; history is {row number: F}; keys are the random keys of the samples.
    memory is what transforms keep for one run, by transform; aux what the last evaluation gave beside D, by name.
    """

    x: Any
    keys: list[int]
    history: dict[int, Any] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)
    hooks: tuple[Any, ...] = ()
    half: torch.dtype | None = None
    memory: dict[Any, Any] = field(default_factory=dict)
    aux: dict[str, Any] = field(default_factory=dict)
    marks: list[tuple[int, Any, Tensor]] = field(default_factory=list)

    def forget(self) -> None:
        """Let every remembered F be the newest one: the next rows act as if the past had been constant."""
        if self.history:
            self.history = dict.fromkeys(self.history, self.history[max(self.history)])

    def permute(self, perm: Tensor) -> None:
        """Reorder the samples of the history, of aux, of what transforms remember, and of every hook with an `index` method."""
        self.history = {i: tree_map(lambda f: f[perm.to(f.device)], value) for i, value in self.history.items()}
        self.memory = _reordered(self.memory, perm)
        self.aux = _reordered(self.aux, perm)
        for hook in self.hooks:
            if hasattr(hook, "index"):
                hook.index(perm)

    def check(self) -> None:
        """Raise `NonFiniteError` naming the first row whose state was not finite (one wait for the device)."""
        if self.marks:
            sums = torch.stack([mark for _, _, mark in self.marks])
            bad = ~torch.isfinite(sums)
            # A sum of finite numbers may overflow; where nothing is NaN, the end state decides.
            if bool(bad.any()) and (bool(sums.isnan().any()) or not _finite(self.x)):
                number, t, _ = self.marks[int(bad.nonzero()[0])]
                raise NonFiniteError(number, t)
        self.marks.clear()


@dataclass(slots=True)
class Step:
    """What `steps` yields after a row. data: D predicted at time t; x: the state at time `to` that the row led to;
    aux: what the last evaluation gave beside D, by name (`Context.give`)."""

    index: int
    t: Any
    to: Any
    x: Any
    data: Any
    row: Any
    state: State
    aux: dict[str, Any] = field(default_factory=dict)


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


def _reordered(value: Any, perm: Tensor) -> Any:
    """`value` with every tensor in it that has one entry a sample reordered."""
    return nested(lambda u: u[perm.to(u.device)] if u.ndim and len(u) == len(perm) else u, value)


def _copied(memory: Any) -> Any:
    """The dicts of a memory anew, at any depth: a run that goes on leaves the `State` it began from as it was."""
    return {owner: _copied(value) for owner, value in memory.items()} if isinstance(memory, dict) else memory


def _finite(x: Any) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in (x.values() if isinstance(x, dict) else (x,)))


def begin(
    model: Any, plan: Any, x: Any, shape: Any, seed: Any, index: Any, anchor: Tensor | None, dtype: torch.dtype, device: Any
) -> State:
    """A `State` to go on from, a given x, or a draw of the prior at the plan's start."""
    needed = plan.needs() if not hasattr(plan, "generate") else []
    if isinstance(x, State):
        if missing := [i for i in needed if i not in x.history]:
            raise ValueError(
                f"the plan reads the history of row {missing[0]}, which the State does not hold; run the head with full=True"
            )
        return State(x.x, x.keys, dict(x.history), replace(x.calls), half=x.half, memory=_copied(x.memory), aux=x.aux)
    if needed:
        raise ValueError(
            f"this plan is the tail of a split one and reads the history of row {needed[0]}: pass x=, the State of its head"
        )
    process = getattr(plan, "process", None)
    anchored = process is not None and process.anchored
    frame = getattr(plan, "frame", "centred")
    if anchored and anchor is None:
        raise ValueError(f"the plan's process {process!r} is anchored: pass anchor=, a tensor of the state's shape")
    if isinstance(x, Tensor) and isinstance(shape, tuple | list) and tuple(shape) != tuple(x.shape):
        raise ValueError(f"shape={tuple(shape)} contradicts x, which has {tuple(x.shape)}; give one of them")
    if x is not None:
        batch = _check_state(x, plan)
        x = enter(process, frame, x, plan.start, anchor) if anchored else x  # type: ignore[arg-type]
        half = x.dtype if isinstance(x, Tensor) and x.dtype in HALF else None
        return State(x if half is None else x.float(), sample_keys(batch, seed, index), half=half)
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        device = parameter.device if parameter is not None else "cpu"
    device = _device(device)
    shape = full_shape(model, anchor.shape if anchored and shape is None else shape)  # type: ignore[union-attr]
    if not isinstance(shape, dict):
        keys = sample_keys(shape[0], seed, index)
        half = dtype if dtype in HALF else None
        drawn = dtype if half is None else torch.float32
        start = plan.process.start(keys, shape[1:], plan.start, anchor=anchor, dtype=drawn, device=device)
        if anchored and frame != "centred":
            x = leave(process, "centred", start, plan.start, anchor)  # type: ignore[arg-type]
            start = enter(process, frame, x, plan.start, anchor)  # type: ignore[arg-type]
        return State(start, keys, half=half)
    keys = sample_keys(next(iter(shape.values()))[0], seed, index)
    start = {}
    for leaf, (name, size) in enumerate(shape.items()):
        own = plan.plans[name] if isinstance(plan, JointPlan) else plan
        start[name] = own.process.start([child(k, 1 + leaf) for k in keys], size[1:], own.start, dtype=dtype, device=device)
    return State(start, keys)


def _device(device: Any) -> torch.device:
    """The device, if this torch has it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from None


def check_classes(model: Any, cond: Mapping[str, Any]) -> None:
    """Refuse class numbers that a model with named classes does not have; numbers on a device are not looked at.

    model.meta["null"] = {keyword: K} says that the network's numbers are 0 … K, K for any class.
    """
    for name, last in getattr(model, "meta", {}).get("null", {}).items():
        given = cond.get(name)
        if given is None or type(last) is not int or (isinstance(given, Tensor) and given.device.type != "cpu"):
            continue
        try:
            numbers = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            numbers = torch.empty(0)
        if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise TypeError(f"{name}={given!r} must be whole numbers of classes, 0 … {last} ({last}: any)")
        wrong = numbers[(numbers < 0) | (numbers > last)].flatten()
        if len(wrong):
            raise ValueError(f"{name} has the class {int(wrong[0])}; the model knows 0 … {last} ({last}: any)")


def full_shape(model: Any, shape: Any) -> Any:
    if shape is None:
        raise ValueError("give shape=(batch, …), or x= with the start state")
    if isinstance(shape, dict):
        return {name: full_shape(None, size) for name, size in shape.items()}
    if type(shape) is int:
        own = getattr(model, "shape", None)
        if own is None:
            raise ValueError(f"shape={shape}: this model does not know its sample shape; give the full (batch, …)")
        if isinstance(own, Mapping):
            return {name: full_shape(None, (shape, *size)) for name, size in own.items()}
        shape = (shape, *own)
    try:
        full: tuple[int, ...] = tuple(int(n) for n in shape)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise TypeError(f"shape={shape!r} must be a tuple of sizes (batch, …)") from None
    if not full or any(n < 1 for n in full):
        raise ValueError(f"shape={full} must be (batch, …), all sizes at least 1")
    return full


def _check_state(x: Any, plan: Any) -> int:
    """The batch size of a given start state; raises if it is not one, or does not fit the plan."""
    if not isinstance(x, dict):
        if isinstance(plan, JointPlan):
            raise TypeError(
                f"x is {type(x).__name__}; a dict of plans needs a dict state with the leaves {', '.join(plan.plans)}"
            )
        check_leaf(x)
        return len(x)
    if not x:
        raise ValueError("x is empty; a dict state needs at least one leaf")
    if isinstance(plan, JointPlan) and x.keys() != plan.plans.keys():
        raise ValueError(f"x has the leaves {', '.join(x)}; the plans are for {', '.join(plan.plans)}")
    for leaf in x.values():
        check_leaf(leaf)
    if len(batches := {len(leaf) for leaf in x.values()}) > 1:
        raise ValueError(f"the leaves of x have batch sizes {sorted(batches)}; all leaves need the same")
    return batches.pop()


def check_leaf(leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"x is {type(leaf).__name__}; the state must be a tensor or a dict of tensors")
    if not leaf.is_floating_point():
        raise TypeError(f"x has dtype {leaf.dtype}; the state must be floating point (x.float())")
    if leaf.ndim < 1 or leaf.numel() == 0:
        raise ValueError(f"x has shape {tuple(leaf.shape)}; the state must be (batch, …), all sizes at least 1")
    # The sum is cheap; where it is not finite it may only have overflowed.
    if not math.isfinite(float(leaf.detach().sum())) and not bool(torch.isfinite(leaf).all()):
        raise ValueError("x contains NaN or infinite values")
