"""Ready networks for a data set: UNets of `diffusers` and transformers, sized for its samples, and the denoiser around one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data import Buckets, Dataset, Pairs
from ..denoiser import Denoiser
from ..nets import AugmentedUNet, DiT, SwitchDiT, default_condition
from ..process import EDM, OUVE, RDDM, VE, VP, BrownianBridge, Cosine, Flow, MeanReverting, Process, ResShift, SubVP


class Preset(NamedTuple):
    """Width of the first level and residual blocks per level."""

    width: int
    layers: int


class Transformer(NamedTuple):
    """Width of the tokens, blocks, heads of their attention, and experts a block for levels of noise (0: none)."""

    width: int
    depth: int
    heads: int
    experts: int = 0


PRESETS = {"tiny": Preset(32, 1), "small": Preset(32, 2), "base": Preset(64, 2), "large": Preset(128, 2)}
_SIZES = {"tiny": (96, 4, 4), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # the published S, B, L
TRANSFORMERS = {f"dit-{size}": Transformer(*numbers) for size, numbers in _SIZES.items()} | {
    f"switch-dit-{size}": Transformer(*numbers, experts=3) for size, numbers in _SIZES.items()
}
PROCESSES: dict[str, Callable[[], Process]] = {
    **{"vp": VP, "cosine": Cosine, "subvp": SubVP, "ve": VE, "edm": EDM, "flow": Flow},
    **{"mean-reverting": MeanReverting, "resshift": ResShift, "rddm": RDDM, "bridge": BrownianBridge},
    "ouve": lambda: OUVE(1.5, 0.05 / math.sqrt(2), 0.5 / math.sqrt(2)),  # of complex spectrograms seen as two channels
}
ANCHORED = ("mean-reverting", "resshift", "rddm", "bridge", "ouve")
_COARSEST = 4  # levels are added while the pictures stay at least this large
_TOKENS = 256  # patches of a transformer grow from 2 × 2 until a picture is at most so many
_ATTENTION = 4  # attention at pictures of at most this size; everywhere it costs more than it gives


def build_network(
    shape: tuple[int, ...],
    classes: int = 0,
    preset: str = "small",
    seed: int = 0,
    beside: int = 0,
    augmented: bool = False,
) -> nn.Module:
    """A network for pictures (C, H, W), with the initial weights of `seed`.

    preset: of `PRESETS`, a `diffusers` UNet2DModel: levels halve the picture down to 4 pixels (at most four levels), widths
        are w, 2w, 2w, 4w; of `TRANSFORMERS`, a `nets.DiT` or `nets.SwitchDiT` of at most 256 tokens, patches of 2 × 2 or more.
    beside: how many pictures it sees beside the state (the anchor, an estimate): (1 + beside) C channels.
    augmented: it is told how pictures were moved (`nets.AugmentedUNet`, so only of `PRESETS`).

    With classes > 0 the network takes `class_labels` (B,), where the label `classes` means "none": the
    null condition, which is also what a call without labels gets.

    Raises ValueError for a shape that is no picture or cannot be divided, and for an unknown preset;
    ImportError when diffusers is not installed.
    """
    if preset not in (known := [*PRESETS, *TRANSFORMERS]):
        raise ValueError(f"preset={preset!r} is unknown; one of {', '.join(known)}")
    if len(shape) != 3:
        raise ValueError(f"shape={shape} is no picture (C, H, W); pass your own network for such data")
    if augmented and preset not in PRESETS:
        raise ValueError(f"augment needs a network that is told of it: preset={', '.join(PRESETS)}, not {preset!r}")
    make = partial(_unet, augmented=augmented) if preset in PRESETS else _transformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make(shape, classes, preset, beside)
    return default_condition(network, {"class_labels": classes}) if classes else network


def _unet(shape: tuple[int, ...], classes: int, preset: str, beside: int, augmented: bool = False) -> nn.Module:
    channels, height, width = shape
    levels = 1
    while levels < 4 and min(height, width) // 2**levels >= _COARSEST:
        levels += 1
    _check_sides(shape, 2 ** (levels - 1))
    try:
        from diffusers import UNet2DModel  # type: ignore[attr-defined]
    except ImportError:
        raise ImportError('the built-in networks are those of diffusers: pip install "unstir[diffusers]"') from None
    first, layers = PRESETS[preset]
    attends = [min(height, width) // 2**i <= _ATTENTION and i > 0 and layers > 1 for i in range(levels)]
    make: Any = AugmentedUNet if augmented else UNet2DModel
    return make(
        sample_size=(height, width),
        in_channels=(1 + beside) * channels,
        out_channels=channels,
        block_out_channels=tuple(first * factor for factor in (1, 2, 2, 4)[:levels]),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=classes + 1 if classes else None,
    )


def _transformer(shape: tuple[int, ...], classes: int, preset: str, beside: int) -> nn.Module:
    channels, height, width = shape
    patch = 2
    while height * width > _TOKENS * patch**2:
        patch *= 2
    _check_sides(shape, patch)
    tokens, depth, heads, experts = TRANSFORMERS[preset]
    make = partial(SwitchDiT, experts=experts) if experts else DiT
    inputs = (1 + beside) * channels
    return make(inputs, out=channels, patch=patch, width=tokens, depth=depth, heads=heads, classes=classes)


def _check_sides(shape: tuple[int, ...], step: int) -> None:
    if shape[1] % step or shape[2] % step:
        wanted = f"multiples of {step}; load the data with size= (--buckets {step})"
        raise ValueError(f"shape={shape}: height and width must be {wanted}")


def build_model(
    dataset: Dataset | Buckets,
    *,
    process: str | Process = "vp",
    predicts: str = "edm",
    conditional: bool = True,
    preset: str = "small",
    seed: int = 0,
    network: nn.Module | None = None,
    self_conditioning: bool = False,
    augment: bool = False,
) -> Denoiser:
    """The denoiser to be trained on `dataset`: a network (built, or your own), a process, a prediction.

    σ_data is measured. The network is told 1000 t, or λ for the process "edm", whose clock is σ
    itself and would crowd all small noise at 0. For `data.Pairs` (and an anchored process, and only there) it
    works in the residual frame, sees the anchor, and σ_data is that of x0 − y. For `data.Buckets` the model's shape is that of
    the fullest bucket, and its meta lists all "shapes", the fullest first.

    self_conditioning: the network sees its estimate of the call before.   augment: it is told how pictures were moved.
    """
    if isinstance(process, str):
        if process not in PROCESSES:
            raise ValueError(f"process={process!r} is unknown; one of {', '.join(PROCESSES)}")
        process = PROCESSES[process]()
    check_pairs(process, dataset)
    paired = isinstance(dataset, Pairs)
    classes = dataset.classes if conditional else ()
    spread = dataset.std()
    if not spread > 0:
        raise ValueError(f"data {dataset.name!r} has standard deviation {spread:g}: every value is the same")
    meta: dict[str, Any] = {"data": dataset.describe(), "range": list(dataset.range)}
    if classes:
        meta |= {"classes": list(classes), "null": {"class_labels": len(classes)}}
    if isinstance(dataset, Buckets):
        meta["shapes"] = [list(part.shape) for part in sorted(dataset.parts, key=len, reverse=True)]
    if isinstance(dataset, Pairs) and dataset.sound is not None:
        meta["sound"] = dataset.sound.spec()
    return Denoiser(
        network or build_network(dataset.shape, len(classes), preset, seed, paired + self_conditioning, augment),
        process,
        predicts,
        time="logsnr" if isinstance(process, EDM) else "thousand",
        sigma_data=spread,
        sees_anchor=paired,
        sees_previous=self_conditioning,
        frame="residual" if paired else None,
        shape=dataset.shape,
        meta=meta,
    )


def check_pairs(process: Process, dataset: Dataset | Buckets) -> None:
    """ValueError unless an anchored process meets pairs, and any other process samples."""
    if process.anchored and not isinstance(dataset, Pairs):
        raise ValueError(f"{process!r} is anchored: it learns from pairs (--pairs LQ GT), not from {dataset.name}")
    if not process.anchored and isinstance(dataset, Pairs):
        raise ValueError(f"pairs need an anchored process ({', '.join(ANCHORED)}); {process!r} has no anchor")
