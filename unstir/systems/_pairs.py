"""What the systems that learn from pairs share: real pictures, what spoils them, two small networks, one recipe.

- *Digits*: scikit-learn's 8 × 8 digits; y is the mean of 2 × 2 pixels. A multilayer perceptron learns them in a minute.
- *Photographs*: scikit-learn's two, in grey at half size; the left two thirds to learn from, the right third to test.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import train
from ..data import Pairs, load
from ..denoiser import Denoiser
from ..evaluate.quality import psnr as psnr_each
from ._kept import once
from ._trunk import ResidualMLP, zero

TESTED = 397  # digits
Degrade = Callable[[Tensor, torch.Generator], Tensor]


# -- data ---------------------------------------------------------------------------------------------------
def pairs(x: Tensor, y: Tensor, name: str) -> Pairs:
    """Pairs of tensors (N, C, H, W) in memory."""
    return Pairs(lambda rows: x[list(rows)], lambda rows: y[list(rows)], len(x), tuple(x.shape[1:]), name=name)


@lru_cache(maxsize=1)
def digit_pairs() -> tuple[Pairs, Pairs]:
    """(1400 digits to learn from, 397 others), each with its 2 × 2 means."""
    x = load("digits").all()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    y = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    return pairs(x[:-TESTED], y[:-TESTED], "digits"), pairs(x[-TESTED:], y[-TESTED:], "digits (test)")


@lru_cache(maxsize=1)
def photos() -> list[Tensor]:
    """The photographs china.jpg and flower.jpg as (1, 213, 320), luminance in [−1, 1]."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise ImportError('the photographs come with scikit-learn: pip install "unstir[cli]"') from None
    weights = torch.tensor([0.299, 0.587, 0.114])
    bunch: Any = load_sample_images()
    grey = [torch.tensor(image).float() @ weights / 127.5 - 1 for image in bunch.images]
    return [F.avg_pool2d(g[None, None], 2)[0] for g in grey]


def photo_pairs(degrade: Degrade, count: int, side: int, test: bool = False) -> Pairs:
    """`count` crops of the photographs and what `degrade` makes of them."""
    g = torch.Generator().manual_seed(1 if test else 0)
    crops = []
    for n in range(count):
        photo = photos()[n % 2]
        width = photo.shape[2]
        low, high = (width * 2 // 3, width - side) if test else (0, width * 2 // 3 - side)
        left = int(torch.randint(low, high + 1, (), generator=g))
        top = int(torch.randint(0, photo.shape[1] - side + 1, (), generator=g))
        crops.append(photo[:, top : top + side, left : left + side])
    x = torch.stack(crops)
    return pairs(x, degrade(x, g), f"{side} × {side} crops{' (test)' if test else ''}")


def enlarged(x: Tensor, g: torch.Generator) -> Tensor:
    """A quarter of the resolution with noise of 10/255, enlarged again by cubic interpolation."""
    small = F.avg_pool2d(x, 4)
    small = small + 2 * 10 / 255 * torch.randn(small.shape, generator=g)
    return F.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False).clamp(-1, 1)


def rainy(x: Tensor, g: torch.Generator) -> Tensor:
    """Slanted white streaks of 7 pixels that begin in 2 % of the pixels."""
    streak = torch.zeros(1, 1, 7, 7)
    streak[0, 0, range(7), [4, 4, 3, 3, 3, 2, 2]] = 1
    seeds = (torch.rand(x.shape, generator=g) < 0.02).float()
    return (x + 2 * 0.6 * F.conv2d(seeds, streak, padding=3)).clamp(-1, 1)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in [−1, 1], clipped to that range."""
    return float(psnr_each(x.clamp(-1, 1), truth).mean())


def sharpness(x: Tensor) -> float:
    """Mean |difference| of neighbouring pixels."""
    return 0.5 * float(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean())


# -- networks ---------------------------------------------------------------------------------------------
class PairNet(ResidualMLP):
    """F(x, time, y) for 8 × 8 pictures:  F = H h with h of `ResidualMLP` on (x, y)."""

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__(128, torch.logspace(-2, 3, 16, base=2), width=width, blocks=blocks)
        self.head = zero(nn.Linear(width, 64))
        self.close()

    def forward(self, x: Tensor, time: Tensor, anchor: Tensor) -> Tensor:
        return self.head(self.trunk(torch.cat([x.flatten(1), anchor.flatten(1)], 1), time)).reshape(x.shape)


class PairUNet(nn.Module):
    """F(x, time, y) for grey pictures whose sides are multiples of 4: three levels, two residual blocks a level and way."""

    frequencies: Tensor

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 32)) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 4, 16, base=2))
        self.embed = nn.Sequential(nn.Linear(32, 64), nn.SiLU())
        self.enter = nn.Conv2d(2, widths[0], 3, padding=1)
        before = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(_Block(b, w) for b, w in zip(before, widths, strict=True))
        self.middle = _Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(_Block(2 * w, b) for b, w in zip(before, widths, strict=True))
        self.head = zero(nn.Conv2d(widths[0], 1, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, anchor: Tensor) -> Tensor:
        phase = time[:, None] * self.frequencies
        e = self.embed(torch.cat([phase.sin(), phase.cos()], 1))
        h, kept = self.enter(torch.cat([x, anchor], 1)), []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, e)
            kept.append(h)
        h = self.middle(h, e)
        for i, block in reversed(list(enumerate(self.up))):
            h = block(torch.cat([h, kept[i]], 1), e)
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if i else h
        return self.head(h)


class _Block(nn.Module):
    """h = Conv silu(GroupNorm(Conv silu(GroupNorm x)) + E e) + (x or its 1 × 1 projection)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(w, width, 3, padding=1) for w in (width_in, width))
        self.norms = nn.ModuleList([nn.GroupNorm(8, width_in), nn.GroupNorm(8, width)])
        self.shift = nn.Linear(64, width)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        zero(self.second)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.norms[1](self.first(F.silu(self.norms[0](x)))) + self.shift(e)[:, :, None, None]
        return self.skip(x) + self.second(F.silu(h))


def untrained(make: Callable[[], nn.Module], *about: Any, seed: int = 0, **options: Any) -> Denoiser:
    """A fresh `Denoiser(network, process, predicts, …)` that sees the anchor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
    return Denoiser(network, *about, sees_anchor=True, **options)


def trained(
    model: Denoiser,
    data: Pairs,
    path: Path,
    steps: int,
    *,
    objective: train.Objective | None = None,
    device: str = "cpu",
    **options: Any,
) -> Denoiser:
    """`model`, trained once on `data` and kept at `path` (.safetensors). A run that was stopped goes on where it stopped."""
    about: dict[str, Any] = {"data": data.name, "split": "all", "steps": steps, "device": device}
    config = train.TrainConfig(**about, checkpoint_every=steps, keep=1, **options)
    found = once(
        path,
        steps,
        lambda run, bar: train.fit(
            model, data, config, run, resume=True, progress=bar, objective=objective,
            validation=data.subset(range(min(64, len(data)))),
        ),
    )  # fmt: skip
    model.network.load_state_dict(found)  # type: ignore[union-attr]
    return model.to(device).eval().requires_grad_(False)
