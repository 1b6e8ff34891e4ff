"""What `benchmarks.inverse` restores: pictures, the model that both libraries use, and the operators, all `Spectral`.

patches    16 × 16 grey patches of scikit-learn's two photographs. The prior is a mixture of Gaussians fitted to patches of
           the left halves, whose denoiser E[x0 | x_t] is exact, so a difference is one of the methods. Settings are chosen
           on patches of the right halves, and what is reported is measured on other patches of them.
digits     scikit-learn's 8 × 8 digits with the bundled network, without a class. Settings are chosen on one part of the
           digits that it was not trained on, the rest is for the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unstir
from unstir.denoiser import GaussianMixture
from unstir.process import EDM
from unstir.steer import ValueRange, operators

NOISE = 0.05  # σ_y on values in [0, 1]
SPAN = ValueRange(0.0, 1.0)
PROCESS = EDM(0.002, 80.0)
SIDE, PARTS = 16, 8  # patch, Gaussians
CHOSEN = 1  # seed of the pictures on which settings are chosen
TEST = 1645  # seed of the pictures that are reported (and of their noise, one more): nothing was chosen on them


@dataclass(frozen=True)
class Bench:
    """Pictures in [0, 1], a denoiser of them in [−1, 1], and what is done to them."""

    name: str
    about: str
    shape: tuple[int, ...]
    model: Callable[[], Any]
    pictures: Callable[[int, int], Tensor]  # (count, seed)
    tasks: Callable[[], dict[str, Any]]
    choose: int  # pictures on which settings are chosen
    report: int  # pictures that are reported
    repeats: int  # runs of which the quickest counts


# -- patches of photographs ---------------------------------------------------------------------------------------
def patches(half: str, count: int, seed: int) -> Tensor:
    """(count, 1, 16, 16) in [0, 1]: patches of china.jpg and flower.jpg at random places of one half."""
    from sklearn.datasets import load_sample_images

    halves = []
    for picture in load_sample_images().images:  # type: ignore[attr-defined]
        grey = picture.astype(np.float64).mean(2) / 255
        grey = grey[: len(grey) // 2 * 2, : grey.shape[1] // 2 * 2]
        grey = grey.reshape(len(grey) // 2, 2, -1, 2).mean((1, 3))  # half the size: more structure in a patch
        middle = grey.shape[1] // 2
        halves.append(grey[:, :middle] if half == "left" else grey[:, middle:])
    generator, out = np.random.default_rng(seed), []
    for i in range(count):
        grey = halves[i % 2]
        top, left = generator.integers(grey.shape[0] - SIDE), generator.integers(grey.shape[1] - SIDE)
        out.append(grey[top : top + SIDE, left : left + SIDE])
    return torch.from_numpy(np.stack(out))[:, None]


def mixture() -> GaussianMixture:
    """A mixture of Gaussians of patches in [−1, 1], by expectation maximisation; small eigenvalues are kept off 0."""
    from sklearn.mixture import GaussianMixture as Fit

    x = SPAN.model(patches("left", 4000, 0)).flatten(1).numpy()
    fit = Fit(PARTS, covariance_type="full", reg_covar=1e-4, max_iter=12, random_state=0).fit(x)
    means = torch.from_numpy(fit.means_).reshape(-1, 1, SIDE, SIDE)
    return GaussianMixture(PROCESS, torch.from_numpy(fit.weights_), means, torch.from_numpy(fit.covariances_))


def gaussian(reach: int, width: float) -> Tensor:
    """A kernel (2 · reach + 1)² that sums to 1; width: its standard deviation in pixels."""
    line = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * width**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def views(count: int, shape: tuple[int, ...]) -> Any:
    angles = torch.arange(count, dtype=torch.float64) * (math.pi / count)
    return operators.explicit(operators.radon(angles, shape), shape)


def patch_tasks() -> dict[str, Any]:
    shape, keep = (1, SIDE, SIDE), torch.ones(1, SIDE, SIDE)
    keep[:, 4:12, 5:11] = 0
    return {
        "inpainting": operators.mask(keep),
        "super-resolution ×4": operators.average_pool(4),
        "Gaussian deblurring": operators.blur(gaussian(4, 1.5), shape),
        "CT, 6 views": views(6, shape),
    }


# -- digits -------------------------------------------------------------------------------------------------------
def digits(count: int, seed: int) -> Tensor:
    """(count, 1, 8, 8) in [0, 1] of the held-out digits; those of CHOSEN and of any other seed are apart."""
    held_out = SPAN.user(unstir.data.load("digits", split="test").all().double())
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(CHOSEN))
    part = order[:64] if seed == CHOSEN else order[64:]
    if seed != CHOSEN:
        part = part[torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))]
    if count > len(part):
        raise ValueError(f"count={count}: there are {len(part)} digits that nothing was chosen or trained on")
    return held_out[part[:count]]


def bundled() -> Any:
    """The digits network as a model of x̂ and σ̂; nobody asks for gradients of its weights."""
    return unstir.load("digits").requires_grad_(False).on(PROCESS)


def digit_tasks() -> dict[str, Any]:
    shape, keep = (1, 8, 8), torch.ones(1, 8, 8)
    keep[:, 2:6, 2:6] = 0
    return {
        "inpainting": operators.mask(keep),
        "super-resolution ×2": operators.average_pool(2),
        "Gaussian deblurring": operators.blur(gaussian(2, 1.0), shape),
    }


BENCHES = (
    Bench(
        "photographs",
        f"patches of 16 × 16 pixels of real photographs, with the exact denoiser of a mixture of {PARTS} Gaussians fitted to "
        "other patches",
        (1, SIDE, SIDE),
        mixture,
        lambda count, seed: patches("right", count, seed),
        patch_tasks,
        choose=32,
        report=64,
        repeats=3,
    ),
    Bench(
        "digits",
        "8 × 8 digits that were held out, with the bundled network, asked for no class (×4 would leave four pixels)",
        (1, 8, 8),
        bundled,
        digits,
        digit_tasks,
        choose=16,
        report=48,
        repeats=1,
    ),
)
