"""What a run measures of itself, on fixed samples with fixed noise; and whether data and model fit each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..data import Dataset, Fields, Pairs
from ..denoiser import Denoiser
from ..denoiser.parts import accepts, tree
from . import augment, order
from .batch import Conditions
from .config import TrainConfig
from .levels import stratified
from .networks import check_pairs
from .objective import Objective, data_error

_VALIDATION, _BINS = 256, [float(lam) for lam in range(-4, 6)]  # samples, and λ, of the validation


@torch.no_grad()
def validate(model: Denoiser, dataset: Dataset, seed: int = 0) -> dict[str, float]:
    """e₀ = ‖D − x0‖² at fixed λ on fixed samples with fixed noise: {"-4": …, …, "5": …}, as far as the process reaches."""
    low, high = float(model.process.logsnr(1.0)), float(model.process.logsnr(0.0))
    times = {f"{lam:g}": float(model.process.time(lam)) for lam in _BINS if low < lam < high}
    x0, noise, cond, _ = _fixed(model, dataset, seed)
    errors = {}
    for name, t in times.items():
        level = torch.full((_count(dataset),), t, dtype=torch.float64, device=next(model.parameters()).device)
        errors[name] = float(data_error(model, x0, noise, level, **cond).mean())
    return errors


@torch.no_grad()
def objective_error(model: Denoiser, dataset: Dataset, objective: Objective, seed: int = 0) -> float:
    """The objective on the same fixed samples and noise, at stratified levels: of the data alone, without auxiliary losses."""
    x0, noise, cond, present = _fixed(model, dataset, seed)
    plain, t = replace(objective, auxiliary={}), objective.times(model, stratified(_count(dataset), 0.5))
    return float(plain.loss(model, x0, noise, t, cond, present=present)[0])


def _count(dataset: Dataset) -> int:
    return min(_VALIDATION, len(dataset))


def _fixed(model: Denoiser, dataset: Dataset, seed: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """(x0, noise, conditions, present fields)."""
    device, rows = next(model.parameters()).device, range(_count(dataset))
    x0: Any = dataset.batch(rows)[0]
    noise = order.validation_noise(seed, len(rows), dataset.shape, model.process)
    cond = Conditions(model, dataset).at(rows)
    cond |= {"anchor": dataset.anchors(rows)} if isinstance(dataset, Pairs) else {}
    present = dataset.present(rows) if isinstance(dataset, Fields) else {}

    def there(value: Any) -> Any:
        return tree(lambda u: u.to(device), value)

    return there(x0), there(noise), there(cond), there(present)


def check_data(model: Denoiser, dataset: Dataset, objective: Objective, config: TrainConfig) -> None:
    """ValueError unless data, model and options fit each other."""
    if model.shape is not None and model.shape != dataset.shape:
        raise ValueError(f"data has samples of shape {dataset.shape}; the model was made for {model.shape}")
    check_pairs(model.process, dataset)
    Conditions(model, dataset, objective.cond_dropout)
    objective.parts(dataset.shape)
    fields = isinstance(dataset, Fields)
    if config.pairing != "none" and fields:
        raise ValueError(f"pairing={config.pairing!r} is for samples that are one tensor; these have named fields")
    if config.self_conditioning and not model.sees_previous:
        raise ValueError(
            f"self_conditioning={config.self_conditioning} needs a model that sees its estimate: "
            "Denoiser(…, sees_previous=True)"
        )
    if config.augment:
        if fields or len(dataset.shape) != 3:
            raise ValueError(f"augment={config.augment} moves pictures (C, H, W); these samples have shape {dataset.shape}")
        if not accepts(model.network, augment.KEYWORD, any_keyword=True):
            raise ValueError(
                f"augment={config.augment} needs a network that is told: forward(…, {augment.KEYWORD}) of shape (B, "
                f"{augment.LABELS}), zeros by default (nets.AugmentedUNet)"
            )
