"""What the restoring systems share: held-out digits, two measurements of them, and decibels.

The prior is the bundled network "digits", which has seen the 1500 training digits and none of the 297 others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import interop
from .._random import normal
from ..data import load
from ..plan import Plan
from ..process import Process
from ..solvers import compile_plan, plan
from ..steer import operators


class Task(NamedTuple):
    """A measurement y = A x + σ_y n of held-out digits x (B, 1, 8, 8)."""

    name: str
    operator: Any
    x: Tensor
    y: Tensor
    noise: float

    @property
    def pinv(self) -> Tensor:
        """A⁺y: what is known without a prior."""
        return self.operator.A_dagger(self.y)

    def psnr(self, x: Tensor) -> float:
        """Mean peak signal-to-noise ratio in dB, 10 log10(2²/MSE), as the values span [−1, 1]."""
        return psnr(x, self.x)


def psnr(x: Tensor, truth: Tensor, span: float = 2.0) -> float:
    """Mean over the samples of 10 log10(span²/MSE), dB."""
    return float((10 * (span**2 / (x - truth).square().flatten(1).mean(1).clamp_min(1e-20)).log10()).mean())


def prior(device: str = "cpu") -> Any:
    """The bundled network of 8 × 8 digits."""
    return interop.load_model("digits", device=device).eval().requires_grad_(False)


def box(size: int = 8, inner: int = 4) -> Tensor:
    """The mask of a picture whose central inner × inner box is missing."""
    keep = torch.ones(size, size)
    first = (size - inner) // 2
    keep[first : first + inner, first : first + inner] = 0
    return keep


def tasks(count: int, noises: tuple[float, ...] = (0.0,), device: str = "cpu") -> list[Task]:
    """The central 4 × 4 box missing, and the means of 2 × 2 blocks, of the first `count` held-out digits."""
    x = load("digits", split="test").all()[:count].to(device)
    made = []
    for noise in noises:
        for name, operator in {"box": operators.mask(box()), "sr": operators.average_pool(2)}.items():
            y = operator.A(x)
            y = y + noise * normal(tuple(y.shape), seed=5, device=device)
            made.append(Task(name, operator, x, y, noise))
    return made


def steep(process: Process, nfe: int, high: float = 7.0, low: float = 0.02) -> Plan:
    """DDIM from σ̂ = high to low with ρ = 5, then to the data."""
    first, last = (float(process.time(-math.log(v))) for v in (high, low))
    nodes = plan("ddim", process, nfe - 1, "karras", first, last, grid_options={"rho": 5.0}).times
    return compile_plan("ddim", process, [*nodes, 0.0])


@lru_cache(maxsize=1)
def judge() -> Callable[[Tensor], Tensor]:
    """A classifier of digits that no method sees: a support vector machine (Gaussian kernel) on the training pixels."""
    from sklearn.svm import SVC

    data = load("digits", split="train")
    assert data.labels is not None
    machine = SVC(gamma=0.064)  # pyright: ignore[reportArgumentType]
    machine.fit(data.all().flatten(1).numpy(), data.labels.numpy())
    return lambda x: torch.as_tensor(np.asarray(machine.predict(x.detach().cpu().flatten(1).numpy())))


def table(found: Mapping[str, Mapping[str, float]]) -> tuple[list[list[Any]], list[str]]:
    """(rows, columns) for `Report.table` from {method: {task: value}}."""
    columns = list(next(iter(found.values())))
    return [[name, *(row.get(c) for c in columns)] for name, row in found.items()], ["method", *columns]
