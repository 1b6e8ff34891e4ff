"""What a run measures of itself, on fixed samples with fixed noise; and whether data and model fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import Buckets, Dataset, Fields, Pairs, parts_of
from ..denoiser import Denoiser
from ..denoiser.parts import accepts, tree
from . import augment, order
from .batch import Conditions
from .config import TrainConfig
from .levels import stratified
from .networks import check_pairs
from .objective import Objective

_VALIDATION, _BINS = 256, [float(lam) for lam in range(-4, 6)]  # samples, and λ, of the validation


class Fixed(NamedTuple):
    """Fixed samples of one shape, their noise, and what the network and the loss are told of them."""

    x0: Any
    noise: Any
    cond: dict[str, Any]
    present: dict[str, Any]
    count: int


@torch.no_grad()
def validate(model: Denoiser, dataset: Dataset | Buckets, seed: int = 0) -> dict[str, float]:
    """e₀ = ‖D − x0‖² at fixed λ on fixed samples with fixed noise: {"-4": …, …, "5": …}, as far as the process reaches.

    Of dict samples the sum over the fields that a sample has. Of buckets the mean over the samples of all of them: each
    gives as many as is its share of the pictures, at least one.
    """
    low, high = float(model.process.logsnr(1.0)), float(model.process.logsnr(0.0))
    times = {f"{lam:g}": float(model.process.time(lam)) for lam in _BINS if low < lam < high}
    fixed, plain = _fixed(model, dataset, seed), Objective()
    device = next(model.parameters()).device
    levels = {name: [torch.full((f.count,), t, dtype=torch.float64, device=device) for f in fixed] for name, t in times.items()}
    return {name: _mean(model, plain, fixed, own, "data_error") for name, own in levels.items()}


@torch.no_grad()
def objective_error(model: Denoiser, dataset: Dataset | Buckets, objective: Objective, seed: int = 0) -> float:
    """The objective on the same fixed samples and noise, at stratified levels: of the data alone, without auxiliary losses."""
    fixed, plain = _fixed(model, dataset, seed), replace(objective, auxiliary={})
    counts = [f.count for f in fixed]
    u = stratified(sum(counts), 0.5)
    if len(fixed) > 1:  # every bucket gets levels of all kinds
        u = u[torch.randperm(len(u), generator=torch.Generator().manual_seed(0))]
    return _mean(model, plain, fixed, [objective.times(model, own) for own in u.split(counts)], "loss")


def _mean(model: Denoiser, objective: Objective, fixed: Sequence[Fixed], levels: Sequence[Tensor], what: str) -> float:
    """The mean over all samples of one of the loss's numbers a sample."""
    found = [
        objective.loss(model, f.x0, f.noise, t, f.cond, present=f.present)[1][what] for f, t in zip(fixed, levels, strict=True)
    ]
    return float(torch.cat(found).mean())


def _fixed(model: Denoiser, dataset: Dataset | Buckets, seed: int) -> list[Fixed]:
    """The first samples of every data set of one shape."""
    device, fixed, first = next(model.parameters()).device, [], 0

    def there(value: Any) -> Any:
        return tree(lambda u: u.to(device), value)

    for part in parts_of(dataset):
        rows = range(min(len(part), max(1, round(_VALIDATION * len(part) / len(dataset)))))
        x0: Any = part.batch(rows)[0]
        noise = order.validation_noise(seed, len(rows), part.shape, model.process, first)
        cond = Conditions(model, part).at(rows)
        cond |= {"anchor": part.anchors(rows)} if isinstance(part, Pairs) else {}
        present = part.present(rows) if isinstance(part, Fields) else {}
        fixed.append(Fixed(there(x0), there(noise), there(cond), there(present), len(rows)))
        first += len(rows)
    return fixed


def check_data(model: Denoiser, source: Dataset | Buckets, objective: Objective, config: TrainConfig) -> None:
    """ValueError unless data, model and options fit each other."""
    parts = parts_of(source)
    if model.shape is not None and model.shape not in [part.shape for part in parts]:
        raise ValueError(f"data has samples of shape {source.shape}; the model was made for {model.shape}")
    for part in parts:
        _check_part(model, part, objective, config)


def _check_part(model: Denoiser, dataset: Dataset, objective: Objective, config: TrainConfig) -> None:
    check_pairs(model.process, dataset)
    Conditions(model, dataset, objective.cond_dropout)
    objective.parts(dataset.shape)
    fields = isinstance(dataset, Fields)
    if config.pairing != "none" and fields:
        raise ValueError(f"pairing={config.pairing!r} is for samples that are one tensor; these have named fields")
    pictures = [own for own in (dataset.shape.values() if fields else [dataset.shape]) if len(own) > 2]
    if config.flip and not pictures:
        raise ValueError(f"flip=True mirrors pictures (C, H, W); these samples have shape {dataset.shape}")
    given, null = dataset.conditions([0]), model.meta.get("null", {})
    for name, value in given.items():
        if value.is_floating_point() and type(null.get(name)) is int:
            raise ValueError(
                f"{name!r} is not of whole numbers, and its null {null[name]} is one, as of classes: write {float(null[name])}"
            )
    if config.flip or config.augment:
        for name, value in (given | dataset.targets([0])).items():
            if any(value.shape[1:][1 - len(own) :] == own[1:] for own in pictures):  # with channels or without
                what = "flip=True" if config.flip else f"augment={config.augment}"
                raise ValueError(
                    f"{what} moves the samples and not {name!r} beside them, which are pictures too; "
                    "put the moved copies of both into the data instead"
                )
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


def check_validation(model: Denoiser, dataset: Dataset | Buckets, validation: Dataset | Buckets) -> None:
    """ValueError unless these samples can be measured as those of `dataset` are learned."""
    known, given = dataset.shape, validation.shape
    # Buckets may have other sides: the network takes many.
    if known[0] != given[0] if isinstance(dataset, Buckets) and isinstance(given, tuple) else known != given:
        raise ValueError(f"validation has samples of shape {given}; the data has {known}")
    own, learned = (sorted(Conditions(model, parts_of(part)[0]).names) for part in (validation, dataset))
    if own != learned:
        raise ValueError(
            f"validation has the conditions {', '.join(own) or 'none'}; the data has {', '.join(learned) or 'none'}"
        )
    if isinstance(validation, Pairs) != isinstance(dataset, Pairs):
        raise ValueError("validation and data must both be pairs, or neither")


def check_shapes(model: Denoiser, *sources: Dataset | Buckets) -> None:
    """Data of several shapes: the network is tried on one sample of each. ValueError for one that it cannot take."""
    if not any(isinstance(source, Buckets) for source in sources):
        return
    tried = {part.shape: part for source in sources for part in parts_of(source)}
    training, device = model.training, next(model.parameters()).device
    model.eval()
    for shape, part in tried.items():
        check_shape(model, shape, {name: value.to(device) for name, value in Conditions(model, part).at([0]).items()})
    model.train(training)


@torch.no_grad()
def check_shape(model: Denoiser, shape: tuple[int, ...], cond: Mapping[str, Tensor]) -> None:
    """ValueError unless the network of a model in evaluation mode takes a sample of this shape."""
    try:
        model(torch.zeros(1, *shape, device=next(model.parameters()).device), 0.5, **cond)
    except Exception as error:  # each network has its own way to say what it cannot divide
        config = getattr(model.network, "config", {})
        levels = config.get("down_block_types", ()) if isinstance(config, Mapping) else ()
        wanted = f"that are multiples of {2 ** (len(levels) - 1)}" if len(levels) > 1 else "that it can divide"
        said = " ".join(str(error).split())
        raise ValueError(f"the network cannot take samples of shape {shape}: {said}; give sides {wanted}") from None
