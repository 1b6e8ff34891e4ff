"""From options to a model folder: what `unstir train` does."""

from __future__ import annotations

from pathlib import Path

from .. import data
from .config import TrainConfig
from .networks import build_model
from .progress import bar
from .trainer import Result, fit


def train(config: TrainConfig, *, show: bool = True) -> Result:
    """Loads the data, builds the network, trains it, and writes the model folder `config.out`/model.

    show: a progress bar on the terminal. After Ctrl-C the model so far is written, too, and
    `result.interrupted` is true. Errors are those of `data.load`, `build_model` and `fit`.
    """
    from ..interop import save_model  # interop reads models, so it knows train; not the other way round at import

    config.check()
    options = {"size": config.size, "channels": config.channels, "labels": config.labels}
    training = data.load(config.data, **options, split=config.split)
    validation = data.load(config.data, **options, split="test") if config.split == "train" else training
    model = build_model(
        training,
        process=config.process,
        predicts=config.predicts,
        conditional=config.conditional,
        preset=config.preset,
        seed=config.seed,
    )
    if show:
        with bar(config.steps, f"train {config.data}") as listener:
            result = fit(model, training, config, validation=validation, progress=listener)
    else:
        result = fit(model, training, config, validation=validation)
    save_model(result.model, Path(config.out) / "model")
    return result
