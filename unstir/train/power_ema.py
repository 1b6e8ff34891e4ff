"""Power-function averages of the weights, and any other of them reconstructed after training.

    θ̂_γ(n) = (1 − β) θ + β θ̂_γ(n − B),   β = (1 − B/n)^{γ+1}          (n: images seen, B: batch)

weighs the weights of time τ by p(τ) = (γ + 1) τ^γ / n^{γ+1}: the average lengthens with the run and never remembers the
start. γ is told by the relative width of that profile, its standard deviation over n:

    std² = (γ + 1) / ((γ + 2)² (γ + 3))          (std 0.05 → γ = 16.97, 0.10 → 6.94)

Profiles of a few widths, stored now and then, span nearly every other: the weights of a profile p that was never tracked
are Σ x_i θ̂_i with x the least-squares solution of ‖Σ x_i p_i − p‖, and so the best width is chosen after the run.

Source: Analyzing and Improving the Training Dynamics of Diffusion Models, 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Profile(NamedTuple):
    """p(τ) of the average of relative width `std`, at the moment when `images` had been seen."""

    images: float
    std: float


WIDEST = 1 / 12**0.5  # γ = 0: the plain mean of all weights


def exponent(std: float) -> float:
    """γ of a relative width: the largest root of (γ + 2)² (γ + 3) std² = γ + 1.

    Raises ValueError unless 0 < std ≤ 0.2887 (γ ≥ 0).
    """
    if not 0 < std <= WIDEST:
        raise ValueError(f"std={std} must be a relative width in (0, {WIDEST:.4f}]: 0.05 and 0.10 are usual")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(max(roots.real))


def width(gamma: float) -> float:
    """The relative width of γ, the inverse of `exponent`."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


def decay(images: int, batch: int, std: float) -> float:
    """β = (1 − B/n)^{γ+1} at the update after which n images have been seen; 0 at the first."""
    return (1 - batch / images) ** (exponent(std) + 1)


def inner(a: Profile, b: Profile) -> float:
    """⟨p_a, p_b⟩ = ∫ p_a p_b dτ = (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · t_min^{γ_a+γ_b+1} / (t_a^{γ_a+1} t_b^{γ_b+1}).

    With r = t_a/t_b the powers are r^{γ_b}/t_b where t_a < t_b, else r^{−γ_a}/t_a: nothing overflows.
    """
    ga, gb = exponent(a.std), exponent(b.std)
    ratio, longest = a.images / b.images, max(a.images, b.images)
    power = gb if ratio < 1 else -ga
    return (ga + 1) * (gb + 1) * ratio**power / ((ga + gb + 1) * longest)


def combination(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """x of min ‖Σ x_i p_i − p‖², from A x = b with A_ij = ⟨p_i, p_j⟩ and b_i = ⟨p_i, p⟩, scaled to Σ x_i = 1.

    Raises ValueError when nothing is stored, or only from after the moment that is wanted.
    """
    if not stored:
        raise ValueError("stored is empty: the run kept no snapshots of its averages (ema_std, snapshots)")
    if min(p.images for p in stored) > wanted.images:
        raise ValueError(f"the first snapshot is of {min(p.images for p in stored)} images; {wanted.images} were asked for")
    n = wanted.images
    unit = [Profile(p.images / n, p.std) for p in stored]
    matrix = np.array([[inner(a, b) for b in unit] for a in unit])
    right = np.array([inner(a, Profile(1.0, wanted.std)) for a in unit])
    # Neighbouring snapshots are nearly parallel: the smallest singular directions carry rounding, not weights.
    x = np.linalg.lstsq(matrix, right, rcond=1e-12)[0]
    return x / x.sum()
