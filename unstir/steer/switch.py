"""Experts for parts of the noise levels: a denoiser that is one model above a log-SNR and another below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoiser.inner import evaluate
from ..process.base import expand
from .guidance import Transform, _needs_process


def switch(models: Mapping[float, Any]) -> Transform:
    """The model whose level was passed last: D' = D_k for λ_k ≤ λ(t) < λ_{k+1} (eDiff-I, 2022; the refiner of SDXL, 2023).

    models: {λ_k: model}, λ the half log-SNR; the model of the smallest λ_k also has all below it. It gives process and
    shape, and all are asked for the same states, so a model of another process is passed as `other.on(process)`.

        both = steer.switch({-math.inf: base, float(base.process.logsnr(0.2)): refiner})   # the refiner from t = 0.2 on

    All get the same keywords; one with conditions of its own is passed as a function of (x, t, **cond) that binds them.
    t may differ from sample to sample. Raises ValueError for no model, a level that is NaN, or processes that differ.
    """
    if not models:
        raise ValueError("models is empty; give {λ: model}, for instance {-math.inf: base, 1.4: refiner}")
    if any(math.isnan(level) for level in models):
        raise ValueError(f"models has the level NaN among {list(models)}; a level is a half log-SNR")
    levels, experts = zip(*sorted(models.items(), key=lambda pair: pair[0]), strict=True)
    _needs_process(experts[0], "switching models")
    process = experts[0].process
    for level, expert in models.items():
        own = getattr(expert, "process", process)
        if own != process:
            raise ValueError(f"models[{level:g}] is of {own!r}, the first of {process!r}; pass it as model.on(process)")
    bounds = torch.tensor(levels[1:], dtype=torch.float64)

    def rule(x: Tensor, t: Tensor | float, ctx: Any, cond: dict[str, Any]) -> Any:
        passed = torch.bucketize(process.logsnr(t).cpu(), bounds, right=True)
        wanted = passed.unique().tolist()
        data = evaluate(experts[wanted[0]], x, t, ctx, cond)
        for k in wanted[1:]:
            data = torch.where(expand(passed == k, x).bool(), evaluate(experts[k], x, t, ctx, cond), data)
        return data

    return Transform(rule, *experts)
