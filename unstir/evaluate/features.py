"""Feature spaces: where sample sets are compared, and what the comparison may be called.

FID, KID, FD-DINOv2, CMMD are names of one fixed network's features each; a number measured in any other features is
called FD[features], MMD[features] (`label`). Nothing is downloaded: networks are those of the user's cache, or made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_samples

BATCH = 256  # samples in one call of a network

# These names mean one fixed set of weights in the literature; a number under them is only comparable with those.
RESERVED = ("inception", "dinov2", "clip", "i3d")
NAMES = ("pixel", "pixel-pca:K", "randconv[:SEED]", "dinov2[:FOLDER]")
_OWN_NAMES = {("FD", "dinov2"): "FD-DINOv2"}
_DINOV2, _MEAN, _STD = "facebook/dinov2-large", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WIDTHS = (16, 16, 32)


class Space(NamedTuple):
    """A feature space: its name, the function to float64 features (n, d), and what it does to the samples first."""

    name: str
    function: Callable[[Tensor], Tensor]
    notes: tuple[str, ...] = ()


Features = str | Callable[[Tensor], Tensor] | Space


def label(metric: str, features: str) -> str:
    """The name of a metric in a feature space: "FD[pixel-PCA24]", and its own one where the literature fixed the network."""
    return _OWN_NAMES.get((metric, features), f"{metric}[{features}]")


def extractor(features: Features, real: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """(name, function) of `space`."""
    return space(features, real)[:2]


def space(features: Features, real: Tensor) -> Space:
    """A feature space by name or as a callable.

    "pixel"             the flattened sample itself
    "pixel-pca:K"       v ↦ Vᵀ(v − m), with V (·, K) the leading principal axes of the real set and m its mean (not whitened)
    "randconv:SEED"     64 channel means of an untrained convolutional network, see `random_conv`; pictures (n, C, H, W)
    "dinov2"            facebook/dinov2-large, if transformers finds it in the cache; "dinov2:FOLDER": the one in a folder,
                        whose name stays the folder's, since its weights may be any
    callable            features(batch) -> (n, *), run in batches of 256 without gradients; named by its `name`,
                        `__name__` or class (for instance a `Classifier`)

    Raises ValueError for unknown or reserved names, and for weights that are not there.
    """
    if isinstance(features, Space):
        return features
    if callable(features):
        given = getattr(features, "name", None) or getattr(features, "__name__", None) or type(features).__name__
        name = str(given).strip("<>")
        if name.lower() in (*RESERVED, "fid"):
            raise ValueError(f"features is named {name!r}, which is reserved for one set of weights; give it another name")
        return Space(name, lambda x: _call(features, x))
    if not isinstance(features, str):
        raise TypeError(f"features is {type(features).__name__}; it must be a name such as 'pixel-pca:24', or a callable")
    kind, _, option = features.partition(":")
    if features == "pixel":
        return Space("pixel", _flat)
    if kind == "pixel-pca":
        return _principal(features, option, real)
    if kind == "randconv":
        if not (option or "0").isdigit():
            raise ValueError(f"features={features!r}: give 'randconv' or 'randconv:SEED' with a whole number")
        _pictures(features, real)
        network = random_conv(real.shape[1], int(option or 0))
        return Space(f"randconv-seed{int(option or 0)}", lambda x: _call(network, x))
    if kind == "dinov2":
        return _dinov2(features, option, real)
    if kind in RESERVED:
        raise ValueError(
            f"features={features!r} needs weights that unstir does not ship and never downloads; load the network yourself "
            "and pass it as features=callable"
        )
    raise ValueError(f"features={features!r} is unknown; one of {', '.join(repr(n) for n in NAMES)}, or a callable")


def _principal(features: str, count: str, real: Tensor) -> Space:
    limit = min(len(real) - 1, real[0].numel())
    if not (count.isdigit() and 1 <= int(count) <= limit):
        raise ValueError(f"features={features!r}: give 'pixel-pca:K' with 1 ≤ K ≤ {limit} for {len(real)} real samples")
    x = _flat(real)
    mean = x.mean(0)
    axes = torch.linalg.eigh(torch.cov(x.T).reshape(x.shape[1], -1)).eigenvectors[:, -int(count) :].flip(1)
    return Space(f"pixel-PCA{int(count)}", lambda v: (_flat(v) - mean) @ axes)


def random_conv(channels: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """An untrained network: three 3 × 3 convolutions with normal weights, each followed by a ReLU and halved by averages.

    The features are the means of its 16 + 16 + 32 channels over the picture: 64 numbers that see colour, edges and
    texture, without having seen any data. Weights N(0, 2/(9C)) are functions of the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    layers, width = [], channels
    for out in _WIDTHS:
        layers.append(torch.randn(out, width, 3, 3, generator=generator, dtype=torch.float64) * math.sqrt(2 / (9 * width)))
        width = out

    def features(x: Tensor) -> Tensor:
        h, found = _flat(x).view(x.shape), []
        for weight in layers:
            h = F.relu(F.conv2d(h, weight.to(h.device), padding=1))
            found.append(h.mean((2, 3)))
            h = F.avg_pool2d(h, 2) if min(h.shape[2:]) > 1 else h
        return torch.cat(found, 1)

    return features


def _dinov2(features: str, folder: str, real: Tensor) -> Space:
    """The class token of a DINOv2 network of transformers, on 224 × 224 bicubic pictures with ImageNet's mean and deviation."""
    _pictures(features, real)
    try:
        from transformers import AutoModel
    except ImportError:
        raise ImportError(f"features={features!r} needs transformers: pip install transformers") from None
    try:
        network: Any = AutoModel.from_pretrained(folder or _DINOV2, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"features={features!r}: the weights of {folder or _DINOV2} are not on this machine, and nothing is downloaded; "
            f"use 'randconv', or fetch them yourself ({' '.join(str(error).split())[:80]} …)"
        ) from None
    mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
    side = min(224, network.config.image_size) if folder else 224

    def run(x: Tensor) -> Tensor:
        x = ((x.float() / 255) if not x.is_floating_point() else (x.float() + 1) / 2).expand(-1, 3, -1, -1)
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return network(pixel_values=(x - mean) / std).last_hidden_state[:, 0]

    notes = ("grey pictures repeated in 3 channels",) if real.shape[1] == 1 else ()
    return Space(Path(folder).name if folder else "dinov2", lambda x: _call(run, x), notes)


def _pictures(features: str, real: Tensor) -> None:
    if real.ndim != 4 or real.shape[1] not in (1, 3):
        raise ValueError(
            f"features={features!r} is for pictures (n, 1 or 3, H, W); the samples have shape {tuple(real.shape[1:])}, "
            "use 'pixel-pca:K' or a callable"
        )


def _flat(x: Tensor) -> Tensor:
    # MPS has no float64; everywhere else the features stay where the samples are.
    return (x.cpu() if x.device.type == "mps" else x).double().flatten(1)


def _call(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [features(batch) for batch in x.split(BATCH)]
    if not all(isinstance(part, Tensor) and part.ndim >= 2 for part in parts):
        raise TypeError("features(batch) must return a tensor of shape (n, *)")
    out = _flat(torch.cat(parts))
    if len(out) != len(x):
        raise ValueError(f"features returned {len(out)} rows for {len(x)} samples; it must return one row per sample")
    return check_samples(out, "features(batch)", 1)
