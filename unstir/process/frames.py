"""Frames: how much of the anchor y is taken off a state x before something acts on it, the rows of a plan or a network.

frame        state          data
"centred"    x − β(t) y     D         an ordinary diffusion in which y does not occur
"residual"   x − y          D − y     where β = 1 − α: the same curve, of the data x0 − y
"raw"        x              D
"""

from __future__ import annotations

from torch import Tensor

from .base import Process, Time

FRAMES = ("centred", "residual", "raw")


def enter(process: Process, frame: str, x: Tensor, t: Time, anchor: Tensor | None) -> Tensor:
    """The frame's state of a state x at time t."""
    if frame == "centred":
        return process.centre(x, t, anchor)
    return x - process._need(anchor) if frame == "residual" else x


def leave(process: Process, frame: str, state: Tensor, t: Time, anchor: Tensor | None) -> Tensor:
    """x of the frame's state: the inverse of `enter`."""
    if frame == "centred":
        return process.uncentre(state, t, anchor)
    return state + process._need(anchor) if frame == "residual" else state
