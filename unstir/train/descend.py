"""The short loop: AdamW down half a cosine, with averaged weights, for trainings of minutes that need no checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import ema
from .progress import Listener

Model = TypeVar("Model", bound=nn.Module)


def descend(
    model: Model,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    decay: float,
    clip: float,
    progress: Listener | None = None,
) -> Model:
    """The model with averaged weights; `model` itself is trained in place.

    loss: the number of a step, 0 … steps − 1, -> its loss.   decay: of the weight average, per step.
    clip: largest norm of the gradient.   lr falls as ½(1 + cos(π step/steps)).
    """
    average = copy.deepcopy(model)
    adam = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss(step)
        adam.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        adam.step()
        ema.update(average, model, ema.fixed(decay, step + 1))
        if progress is not None:
            progress({"step": step + 1, "loss": float(value.detach())})
    return average.eval().requires_grad_(False)
