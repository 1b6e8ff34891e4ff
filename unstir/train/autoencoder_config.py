"""The options of an autoencoder's training run, in one frozen record; the command line is generated from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .perceptual import KINDS

# Fields that say where and how a run is carried out, but do not change its numbers.
_BOOKKEEPING = ("out", "device", "checkpoint_every", "keep", "log_every", "resume", "override")
WEIGHTS = {"kl": 1e-6, "vq": 1.0}  # of the codes' own loss


@dataclass(frozen=True)
class AutoencoderConfig:
    """Options of `unstir autoencoder`. Schedules are functions of the images seen."""

    data: str = ""
    """A folder of pictures, shards, or an .npy/.npz file; the bundled "digits"."""
    out: Path = Path("out/autoencoder")
    """Folder of the run: log.jsonl, checkpoints/, and the codec folder codec/."""
    size: int | None = None
    """Crop and resize pictures to size × size."""
    channels: int | None = None
    """1 (grey) or 3 (colour); by default what the pictures have."""
    split: Literal["train", "all"] = "train"
    """Train on the train part and validate on the rest, or train on everything."""
    kind: Literal["kl", "vq"] = "kl"
    """A Gaussian law of latents, or a codebook."""
    latent: int = 4
    """Channels of a latent."""
    widths: tuple[int, ...] = (16, 32, 48)
    """Channels of the levels, multiples of 8; each level after the first halves the sides (f = 4 with three)."""
    layers: int = 1
    """Residual blocks a level."""
    codes: int = 256
    """Words of the codebook (vq)."""
    steps: int = 2000
    """Optimiser steps."""
    batch: int = 16
    """Pictures a step."""
    lr: float = 2e-3
    """Peak learning rate of Adam (betas 0.5, 0.9), for both networks."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after its warm-up, to 1 % of the peak (constant: none)."""
    warmup: int = 20
    """Steps over which the learning rate rises linearly."""
    clip: float = 1.0
    """Largest norm of the gradient, of either network."""
    code_weight: float | None = None
    """Weight of the codes' own loss: 1e-6 of the KL divergence, 1 of the codebook's."""
    perceptual: str = "auto"
    """lpips (if its weights are in the cache), pyramid (means over 2 and 4 pixels), none; auto: the first that is there."""
    perceptual_weight: float = 1.0
    """Its weight beside the ℓ1 distance of pixels."""
    gan_weight: float = 0.5
    """Ratio of the discriminator's pull to that of the reconstruction; 0: no discriminator."""
    gan_start: int = 50_001
    """The step from which the discriminator learns and is listened to."""
    gan_layers: int = 3
    """Its layers of stride 2; pictures need 3 · 2^layers pixels."""
    gan_width: int = 64
    """Channels of its first layer."""
    learn_logvar: bool = False
    """Learn the scale s of the reconstruction loss, L/e^s + s (the published code has it, but never trains it: s = 0)."""
    ema: float = 0.0
    """Decay of the weight average, per step (with warm-up); 0 keeps the last weights."""
    flip: bool = True
    """Mirror every second picture, left to right."""
    seed: int = 0
    """Initial weights, data order, flips and noise are functions of it."""
    device: str = "auto"
    """cpu, cuda, mps, …; auto takes CUDA if there is one."""
    checkpoint_every: int = 500
    """Steps between checkpoints (and validations)."""
    keep: int = 2
    """How many checkpoints to keep: the last ones."""
    log_every: int = 20
    """Steps between lines of log.jsonl."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, if there is one: bit for bit as if never stopped."""
    override: bool = False
    """Resume although options or data changed."""

    def check(self) -> None:
        """ValueError for an option that cannot be. (Not in the constructor: the command line would answer with a page.)"""
        for name in ("latent", "layers", "codes", "steps", "batch", "gan_start", "gan_layers", "gan_width", "checkpoint_every",
                     "keep", "log_every"):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
        for name in ("warmup", "perceptual_weight", "gan_weight", "code_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be finite and at least 0")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number > 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} must be at least 0 and below 1")
        for name, known in (("kind", tuple(WEIGHTS)), ("perceptual", KINDS), ("schedule", ("cosine", "linear", "constant")),
                            ("split", ("train", "all"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; one of {', '.join(known)}")

    @property
    def code(self) -> float:
        """The weight of the codes' own loss."""
        return WEIGHTS[self.kind] if self.code_weight is None else self.code_weight

    def identity(self) -> dict[str, Any]:
        """The options that the numbers of the run depend on, JSON-able."""
        found = {name: value for name, value in asdict(self).items() if name not in _BOOKKEEPING}
        return found | {"widths": list(self.widths)}
