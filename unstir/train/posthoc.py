"""`posthoc`: the average of any width, chosen after the run."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..denoiser import Denoiser
from .power_ema import Profile, combination


@torch.no_grad()
def posthoc(model: Denoiser, folder: str | Path, std: float, images: int | None = None) -> Denoiser:
    """A copy of `model` with the weights of the power-function average of relative width `std`.

    model: of the run in `folder`, which tracked averages (`ema_std`, two widths at least) and stored snapshots of them.
    images: the moment, by default that of the last snapshot.

    θ = Σ x_i θ̂_i with the x of `power_ema.combination`, summed in float32, one snapshot in memory at a time; counters and
    other whole numbers are those of the last snapshot. Widths between the tracked ones are the safe ones.

    Raises ValueError if there are no snapshots, or none as early as `images`.
    """
    stored = sorted((_profile(path), path) for path in Path(folder).glob("averages/*-*.safetensors"))
    if not stored:
        raise ValueError(f"{folder} holds no snapshots of averages; train with ema_std=(0.05, 0.10)")
    wanted = Profile(images or stored[-1][0].images, std)
    weights = combination([profile for profile, _ in stored], wanted)
    made = copy.deepcopy(model)
    assert isinstance(made.network, nn.Module)
    target = made.network.state_dict()
    for tensor in target.values():
        if tensor.is_floating_point():
            tensor.zero_()
    for weight, (_, path) in zip(weights, stored, strict=True):
        with safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
            for name, tensor in target.items():
                value = file.get_tensor(name).to(tensor.device)
                if tensor.is_floating_point():
                    tensor.add_(value.to(tensor.dtype), alpha=float(weight))
                else:
                    tensor.copy_(value)
    return made


def _profile(path: Path) -> Profile:
    images, _, std = path.stem.partition("-")
    return Profile(int(images), float(std))
