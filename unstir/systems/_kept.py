"""What is trained once and kept: a file of tensors that a run makes, unless it is there already."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import train
from .._files import read_tensors, write_tensors
from ..train.progress import Listener

Fit = Callable[[Path, Listener], train.Result]


def once(
    path: Path, steps: int, fit: Fit, weights: Callable[[Any], Mapping[str, Tensor]] | None = None, title: str | None = None
) -> dict[str, Tensor]:
    """The tensors of `path` (.safetensors), which fit(folder, progress) makes in `steps` steps where they are missing.

    fit: calls `train.fit` with resume=True, so that a run that was stopped goes on where it stopped; its folder lies beside
        `path`, and goes when the run has ended.
    weights: what is kept of the averaged network; by default all of it.   title: of the progress bar.
    """
    if not path.exists():
        folder = path.with_suffix(".run")
        with train.bar(steps, title or path.stem) as progress:
            run = fit(folder, progress)
        if run.interrupted:
            raise KeyboardInterrupt
        network: Any = run.model.network
        write_tensors(path, network.state_dict() if weights is None else weights(network))
        shutil.rmtree(folder)
    return read_tensors(path)
