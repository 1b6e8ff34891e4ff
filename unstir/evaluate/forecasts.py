"""How good an ensemble is as a forecast of one number: the continuous ranked probability score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def crps(ensemble: Any, truth: Any, *, fair: bool = True) -> Tensor:
    """CRPS of m members x_i, ensemble (m, *), for the truth y (*), entry by entry in float64, in the unit of the data:

        mean_i |x_i − y| − Σ_{i<j} |x_i − x_j| / (m(m − 1))          fair: unbiased in m
        mean_i |x_i − y| − Σ_{i<j} |x_i − x_j| / m²                  not fair: of the empirical distribution itself

    0 for a certain and right forecast, the absolute error for a certain one. The sum is taken over sorted members,
    Σ_{i<j} |x_i − x_j| = Σ_i (2i − m + 1) x_(i), i = 0 … m − 1. The fair form may be compared between ensembles of
    different sizes. Sources: Strictly Proper Scoring Rules, Prediction, and Estimation, 2007; Fair Scores for
    Ensemble Forecasts, 2014.
    """
    x, y = _checked(ensemble, truth)
    m = len(x)
    order = x.sort(0).values
    weight = (2 * torch.arange(m, dtype=torch.float64) - m + 1).view(-1, *[1] * y.ndim)
    spread = (weight * order).sum(0) / (m * (m - 1) if fair else m * m)
    return (x - y).abs().mean(0) - spread


def quantile_loss(ensemble: Any, truth: Any, levels: int = 9) -> float:
    """The score of forecasting tables ("mean weighted quantile loss"), over the quantiles q = 1/(levels + 1), …:

        mean_q  2 Σ (y − x_q)(q − 1[y < x_q]) / Σ |y|

    CRPS approximated from a few quantiles, relative to the size of the data: no number to set beside `crps`.
    """
    x, y = _checked(ensemble, truth)
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"levels={levels!r} must be a whole number of quantiles, at least 1")
    total = y.abs().sum()
    if total == 0:
        raise ValueError("truth is 0 everywhere, and the quantile loss is relative to its size; use crps")
    q = torch.arange(1, levels + 1, dtype=torch.float64) / (levels + 1)
    error = y - x.quantile(q, dim=0)
    q = q.view(-1, *[1] * y.ndim)
    loss = 2 * torch.where(error < 0, error * (q - 1), error * q)
    return float(loss.flatten(1).sum(1).mean() / total)


def _checked(ensemble: Any, truth: Any) -> tuple[Tensor, Tensor]:
    x, y = torch.as_tensor(ensemble).detach().cpu().double(), torch.as_tensor(truth).detach().cpu().double()
    if x.ndim != y.ndim + 1 or x.shape[1:] != y.shape:
        raise ValueError(f"ensemble has shape {tuple(x.shape)} and truth {tuple(y.shape)}; give (m, *) members for a truth (*)")
    if len(x) < 2:
        raise ValueError(f"ensemble has {len(x)} member; at least 2 are needed (of one, report the absolute error)")
    for name, value in (("ensemble", x), ("truth", y)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} contains NaN or infinite values")
    return x, y
