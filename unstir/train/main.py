"""From options to a model folder: what `unstir train` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import data
from .config import TrainConfig
from .networks import build_model
from .progress import bar
from .trainer import Result, fit


def train(config: TrainConfig, *, show: bool = True) -> Result:
    """Loads the data, builds the network, trains it, and writes the model folder `config.out`/model.

    show: a progress bar on the terminal, and what was skipped of pairs. After Ctrl-C the model so far is written, too, and
    `result.interrupted` is true. Errors are those of `data.load`, `build_model` and `fit`.
    """
    from ..interop import save_model  # interop reads models, so it knows train; not the other way round at import

    config.check()
    training, validation = _load(config)
    model = build_model(
        training,
        process=config.process,
        predicts=config.predicts,
        conditional=config.conditional,
        preset=config.preset,
        seed=config.seed,
    )
    if show:
        with bar(config.steps, f"train {config.data or config.pairs[0]}") as listener:
            result = fit(model, training, config, validation=validation, progress=listener)
    else:
        result = fit(model, training, config, validation=validation)
    save_model(result.model, Path(config.out) / "model")
    return result


def _load(config: TrainConfig) -> tuple[data.Dataset, data.Dataset]:
    """(data to train on, data to validate on)."""
    if config.pairs:
        pairs: dict[str, Any] = {"size": config.size, "channels": config.channels}
        training = data.load_pairs(config.pairs, **pairs, split=config.split)
        return training, data.load_pairs(config.pairs, **pairs, split="test") if config.split == "train" else training
    options: dict[str, Any] = {"size": config.size, "channels": config.channels, "labels": config.labels}
    training = data.load(config.data, **options, split=config.split)
    return training, data.load(config.data, **options, split="test") if config.split == "train" else training
