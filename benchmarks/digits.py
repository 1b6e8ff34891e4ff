"""The exact denoiser of scikit-learn's digits: a mixture of ten Gaussians fitted to them, and reference trajectories."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import unstir
from unstir.denoiser import GaussianMixture
from unstir.process import Process

RIDGE = 0.05  # standard deviation added to every direction: some pixels never change


def fit(process: Process) -> GaussianMixture:
    """One full-covariance component a class, x = pixel/8 − 1 in 64 dimensions."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images).double() / 8 - 1, torch.as_tensor(labels)
    groups = [x[y == k] for k in range(10)]
    ridge = RIDGE**2 * torch.eye(64, dtype=torch.float64)
    return GaussianMixture(
        process,
        [float(len(g)) for g in groups],
        torch.stack([g.mean(0) for g in groups]),
        torch.stack([torch.cov(g.T) + ridge for g in groups]),
    )


class Fast(nn.Module):
    """The same D as a `GaussianMixture`, in two matrix products: all components' axes side by side.

    Many thousand calls are made on one core; `check` compares it with the library's.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        assert mixture.axes is not None
        self.process, self.shape = mixture.process, mixture.shape
        k, n = mixture.means.shape
        self.k, self.n = k, n
        self.wide = mixture.axes.permute(1, 0, 2).reshape(n, k * n).contiguous()
        self.back = self.wide.T.contiguous()
        self.centre = torch.einsum("kn,knm->km", mixture.means, mixture.axes)
        self.means, self.spectrum, self.log_weights = mixture.means, mixture.spectrum, mixture.log_weights

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        """E[x0 | x_t = x] for a common t; x (B, 64) of any floating type."""
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        r = (x.double() @ self.wide).view(-1, self.k, self.n) - alpha * self.centre
        var = (alpha**2 * self.spectrum + sigma**2).clamp_min(1e-300)
        log_w = self.log_weights - 0.5 * ((r * r / var).sum(2) + var.log().sum(1))
        w = torch.softmax(log_w, 1)
        inner = r * (alpha * self.spectrum / var) * w[:, :, None]
        return (inner.view(-1, self.k * self.n) @ self.back + w @ self.means).to(x.dtype)

    def check(self, mixture: GaussianMixture) -> float:
        """Largest difference from the library's denoiser over a few levels."""
        gaps = []
        for t in (0.0, 1e-3, 0.1, 0.5, 0.9, 1.0):
            x = float(self.process.sigma(t)) * torch.randn(4, self.n, dtype=torch.float64) + 0.1
            gaps.append(float((self(x, t) - mixture(x, t)).abs().max()))
        return max(gaps)


def reference(model: Fast, x: Tensor) -> tuple[Tensor, float]:
    """(end states of the exact trajectories from x at t = 1, RMS gap to a second solver of another family).

    Adams of order 5 in λ with 2000 calls, against stiff fourth-order exponential Runge–Kutta with
    5000, on nodes uniform in λ up to σ̂ = 1e-6, far below the smallest scale of the data (0.05).
    """
    process = model.process
    blank = float(process.alpha(1.0)) == 0
    first = -math.log(1e4) if blank else float(process.logsnr(1.0))

    def run(name: str, n: int, **options: object) -> Tensor:
        lam = torch.linspace(first, math.log(1e6), n + 1, dtype=torch.float64)
        inner = process.time(lam).tolist()[0 if blank else 1 :]
        return unstir.sample(model, unstir.plan(name, process, grid=[1.0, *inner, 0.0], **options), x=x)

    one, two = run("ab-4", 2000, order=5), run("etd-4-stiff", 1000)
    return one, float((one - two).square().mean().sqrt())
