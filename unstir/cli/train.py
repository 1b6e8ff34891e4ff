"""`unstir train`: the options of `unstir.train.TrainConfig` as a command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..train import TrainConfig, train
from . import INTERRUPTED, show


@dataclass(frozen=True)
class Options(TrainConfig):
    """Fit a network to data and write a model folder; Ctrl-C writes a checkpoint, --resume goes on from it.

    unstir train digits --steps 2000 --out out/train

    unstir train --pairs LQ GT --process mean-reverting --size 64 --out out/restorer
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """Bundled name ("digits"), a folder of pictures, or an .npy/.npz file."""


def run(options: Options) -> int:
    """Carries out `unstir train`."""
    result = train(options)
    show.say(
        f"{result.steps} steps, {result.images} images in {result.seconds:.0f} s; validation loss {result.loss:.4f}"
        + (f"; {result.skipped} steps were not finite and were left out" if result.skipped else "")
    )
    if options.pairs:
        show.say(result.model.meta["data"])  # with what was skipped
    show.wrote(Path(options.out) / "model", Path(options.out) / "log.jsonl")
    if result.interrupted:
        print(f"unstir: stopped at step {result.steps} of {options.steps}; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    return 0
