"""Our models as folders that diffusers opens: model_index.json, unet/, scheduler/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from ...denoiser import Denoiser
from ...process import Table
from ...process.table import label_count

library: Any = diffusers  # whose names are made when they are asked for
PREDICTION_TYPES = {"noise": "epsilon", "data": "sample", "velocity": "v_prediction"}


def save_diffusers(model: Denoiser, folder: str | Path) -> Path:
    """Write a folder that `DDPMPipeline.from_pretrained` (or any pipeline of a bare UNet) opens.

    The network must be a diffusers `UNet2DModel` that is told labels (time="label") and predicts noise,
    data or velocity of a variance-preserving process; a continuous one is written as its 1000 labels.

    Raises ValueError saying what of the model such a folder cannot express.
    """
    from ..folder import _plain

    if not isinstance(model, Denoiser):
        raise TypeError(f"model is {type(model).__name__}; give an unstir.Denoiser")
    network, kind = _plain(model.network), model.prediction.kind  # pyright: ignore[reportArgumentType]
    network = getattr(network, "module", network)
    if not isinstance(network, library.UNet2DModel):
        raise ValueError(f"the network is {type(network).__name__}; a DDPMPipeline holds a diffusers.UNet2DModel")
    if kind not in PREDICTION_TYPES:
        raise ValueError(
            f"predicts={kind!r} has no name in a DDPMScheduler; it can say {', '.join(PREDICTION_TYPES)}: "
            "keep the model as an unstir folder (unstir.save), or train one that predicts one of these"
        )
    if model.time != "label":
        raise ValueError(f"time={model.time!r}: a pipeline tells its network labels 0 … T − 1; only time='label' can be saved")
    if model.clip is not None and model.clip[0] != -model.clip[1]:
        raise ValueError(f"clip={model.clip}: a DDPMScheduler clips symmetrically, to ±clip_sample_range")
    scheduler = library.DDPMScheduler(
        num_train_timesteps=label_count(model.process),
        trained_betas=betas_of(model).tolist(),
        prediction_type=PREDICTION_TYPES[kind],
        clip_sample=model.clip is not None,
        clip_sample_range=1.0 if model.clip is None else model.clip[1],
    )
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise ValueError(f"folder={str(folder)!r} exists and is no pipeline; it will not be written over")
    library.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(str(folder), safe_serialization=True)
    return folder


def betas_of(model: Denoiser) -> Tensor:
    """β_n = 1 − ᾱ_n/ᾱ_{n−1} at the labels; ValueError unless α² + σ² = 1."""
    levels = label_count(model.process)
    t = (torch.arange(levels, dtype=torch.float64) + 1) / levels
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    gap = (alpha**2 + sigma**2 - 1).abs().max()
    if float(gap) > 1e-6:
        raise ValueError(f"the process {model.process!r} is not variance-preserving; a DDPMScheduler knows only α² + σ² = 1")
    bar = model.process.alphas_cumprod if isinstance(model.process, Table) else alpha**2
    return 1 - bar / torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
