"""The options of a training run, in one frozen record; the command line is generated from it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from .objective import Objective
from .power_ema import exponent

# Fields that say where and how a run is carried out, but do not change its numbers.
_BOOKKEEPING = (
    *("out", "device", "checkpoint_every", "keep", "keep_best", "log_every", "log_to", "resume", "override"),
    *("workers", "strategy", "accumulate", "compile", "save_memory"),
)


@dataclass(frozen=True)
class TrainConfig:
    """Options of `unstir train`. Counts of steps are batches; all schedules are functions of the images seen."""

    data: str = ""
    """Bundled name ("digits"), a folder of pictures, or an .npy/.npz file."""
    pairs: tuple[str, ...] = ()
    """Instead of DATA, for restoration: LQ GT, two folders with equal names (pictures, sounds) or .npy files; or one .npz."""
    out: Path = Path("out/train")
    """Folder of the run: log.jsonl, checkpoints/, and the model folder model/."""
    size: int | None = None
    """Crop and resize pictures to size × size (pairs: cut them into such windows, without resizing)."""
    buckets: int = 0
    """Keep a folder's pictures upright or wide: sizes of about size² (512²) pixels, sides multiples of so many; 0: off."""
    channels: int | None = None
    """1 (grey) or 3 (colour); by default what the pictures have."""
    labels: str = "auto"
    """Class labels: auto (subfolders, labels.csv, y of an .npz), none, or the path of a CSV or .npy."""
    split: Literal["train", "all"] = "train"
    """Train on the train part and validate on the rest, or train on everything."""
    steps: int = 2000
    """Optimiser steps."""
    batch: int = 128
    """Images per step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW (betas 0.9, 0.99)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after its warm-up, to 1 % of the peak (constant: none)."""
    warmup: int = 100
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Initial weights, data order, noise and levels are functions of it."""
    process: Literal[
        "vp", "cosine", "subvp", "ve", "edm", "flow", "mean-reverting", "resshift", "rddm", "bridge", "ouve"
    ] = "vp"  # fmt: skip
    """The forward process; those from mean-reverting on are for pairs."""
    predicts: Literal["data", "noise", "velocity", "flow", "score", "edm"] = "edm"
    """What the network outputs."""
    weight: str = "raw"
    """Loss weight w(λ) in x0 units: raw (the prediction's own), noise, velocity, flow, edm, min-snr:5, p2:1,1, …"""
    levels: str = "uniform"
    """Density of noise levels: uniform, uniform-logsnr, lognormal:-1.2,1.2, logitnormal:0,1, cosmap."""
    ema: float = 0.999
    """Decay of the weight average, per step (with warm-up); 0 keeps the last weights."""
    ema_half_life: int = 0
    """Half-life of the weight average in images; replaces the decay if positive."""
    ema_std: tuple[float, ...] = ()
    """Relative widths of power-function averages to track as well; `posthoc` makes any other of two of them (0.05 0.10)."""
    snapshots: int = 64
    """How many times in the run their snapshots are stored."""
    pairing: Literal["none", "ot"] = "none"
    """Which noise goes with which image of a batch: any, or the pairing of least total squared distance."""
    flip: bool = False
    """Mirror every second picture, left to right."""
    augment: float = 0.0
    """Share of pictures that are mirrored, turned by 90°, moved by pixels (each on its own), and the network told; say 0.12."""
    self_conditioning: float = 0.0
    """Share of images for which the network sees its own first estimate, say 0.5; the sampler hands on that of the last row."""
    uncertainty: Literal["none", "levels", "tasks"] = "none"
    """Learned weights that make all noise levels (levels), or all parts of the loss (tasks), count alike."""
    conditional: bool = True
    """Learn the classes, if the data has any."""
    cond_dropout: float = 0.1
    """Share of images trained without their class, for guidance and for unconditional sampling."""
    preset: Literal[
        "tiny", "small", "base", "large", "dit-tiny", "dit-small", "dit-base", "dit-large",
        "switch-dit-tiny", "switch-dit-small", "switch-dit-base", "switch-dit-large",
    ] = "small"  # fmt: skip
    """Size of the built-in network."""
    device: str = "auto"
    """cpu, cuda, mps, …; auto takes CUDA if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast of the network; auto is bfloat16 on CUDA and float32 elsewhere. Weights stay float32."""
    accumulate: int = 1
    """Compute a batch in so many parts, one after the other, to save memory."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: keep all weights in every process, or cut them in parts."""
    compile: bool = False
    """Compile the network with torch.compile."""
    save_memory: bool = False
    """Compute activations anew in the backward pass (diffusers networks)."""
    workers: int = 1
    """Threads that read data ahead; 0 reads when it is needed. The numbers do not depend on it."""
    checkpoint_every: int = 500
    """Steps between checkpoints (and validations)."""
    keep: int = 2
    """How many checkpoints to keep: the last ones."""
    keep_best: int = 0
    """And so many of those with the lowest validation objective."""
    log_every: int = 10
    """Steps between lines of the log."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Loggers beside log.jsonl."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, if there is one: bit for bit as if never stopped."""
    override: bool = False
    """Resume although options or data changed."""

    def check(self) -> None:
        """ValueError for an option that cannot be. `fit` and `train` ask first of all.

        (Not in the constructor: there, the command line would answer with a page instead of a line.)
        """
        if bool(self.data) == bool(self.pairs):
            raise ValueError("give either DATA (a name, a folder or a file) or --pairs LQ GT")
        if self.pairs and self.pairing != "none":
            raise ValueError(f"pairing={self.pairing!r} pairs noise with samples that are free; with --pairs they are not")
        for name in ("steps", "batch", "checkpoint_every", "keep", "log_every", "accumulate", "snapshots"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
        for name in ("workers", "keep_best", "buckets"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 0")
        if self.buckets and self.pairs:
            raise ValueError(f"buckets={self.buckets} is for a folder of pictures; pairs are cut into windows (size)")
        if self.buckets > (512 if self.size is None else self.size):
            raise ValueError(f"buckets={self.buckets} is more than a side of the square, size={self.size or 512}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of accumulate={self.accumulate}")
        for std in self.ema_std:
            exponent(std)
        for name in ("warmup", "ema_half_life", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and at least 0")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number > 0")
        for name in ("augment", "self_conditioning"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a share, 0 … 1")
        if self.augment and self.pairs:
            raise ValueError(f"augment={self.augment} moves pictures, and with --pairs would part them; use flip")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} must be at least 0 and below 1")
        for name in _CHOICES:
            known = getattr(_CHOICES[name], "__args__")  # noqa: B009
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; one of {', '.join(known)}")
        self.objective()

    def objective(self) -> Objective:
        """The objective these options name."""
        return Objective(self.weight, self.levels, self.cond_dropout, uncertainty=self.uncertainty)

    def spec(self) -> dict[str, Any]:
        """Every option, JSON-able."""
        plain = {Path: str, tuple: list}
        return {
            name: next((make(value) for kind, make in plain.items() if isinstance(value, kind)), value)
            for name, value in asdict(self).items()
        }

    def identity(self) -> dict[str, Any]:
        """The options that the numbers of the run depend on."""
        return {name: value for name, value in self.spec().items() if name not in _BOOKKEEPING}


_CHOICES = {
    "schedule": Literal["cosine", "linear", "constant"],
    "split": Literal["train", "all"],
    "precision": Literal["auto", "float32", "bfloat16", "float16"],
    "pairing": Literal["none", "ot"],
    "strategy": Literal["ddp", "fsdp"],
    "uncertainty": Literal["none", "levels", "tasks"],
}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What changed between two identities, "lr 0.001 → 0.002, batch 64 → 128": empty if nothing did."""
    # An option that was not there when the run began had what is now its default.
    default = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(TrainConfig)}
    old = {name: value for name, value in default.items() if name not in _BOOKKEEPING}
    before = old | {"objective": now.get("objective")} | before  # which the first runs did not keep
    names = [n for n in (*default, "dataset", "objective", "auxiliary") if n not in _BOOKKEEPING]
    return changes(names, before, now)


def changes(names: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The named entries that differ, "lr 0.001 → 0.002, batch 64 → 128"."""
    return ", ".join(f"{n} {before.get(n)} → {now.get(n)}" for n in names if before.get(n) != now.get(n))


def learning_rate(config: TrainConfig, images: int) -> float:
    """lr · min(1, n/warm-up) · decay, with r = share of the run after warm-up, n = images before this step + batch.

    cosine: 0.01 + 0.99 · ½(1 + cos πr);   linear: 1 − 0.99 r;   constant: 1.
    """
    n, total, warm = images + config.batch, config.steps * config.batch, config.warmup * config.batch
    r = min(1.0, max(0.0, (n - warm) / max(1, total - warm)))
    decay = {"cosine": 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * r)), "linear": 1 - 0.99 * r, "constant": 1.0}
    return config.lr * min(1.0, n / warm if warm else 1.0) * decay[config.schedule]


def device_of(name: str, local: bool = False) -> torch.device:
    """The device that an option names; local: of several CUDA devices this process's own (under torchrun).

    ValueError if it is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
