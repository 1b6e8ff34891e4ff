"""What the tests of the ground floor share: every process, the 1-D mixture with its exact flow, an anchored toy."""

from __future__ import annotations

import torch
from torch import Tensor

torch.set_num_threads(1)

import pytest  # noqa: E402

from unstir import process as pr  # noqa: E402
from unstir.denoiser import GaussianMixture  # noqa: E402

BETAS = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)  # the DDPM schedule at T = 100

PROCESSES = {
    "VP": pr.VP(),
    "VP-constant": pr.VP(4.0, 4.0),
    "Cosine": pr.Cosine(),
    "SubVP": pr.SubVP(),
    "VE": pr.VE(),
    "EDM": pr.EDM(),
    "Flow": pr.Flow(),
    "one-sided": pr.OneSided("trigonometric"),
    "betas": pr.from_betas(BETAS),
    "betas-zero-terminal": pr.from_betas(BETAS, zero_terminal_snr=True),
    "shifted-Flow": pr.shifted(pr.Flow(), 3.0),
    "shifted-VP": pr.shifted(pr.VP(), 0.5),
    "shifted-Cosine": pr.shifted(pr.Cosine(), 2.0),
    "shifted-betas": pr.shifted(pr.from_betas(BETAS), 2.0),
}


@pytest.fixture(params=list(PROCESSES))
def process(request: pytest.FixtureRequest) -> pr.Process:
    """Every process, one after the other."""
    return PROCESSES[request.param]


class Mixture:
    """The 1-D mixture of the dossiers. Its probability-flow map is exact: quantiles are kept, x_t = F_t⁻¹(F_T(x_T))."""

    w, mu, s = ([0.25, 0.45, 0.30], [-1.3, 0.2, 1.5], [0.35, 0.25, 0.5])
    start = torch.tensor([[-0.6], [0.9]], dtype=torch.float64)  # the x_T of the golden values

    def model(self, process: pr.Process) -> GaussianMixture:
        return GaussianMixture(process, self.w, self.mu, torch.tensor(self.s, dtype=torch.float64) ** 2)

    def _cdf(self, process: pr.Process, x: Tensor, t: float) -> Tensor:
        a, sigma = process.alpha(t), process.sigma(t)
        w, mu, s = (torch.tensor(v, dtype=torch.float64) for v in (self.w, self.mu, self.s))
        z = (x[..., None] - a * mu) / (a**2 * s**2 + sigma**2).sqrt()
        return (w * 0.5 * torch.erfc(-z / 2**0.5)).sum(-1)

    def flow(self, process: pr.Process, x: Tensor, t: float, to: float) -> Tensor:
        """The exact state at time `to` of the trajectory through x at time t."""
        goal = self._cdf(process, x, t)
        lo, hi = torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        for _ in range(80):
            mid = (lo + hi) / 2
            below = self._cdf(process, mid, to) < goal
            lo, hi = torch.where(below, mid, lo), torch.where(below, hi, mid)
        return (lo + hi) / 2


@pytest.fixture(scope="session")
def mixture() -> Mixture:
    return Mixture()


class Towards(pr.VP):
    """A VP that drifts to an anchor: β = 1 − α. (The anchored processes of the library come later.)"""

    anchored = True

    def beta(self, t: float | Tensor) -> Tensor:
        return -torch.expm1(self._log_alpha(t))


@pytest.fixture(scope="session")
def anchored() -> pr.Process:
    return Towards()
