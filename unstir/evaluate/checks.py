"""Checks of sample sets: what every metric asks of its arguments, with errors that name them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_samples(samples: Any, name: str, at_least: int = 2) -> Tensor:
    """`samples` as a finite tensor (n, *) with n ≥ at_least. Raises ValueError or TypeError that names the argument."""
    try:
        x = torch.as_tensor(samples).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {type(samples).__name__}; it must be a tensor or array of shape (n, *)") from None
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; it must hold real numbers")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (n, *) with samples along the first axis")
    if len(x) < at_least:
        raise ValueError(f"{name} has {len(x)} sample(s); at least {at_least} are needed")
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name} contains NaN or infinite values in {int(bad.sum())} of {len(x)} samples, first in {first}")
    return x


def check_alike(real: Tensor, fake: Tensor, real_name: str = "real", fake_name: str = "fake") -> None:
    """Refuses two sets that cannot be compared: other sample shapes, or pixels as integers against floats."""
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"{fake_name} has sample shape {tuple(fake.shape[1:])} and {real_name} {tuple(real.shape[1:])}; "
            "resize or convert one of them first"
        )
    if real.is_floating_point() != fake.is_floating_point():
        raise TypeError(
            f"{real_name} is {real.dtype} and {fake_name} is {fake.dtype}, so their value ranges differ; "
            "bring both to the same range as floats"
        )


def ranges(real: Tensor, fake: Tensor) -> list[str]:
    """A note where two sets of floats look like one kind of pictures in two ranges of values; often nothing."""
    known = {"[−1, 1]": (-1.0, 1.0), "[0, 1]": (0.0, 1.0), "[0, 255]": (0.0, 255.0)}
    guess = []
    for x in (real, fake):
        low, high = float(x.min()), float(x.max())
        fits = [name for name, (a, b) in known.items() if a - 0.05 * (b - a) <= low and high <= b + 0.05 * (b - a)]
        tight = [name for name in fits if name != "[0, 255]" or high > 2]
        # Values in [0, 1] fit [−1, 1], too: the narrowest range is the guess.
        guess.append("[0, 1]" if "[0, 1]" in tight else tight[0] if tight else "")
    if all(guess) and guess[0] != guess[1]:
        return [f"real values look like {guess[0]}, fake ones like {guess[1]}: bring both to one range"]
    return []
