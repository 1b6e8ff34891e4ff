"""Restoration as one call, `restore(y, physics)`, the form in which deepinv calls its own reconstructions.

A draw from the posterior is off its mean by the posterior's spread. Among S draws that share the network calls of one, the
mean is off by the spread over √S if they are independent. Here they come in pairs of twins, whose noise is the same but
for its sign (`unstir.sample`, index ~i). With z the noise of a run and f(z) its result, a pair gives

    ½ (f(z) + f(−z)),

in which every odd power of z is gone: of a Gaussian posterior, where f is affine, two twins give the mean itself.
(Antithetic variates: A New Monte Carlo Technique: Antithetic Variates, 1956.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._random import mix
from ..plan import Plan, sample
from ..solvers import plan as make_plan
from .operators import is_linear, is_spectral
from .posterior import METHODS, posterior
from .ranges import ValueRange

TOP = 2.0  # σ̂ of the first call


class Reconstructor(nn.Module):
    """x̂ (B, *) = restore(y, physics): an estimate of E[x | y] from the mean of `samples` draws of `steer.posterior`.

    model: a denoiser that knows its process, such as `unstir.load` gives.
    method: one of `METHODS`; None takes "ddrm" for an operator with a singular value decomposition, "pigdm" for another
        linear one, and "dps" for any other.   options: of the method, see `steer.posterior`.
    samples: S, in pairs of twins if twins is true (S = 1 is one draw).
    nfe: network calls for one result, shared by the samples: every one has ⌊nfe/S⌋, in a plan from σ̂ = 2 to 0, σ̂^{1/1.5}
        in equal steps, made for data in about [−1, 1].   plan: another plan, in place of nfe; every sample runs it.
    noise: σ_y in the units of y; None reads it from physics.noise_model.sigma, as deepinv has it, and is 0 without.
    values: the range of the pictures, for y and x̂, beside that of the model's data; deepinv's pictures lie in [0, 1].
    seed: draw s of measurement j depends on (seed, s, j) alone, so not on what else is in the batch.

    `draws` has the samples themselves, whose standard deviation tells how certain the result is (take twins=False for it).
    Raises ValueError or TypeError naming the argument.
    """

    def __init__(
        self,
        model: Any,
        method: str | None = None,
        plan: Plan | None = None,
        *,
        samples: int = 4,
        twins: bool = True,
        nfe: int | None = None,
        noise: float | None = None,
        values: ValueRange = ValueRange(),  # noqa: B008  # immutable
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if getattr(model, "process", None) is None:
            raise TypeError(f"model is {type(model).__name__}, which knows no process; give an unstir.Denoiser")
        if method is not None and method not in METHODS:
            raise ValueError(f"method={method!r} is unknown; one of {', '.join(METHODS)}, or None")
        if method is None and options:
            raise ValueError(f"{next(iter(options))}= is an option of a method; name it, method={'|'.join(METHODS)}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples={samples!r} must be an integer of at least 1")
        if plan is not None and nfe is not None:
            raise ValueError(f"nfe={nfe} has no effect on a given plan of {len(plan)} calls; give a plan or nfe")
        nfe = 50 if nfe is None else nfe
        if plan is None and (isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < samples):
            raise ValueError(f"nfe={nfe!r} must be an integer, at least one call for each of the {samples} samples")
        if noise is not None and not 0 <= noise < math.inf:
            raise ValueError(f"noise={noise} must be finite and at least 0")
        self.model, self.method, self.plan, self.options = model, method, plan, options
        self.samples, self.twins, self.nfe, self.noise, self.values, self.seed = samples, twins, nfe, noise, values, seed

    def forward(self, y: Tensor, physics: Any, **cond: Any) -> Tensor:
        """The mean of the draws, (B, *)."""
        return self.draws(y, physics, **cond).mean(0)

    def draws(self, y: Tensor, physics: Any, **cond: Any) -> Tensor:
        """(samples, B, *), draws 2k and 2k + 1 being twins. cond: keywords of the network; tensors (B, …) go with y."""
        like, count = _like(self.model, y, physics), len(y)
        if (made := physics.A(like)).shape[1:] != y.shape[1:]:
            raise ValueError(
                f"y has shape {tuple(y.shape)}; the physics makes {tuple(made.shape)} of pictures {tuple(like.shape)}"
            )
        posed = self.values.problem(physics, y, _noise(physics) if self.noise is None else self.noise, like)
        many = posed.y.repeat(self.samples, *[1] * (y.ndim - 1))
        method = self.method or ("ddrm" if is_spectral(physics) else "pigdm" if is_linear(physics) else "dps")
        conditional = posterior(self.model, posed.operator, many, method, posed.noise, **self.options)
        numbers = [(s, j) for s in range(self.samples) for j in range(count)]
        x = sample(
            conditional,
            self._plan(method),
            shape=(len(numbers), *like.shape[1:]),
            seed=[mix(self.seed, s // 2 if self.twins else s) for s, _ in numbers],
            index=[~j if self.twins and s % 2 else j for s, j in numbers],
            dtype=like.dtype,
            device=like.device,
            **{name: _repeated(value, count, self.samples) for name, value in cond.items()},
        )
        return self.values.user(x.reshape(self.samples, count, *like.shape[1:]))

    def _plan(self, method: str) -> Plan:
        if self.plan is not None:
            return self.plan
        process = self.model.process
        solver = "ancestral" if method in ("dps", "mcg", "repaint") else "ddim"
        start = min(float(process.time(-math.log(TOP))), 1.0)
        return make_plan(
            solver, process, nfe=self.nfe // self.samples, grid="karras", start=start, end=0.0, grid_options={"rho": 1.5}
        )


def _like(model: Any, y: Any, physics: Any) -> Tensor:
    """A zero (1, *shape) of the picture's form, with the dtype and the device of y."""
    if not isinstance(y, Tensor) or y.ndim < 1 or len(y) < 1:
        raise TypeError(f"y is {getattr(y, 'shape', type(y).__name__)}; give measurements as a tensor (B, …)")
    if not callable(getattr(physics, "A", None)):
        raise TypeError(f"physics is {type(physics).__name__}; it must have a method A(x) (deepinv.physics, steer.operators)")
    shape = getattr(model, "shape", None)
    if shape is None:
        if not hasattr(physics, "A_adjoint"):
            raise ValueError("neither the model (shape) nor the physics (A_adjoint) tells the form of the pictures")
        shape = physics.A_adjoint(y[:1]).shape[1:]
    return torch.zeros(1, *shape, dtype=y.real.dtype if y.is_complex() else y.dtype, device=y.device)


def _noise(physics: Any) -> float:
    """σ_y as deepinv keeps it."""
    sigma = torch.as_tensor(getattr(getattr(physics, "noise_model", None), "sigma", 0.0))
    if bool((sigma != sigma.flatten()[0]).any()):
        raise ValueError(
            f"physics.noise_model.sigma has {sigma.numel()} different values; restore them one by one, or give noise="
        )
    return float(sigma.flatten()[0])


def _repeated(value: Any, count: int, times: int) -> Any:
    fits = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
    return value.repeat(times, *[1] * (value.ndim - 1)) if fits else value
