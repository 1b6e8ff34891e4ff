"""Plans as samplers with the signature of k-diffusion's and ComfyUI's: sampler(model, x, sigmas, ...) -> x.

There a state is x = x0 + σ z and model(x, σ · ones, **extra_args) is the denoised picture: α = 1, the
EDM process with σ_max = sigmas[0]. The nodes are the sigmas, which may end above 0.

    sample = sampler("dpmpp-3m")
    x = sample(model, x, sigmas, extra_args={"cond": c})
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..plan.execute import steps
from ..process import EDM, Flow, Process
from ..solvers import compile_plan, find

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def sampler(name: str, *, flow: bool = False, **options: Any) -> Callable[..., Tensor]:
    """The solver `name` as a sampler function; options are the solver's, such as eta=0.5.

    flow: the model is of a flow, x = (1 − σ) x0 + σ z with σ ≤ 1 (ComfyUI passes such sigmas for SD3 and Flux).
    A solver of several calls a step takes them all in every step, as k-diffusion's do.
    """
    entry = find(name)

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        """The end state. callback({x, i, sigma, sigma_hat, denoised}) is called once a step; `disable` has no effect.

        noise_sampler(sigma, sigma_next) gives the noise of a stochastic solver; by default it is torch.randn_like(x).
        """
        levels = _levels(sigmas, flow)
        if len(levels) < 2:
            return x
        process: Process = Flow() if flow else EDM(min(0.002, levels[0] / 2), levels[0])
        times = levels if flow else [level / levels[0] for level in levels]
        plan = compile_plan(entry.name, process, times, **options)
        step_of = {i: n for n, i in enumerate(j for j in range(len(plan.rows)) if j == 0 or plan.rows[j - 1].boundary)}
        extra, row = extra_args or {}, 0

        def denoise(state: Tensor, t: float) -> Tensor:
            sigma = float(process.sigma(t))
            denoised = model(state, state.new_full((len(state),), sigma), **extra)
            if callback is not None and row in step_of:
                level = sigmas[step_of[row]]
                callback({"x": state, "i": step_of[row], "sigma": level, "sigma_hat": level, "denoised": denoised})
            return denoised

        def noise(number: int) -> Tensor:
            if noise_sampler is None:
                return torch.randn_like(x)
            here, there = (float(process.sigma(u)) for u in (plan.rows[number].t, plan.rows[number].to))
            return noise_sampler(sigmas.new_tensor(here), sigmas.new_tensor(there))

        for step in steps(denoise, plan, x, noise=noise):
            row, x = step.index + 1, step.x
        return x

    sample.__name__ = f"sample_{entry.name.replace('-', '_')}"
    return sample


def _levels(sigmas: Tensor, flow: bool) -> list[float]:
    levels = [float(s) for s in sigmas.double().flatten()]
    if any(b >= a for a, b in pairwise(levels)) or (levels and levels[-1] < 0):
        raise ValueError(f"sigmas={levels} must decrease strictly and end at 0 or above")
    if flow and levels and levels[0] > 1:
        raise ValueError(f"sigmas[0]={levels[0]} of a flow must be at most 1")
    return levels
