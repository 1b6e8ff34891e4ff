"""Networks whose blocks can be left out of a call: network(x, t, skip=["mid_block.attentions.0"]).

A plan's row carries the names in its keyword arguments, so every step of a sampler may run a different part of the
network. A block that is skipped is not computed; what takes its place is what its residual connection would pass on:

    residual block   h + f(h)  →  h,   resampled and through the 1 × 1 convolution where the block changes size or width
    attention        h + f(h)  →  h
    zero             f(h)      →  0,   for the branch f of a sum that the network writes out itself

(AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model Acceleration, 2023.)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Bypass = Callable[..., Any]


class _Skipped(NamedTuple):
    """Blocks that are skipped now, in this thread, and what was skipped outside the network that is running."""

    blocks: frozenset[nn.Module] = frozenset()
    before: _Skipped | None = None


_NOTHING = _Skipped()
_skipped: ContextVar[_Skipped] = ContextVar("unstir_skipped", default=_NOTHING)


def identity(block: nn.Module, x: Any, *rest: Any, **more: Any) -> Any:
    """The first input."""
    return x


def zero(block: nn.Module, x: Tensor, *rest: Any, **more: Any) -> Tensor:
    """Zeros of the first input's shape, for a branch that is added to something."""
    return torch.zeros_like(x)


def shortcut(block: Any, x: Tensor, *rest: Any, **more: Any) -> Tensor:
    """What the shortcut of a `diffusers` ResnetBlock2D passes on, divided as the block divides its output."""
    for resample in (block.upsample, block.downsample):
        x = x if resample is None else resample(x)
    x = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return x / block.output_scale_factor


def attention(block: Any, hidden_states: Tensor, *rest: Any, **more: Any) -> Tensor:
    """The input of an Attention with a residual connection of its own, divided as the block divides its output."""
    return hidden_states / block.rescale_output_factor


def skippable(network: nn.Module, blocks: Sequence[str] | Mapping[str, Bypass] | None = None) -> nn.Module:
    """Lets `network` be called with skip=[names of blocks], and returns it.

    blocks: names of submodules, as in named_modules(), or {name: bypass}, where bypass(block, *inputs) is what the block
        returns when it is skipped; None: all residual and attention blocks of a `diffusers` network. `skippable_blocks`
        lists them afterwards. With no block skipped nothing changes, bit for bit; the weights keep their names.

    Raises ValueError for a name that is no submodule, for a network in which no block is found, and in a call for a name
    that was not made skippable.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is {type(network).__name__}; only the blocks of a torch.nn.Module can be skipped")
    if hasattr(network, "_skippable"):
        raise ValueError("the network's blocks can be skipped already; give it once, with all their names")
    modules = dict(network.named_modules())
    if blocks is None:
        blocks = [name for name, block in modules.items() if name and _known(block)]
        if not blocks:
            raise ValueError("no residual or attention block of diffusers was found; give blocks=, the names of submodules")
    for name in blocks:
        if not name or name not in modules:
            raise ValueError(f"blocks has {name!r}, which is no submodule; {_hint(name, modules)}")
    for name in blocks:
        block = modules[name]
        bypass = blocks[name] if isinstance(blocks, Mapping) else _known(block) or identity
        block.__class__ = _class(type(block), bypass)
    network._skippable = tuple(blocks)  # type: ignore[assignment]
    network.register_forward_pre_hook(_enter, with_kwargs=True)
    network.register_forward_hook(_leave, always_call=True)
    return network


def skippable_blocks(model: Any) -> tuple[str, ...]:
    """The names that `skip=` knows, of a network or of the denoiser around it; empty if it knows none."""
    return tuple(getattr(getattr(model, "network", model), "_skippable", ()))


def block_calls(plan: Any, blocks: Sequence[str]) -> int:
    """What a plan costs: blocks computed in one run, the sum over its calls of len(blocks) − the number skipped there."""
    return sum(len(blocks) - len(set(row.kwargs.get("skip", ())) & set(blocks)) for row in plan.rows if row.evaluate)


def _known(block: nn.Module) -> Bypass | None:
    """The bypass of a block of `diffusers`, by the name of its class."""
    names = {kind.__name__ for kind in type(block).__mro__}
    if "ResnetBlock2D" in names:
        return shortcut
    if "Attention" in names and getattr(block, "residual_connection", False):
        return attention
    return identity if "BasicTransformerBlock" in names else None


@lru_cache(maxsize=256)
def _class(kind: type[nn.Module], bypass: Bypass) -> type[nn.Module]:
    """A subclass that asks before it runs. A class and not a hook: a hook cannot stop a forward, and copies keep it."""

    class Skippable(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return bypass(self, *args, **kwargs) if self in _skipped.get().blocks else super().forward(*args, **kwargs)

    Skippable.__name__, Skippable.__qualname__ = kind.__name__, kind.__qualname__
    return Skippable


def _enter(network: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    asked = kwargs.get("skip") or ()
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    own = {name: network.get_submodule(name) for name in network._skippable}
    now = _skipped.get()
    # What an interrupted call of this network may have left behind is replaced, not added to.
    others = now.blocks - set(own.values())
    _skipped.set(_Skipped(others | {own[name] for name in names if name in own}, now))
    for name in names:
        if name not in own:
            raise ValueError(f"skip has {name!r}, which cannot be skipped; {_hint(name, own)}")
    return args, {key: value for key, value in kwargs.items() if key != "skip"}


def _leave(network: Any, args: Any, output: Any) -> None:
    _skipped.set(_skipped.get().before or _NOTHING)


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), [k for k in known if k], 3, 0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(k for k in known if k)}"
