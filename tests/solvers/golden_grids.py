"""The grids of the dossiers' golden values: 6 steps of linear VP from t = 1 to 0.01."""

import torch

from unstir.process import VP

PROCESS = VP(0.1, 20.0)
START, END = 1.0, 0.01


def nodes(count: int, to=None, back=None) -> list[float]:
    """count + 1 times from START to END, uniform in λ or in to(t)."""
    to, back = to or PROCESS.logsnr, back or PROCESS.time
    ends = to(torch.tensor([START, END], dtype=torch.float64))
    times = back(torch.linspace(float(ends[0]), float(ends[1]), count + 1, dtype=torch.float64)).tolist()
    return [START, *times[1:-1], END]


def quadratic(count: int) -> list[float]:
    return nodes(count, lambda t: t.sqrt(), lambda s: s**2)


def rho_seventh(count: int) -> list[float]:
    return nodes(count, lambda t: PROCESS.noise_ratio(t) ** (1 / 7), lambda s: PROCESS.time(-7 * s.log()))


def uniform(count: int) -> list[float]:
    return nodes(count, lambda t: t, lambda t: t)
