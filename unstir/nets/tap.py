"""A network that also returns what one of its parts computed."""

from __future__ import annotations

from threading import get_ident
from typing import Any

from torch import Tensor, nn

from ..denoiser.parts import split_output


class Tapped(nn.Module):
    """network(x, t, **cond) -> (raw, {"features": h}): h is the output of the part at `where`, a name of `named_modules`.

    What the network computes is unchanged, and `network` is the same object: without the tap its weights load strictly.

    Raises ValueError for a part that does not exist, and in a call if it did not run.
    """

    def __init__(self, network: nn.Module, where: str) -> None:
        super().__init__()
        parts = dict(network.named_modules())
        if where not in parts or where == "":
            top = ", ".join(name for name, _ in network.named_children()) or "none"
            raise ValueError(f"where={where!r} is no part of {type(network).__name__}; its children are: {top}")
        self.network, self.where = network, where

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> tuple[Any, dict[str, Tensor]]:
        kept: list[Any] = []
        thread = get_ident()

        def keep(part: nn.Module, given: Any, out: Any) -> None:
            if get_ident() == thread:  # a call in another thread has a hook of its own
                kept.append(out)

        hook = self.network.get_submodule(self.where).register_forward_hook(keep)
        try:
            raw, _ = split_output(self.network(x, time, **cond))
        finally:
            hook.remove()
        if not kept:
            raise ValueError(f"the part {self.where!r} did not run in this call of {type(self.network).__name__}")
        return raw, {"features": kept[-1]}
