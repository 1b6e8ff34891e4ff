"""What a raw network output means, as one table.

Every kind of prediction is a line through the state x and the data prediction D:

    R · raw = P x + Q D          (all of P, Q, R finite at σ = 0 and at α = 0)

so raw = p x + q D with p = P/R, q = Q/R, and D = m x + n raw with m = −P/Q, n = R/Q. Training
targets are the same line at D = x0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..process import FRAMES, Process

Line = tuple[Tensor, Tensor, Tensor]


def _data(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    return torch.zeros_like(alpha), torch.ones_like(alpha), torch.ones_like(alpha)


def _noise(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    return torch.ones_like(alpha), -alpha, sigma


def _velocity(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    return alpha, -(alpha**2 + sigma**2), sigma


def _flow(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    return torch.ones_like(alpha), -(alpha + sigma), sigma


def _score(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    return -torch.ones_like(alpha), alpha, sigma**2


def _shift(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    return torch.ones_like(alpha), -torch.ones_like(alpha), torch.ones_like(alpha)


def _edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Line:
    # D = c_skip x̂ + c_out raw in the state x = α x̂; s² = σ² + α² σ_d² is the variance of x.
    s2 = sigma**2 + (alpha * sigma_data) ** 2
    return -alpha * sigma_data**2 / s2, torch.ones_like(alpha), sigma * sigma_data / s2.sqrt()


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], Line]] = {
    "data": _data,  # raw = x0
    "noise": _noise,  # raw = z
    "velocity": _velocity,  # raw = α z − σ x0
    "flow": _flow,  # raw = z − x0
    "score": _score,  # raw = −z/σ
    "shift": _shift,  # raw = x − x0
    "edm": _edm,  # raw = F of Elucidating the Design Space …, 2022
}


class Prediction:
    """One kind of prediction: pairs between the raw output, the state and the data prediction."""

    def __init__(self, kind: str, sigma_data: float = 0.5) -> None:
        if kind not in PREDICTIONS:
            raise ValueError(f"predicts={kind!r} is unknown; one of {', '.join(PREDICTIONS)}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data={sigma_data} must be > 0, the standard deviation of the data")
        self.kind, self.sigma_data = kind, float(sigma_data)

    def line(self, alpha: Tensor, sigma: Tensor) -> Line:
        """(P, Q, R) of R · raw = P x + Q D."""
        return PREDICTIONS[self.kind](alpha, sigma, self.sigma_data)

    def encode(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of raw = p x + q D; infinite at σ = 0 for kinds that divide by it."""
        p, q, r = self.line(alpha, sigma)
        return p / r, q / r

    def decode(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(m, n) of D = m x + n raw. Infinite for noise and score at α = 0: they say nothing of x0 there."""
        p, q, r = self.line(alpha, sigma)
        return -p / q, r / q

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor | None:
        """c_in, by which the network's input is multiplied ("edm" only: unit variance)."""
        if self.kind != "edm":
            return None
        return (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()

    def __repr__(self) -> str:
        return f"Prediction({self.kind!r})"


def frame_of(process: Process, predicts: str, sees_anchor: bool, frame: str | None) -> str:
    """The frame of a denoiser's network, checked."""
    if not process.anchored and frame is None:
        return "raw"
    frame = frame or ("raw" if predicts in ("data", "shift") else "centred")
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r} must be one of {', '.join(FRAMES)}")
    if frame != "raw" and not (process.anchored and sees_anchor):
        raise ValueError(
            f"frame={frame!r} (the default for predicts={predicts!r} on an anchored process) takes the anchor off the state: "
            "it needs an anchored process and sees_anchor=True; without the anchor predict 'data' or 'shift'"
        )
    if frame == "raw" and process.anchored and predicts in ("noise", "score"):
        raise ValueError(f"predicts={predicts!r} needs frame='centred' or 'residual': the raw state contains β y")
    return frame
