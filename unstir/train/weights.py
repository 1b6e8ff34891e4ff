"""Loss weights w(λ) in x0 units: what a published loss is as a weight on e₀ = ‖D − x0‖².

λ is the half log-SNR and SNR = e^{2λ} = α²/σ². Two objectives with the same w(λ) p(λ), p the density
of the levels, have the same expectation, whatever their networks predict. Training targets
convert as ‖ε̂ − z‖² = SNR e₀, ‖v̂ − v‖² = (SNR + 1) e₀ on VP paths, ‖û − u‖² = e₀/t² on straight ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._named import named

Weight = Callable[[Tensor], Tensor]


def snr(logsnr: Tensor) -> Tensor:
    """SNR = α²/σ² = e^{2λ}."""
    return torch.exp(2 * logsnr)


def _flow_time(logsnr: Tensor) -> Tensor:
    """The time t = 1/(1 + e^λ) at which straight paths α = 1 − t, σ = t have this λ."""
    return torch.sigmoid(-logsnr)


def data() -> Weight:
    """1: the loss of x0 itself."""
    return torch.ones_like


def noise() -> Weight:
    """SNR: "simple" loss (Denoising Diffusion Probabilistic Models, 2020)."""
    return snr


def velocity() -> Weight:
    """SNR + 1 (Progressive Distillation for Fast Sampling of Diffusion Models, 2022)."""
    return lambda lam: snr(lam) + 1


def flow() -> Weight:
    """1/t² = (1 + e^λ)² (Flow Matching for Generative Modeling, 2023)."""
    return lambda lam: _flow_time(lam) ** -2


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, γ) (Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023)."""
    gamma = _positive("gamma", gamma)
    return lambda lam: snr(lam).clamp_max(gamma)


def soft_min_snr(gamma: float = 5.0) -> Weight:
    """SNR γ/(SNR + γ) (Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers, 2024)."""
    gamma = _positive("gamma", gamma)
    return lambda lam: snr(lam) * gamma / (snr(lam) + gamma)


def max_snr() -> Weight:
    """max(SNR, 1): "truncated SNR" (Progressive Distillation for Fast Sampling of Diffusion Models, 2022)."""
    return lambda lam: snr(lam).clamp_min(1)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """SNR/(k + SNR)^γ (Perception Prioritized Training of Diffusion Models, 2022)."""
    k = _positive("k", k)
    return lambda lam: snr(lam) / (k + snr(lam)) ** gamma


def edm(sigma_data: float = 0.5) -> Weight:
    """(σ̂² + σ_d²)/(σ̂ σ_d)² = SNR + 1/σ_d² (Elucidating the Design Space of Diffusion-Based Generative Models, 2022)."""
    sigma_data = _positive("sigma_data", sigma_data)
    return lambda lam: snr(lam) + sigma_data**-2


def sigmoid(b: float = 2.0) -> Weight:
    """SNR · sigmoid(b − 2λ) (Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation, 2023)."""
    return lambda lam: snr(lam) * torch.sigmoid(b - 2 * lam)


def debiased() -> Weight:
    """√SNR (Debias the Training of Diffusion Models, 2023)."""
    return torch.exp


def cosmap() -> Weight:
    """2/(π (1 − 2t + 2t²)) on the flow loss (Scaling Rectified Flow Transformers, 2024)."""

    def weight(lam: Tensor) -> Tensor:
        t = _flow_time(lam)
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2)) * t**-2

    return weight


def sigma_sqrt() -> Weight:
    """t⁻² on the flow loss, so t⁻⁴ (what trainers call "sigma_sqrt", despite the name)."""
    return lambda lam: _flow_time(lam) ** -4


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "data": data,
    "noise": noise,
    "simple": noise,
    "velocity": velocity,
    "flow": flow,
    "min-snr": min_snr,
    "soft-min-snr": soft_min_snr,
    "max-snr": max_snr,
    "p2": p2,
    "edm": edm,
    "sigmoid": sigmoid,
    "debiased": debiased,
    "cosmap": cosmap,
    "sigma-sqrt": sigma_sqrt,
}


def weight(text: str) -> Weight:
    """The weight named by `text`, for instance "min-snr" or "min-snr:3"."""
    return named("weight", text, WEIGHTS)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name}={value} must be > 0")
    return value
