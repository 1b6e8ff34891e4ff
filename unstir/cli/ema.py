"""`unstir ema`: the power-function average of any length out of the snapshots of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .. import data
from ..interop import load_model, save_model
from ..train import posthoc, run_file, validate
from ..train.config import TrainConfig, device_of
from . import show


@dataclass(frozen=True)
class Options:
    """Make the weight average of another length after a run, without training again.

    unstir ema out/train --std 0.1 --out out/train/model-0.1

    unstir ema out/train --std 0.03 0.05 0.1 0.15 0.2

    The run must have tracked two lengths: unstir train … --ema-std 0.05 0.10
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    std: tuple[float, ...] = (0.1,)
    """Lengths of the average, as its width relative to the run; of several the one with the lowest validation error is kept."""
    images: int | None = None
    """The moment, in images seen; by default the end of the run."""
    out: Path | None = None
    """Folder of the model; by default RUN/model-STD."""
    device: str = "auto"
    """cpu, cuda, …; auto takes CUDA if there is one."""

    def __post_init__(self) -> None:
        if not self.std:
            raise ValueError("--std needs at least one number, for instance 0.1")


def run(options: Options) -> int:
    """Carries out `unstir ema`."""
    folder = Path(options.run)
    model = load_model(folder, device=device_of(options.device))
    options_file = folder / run_file.NAME
    config = TrainConfig(**run_file.read(options_file)) if options_file.is_file() else None
    unseen = _unseen(config)
    rows, best, lowest = [], None, float("inf")
    for std in options.std:
        made = posthoc(model, folder, std, options.images)
        errors = validate(made, unseen, config.seed) if unseen is not None and config is not None else {}
        mean = sum(errors.values()) / len(errors) if errors else None
        rows.append((f"{std:g}", mean, errors.get("-2"), errors.get("0"), errors.get("2")))
        if best is None or (mean is not None and mean < lowest):
            best, lowest, kept = made, mean if mean is not None else lowest, std
    assert best is not None
    if unseen is not None:
        columns = ("std", "mean error>", "λ = −2>", "λ = 0>", "λ = 2>")
        show.table(rows, columns, title=f"validation ‖D − x0‖² of {unseen.name}")
    elif len(options.std) > 1:
        raise ValueError(
            f"{options_file} is missing, so there is no validation data to choose among {len(options.std)} lengths"
        )
    out = options.out or folder / f"model-{kept:g}"
    best.meta = dict(best.meta) | {"ema_std": kept}
    save_model(best, out)
    show.wrote(out)
    return 0


def _unseen(config: TrainConfig | None) -> data.Dataset | None:
    """The data that the run validated on; None if it is gone, or unknown."""
    if config is None:
        return None
    cut: dict[str, Any] = {"size": config.size, "channels": config.channels}
    part = "test" if config.split == "train" else "all"
    try:
        if config.pairs:
            return data.load_pairs(config.pairs, **cut, split=part)
        return data.load(config.data, **cut, labels=config.labels, split=part)
    except (ValueError, ImportError):
        return None
