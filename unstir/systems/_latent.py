"""The seven tasks of latent diffusion as data: what the network is told, and how it gets there.

| task | condition (raw) | encoder | route |
|---|---|---|---|
| unconditional | – | – | – |
| class | class_labels (B,) | the network's own embedding | class |
| text | text (B, L) words | a small transformer, or CLIP | cross |
| layout | layout (B, L) classes and corners | a small transformer | cross |
| semantic | map (B, H, W) classes | one-hot, halved, 1 × 1 convolution | concat |
| super-resolution | low (B, 3, H/f, W/f) | itself: f times smaller is the latent's own grid | concat |
| inpainting | known (B, d + 1, H/f, W/f) | latents of the masked picture, and the mask | concat |

(High-Resolution Image Synthesis with Latent Diffusion Models, 2022.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..codecs import Codec
from ..denoiser import Denoiser
from ..nets import Conditioned
from ..process import VP, Process, from_betas

TASKS = ("unconditional", "class", "text", "layout", "semantic", "super-resolution", "inpainting")  # as in the table
# β_1 and β_1000 of the published models; their square roots rise linearly.
BETAS = {
    **dict.fromkeys(("unconditional", "class"), (0.0015, 0.0195)),
    **dict.fromkeys(("layout", "semantic", "inpainting"), (0.0015, 0.0205)),
    **{"super-resolution": (0.0015, 0.0155), "text": (0.00085, 0.012)},
}


def schedule(task: str, steps: int = 1000) -> Process:
    """The published process of a task: β_i = (√β_1 + (i − 1)/(T − 1) (√β_T − √β_1))². That of text ends at √ᾱ = 0.068: it
    never sees pure noise, so sampling from the prior cannot give a picture that is all dark or all bright."""
    first, last = BETAS[_known_task(task)]
    return from_betas(torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64) ** 2)


def conditions(task: str, codec: Codec, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions of a task, for `nets.Conditioned`. facts: see `ldm`. ValueError where one is missing."""
    found = _CONDITIONS[_known_task(task)](codec, facts)
    return {name: {"drop": facts.get("drop", 0.1), **options} for name, options in found.items()}


def _classes(task: str, facts: Mapping[str, Any]) -> int:
    if not facts.get("classes"):
        raise ValueError(f"task={task!r} needs classes=, their names")
    return len(facts["classes"])


def _label(codec: Codec, facts: Mapping[str, Any]) -> dict[str, Any]:
    route = facts.get("route", "class")
    return {"class_labels": {"encoder": "labels", "route": route, "classes": _classes("class", facts)}}


def _text(codec: Codec, facts: Mapping[str, Any]) -> dict[str, Any]:
    if "clip" in facts:
        return {"text": {"encoder": "clip", "route": "cross", "config": dict(facts["clip"])}}
    if not facts.get("words"):
        raise ValueError(
            "task='text' needs words=, the vocabulary (nets.Words.of(captions)), or clip=, a CLIPTextConfig's options"
        )
    length, words = facts.get("length", 77), list(facts["words"])
    return {"text": {"encoder": "tokens", "route": "cross", "length": length, "words": words}}


def _layout(codec: Codec, facts: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary = 1 + _classes("layout", facts) + int(facts.get("grid", 8)) ** 2
    length = facts.get("length", 30)
    return {"layout": {"encoder": "tokens", "route": "cross", "length": length, "vocabulary": vocabulary}}


def _semantic(codec: Codec, facts: Mapping[str, Any]) -> dict[str, Any]:
    halvings = codec.factor.bit_length() - 1
    return {"map": {"encoder": "map", "route": "concat", "classes": _classes("semantic", facts), "halvings": halvings}}


_CONDITIONS: dict[str, Callable[[Codec, Mapping[str, Any]], dict[str, Any]]] = {
    "unconditional": lambda codec, facts: {},
    "class": _label,
    "text": _text,
    "layout": _layout,
    "semantic": _semantic,
    "super-resolution": lambda codec, facts: {"low": {"encoder": "picture", "route": "concat", "channels": codec.pixels}},
    "inpainting": lambda codec, facts: {"known": {"encoder": "picture", "route": "concat", "channels": codec.channels + 1}},
}


def ldm(
    task: str,
    codec: Codec,
    size: int | tuple[int, int],
    *,
    process: Process | None = None,
    predicts: str = "edm",
    network: Mapping[str, Any] | None = None,
    seed: int = 0,
    **facts: Any,
) -> Denoiser:
    """A fresh latent diffusion model of pictures of `size` pixels: its network, its conditions and their nulls, its codec.

    process: `VP` by default; `schedule(task)` is the published one, with predicts="noise".
    network: options of `nets.Conditioned` (widths, attention, layers, width, heads).   seed: of the initial weights.
    facts: classes (names; class, layout, semantic), words or clip (text), length (of a text or layout), grid (layout),
        route ("class" or "cross"; class), drop (share of images trained without the condition).

    Train it with `train.fit` on `codecs.cache(…)`, its conditions `beside` the data, and
    `Objective(cond_dropout=model.network.conditioner.drop)`; save it with `unstir.save`.

    Raises ValueError for an unknown task, missing facts, and sides that f · 2^(levels − 1) does not divide.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    options = dict(network or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Conditioned(codec.channels, conditions(task, codec, facts), **options)
    step = codec.factor * 2 ** (len(net.config["widths"]) - 1)
    if any(side % step for side in sides):
        pad, cut = ([side + (-side) % step for side in sides], [side - side % step for side in sides])
        raise ValueError(f"size={sides} must be multiples of f · 2^(levels − 1) = {step}: pad to {pad} or crop to {cut}")
    meta: dict[str, Any] = {"task": task, "range": list(codec.range or (-1.0, 1.0))}
    if net.null:
        meta["null"] = net.null
    if task == "class":
        meta["classes"] = [str(name) for name in facts["classes"]]
    shape = (codec.channels, *(side // codec.factor for side in sides))
    model = Denoiser(net, process or VP(), predicts, time="thousand", sigma_data=1.0, shape=shape, meta=meta)
    model.codec = codec
    return model


def known(codec: Codec, x: Tensor, *, keep: Tensor | None = None, fill: Tensor | None = None) -> Tensor:
    """What an inpainting model is told, (B, d + 1, H/f, W/f): latents of the picture with grey holes, and what is kept.

    x: (B, C, H, W);  keep: (B, 1, H, W), 1 where the picture is kept, 0 where it is to be made; or fill, the other way round.

    Raises TypeError unless exactly one of them is given (a bare mask would be a guess), ValueError for other values than 0, 1.
    """
    if (keep is None) == (fill is None):
        raise TypeError("give keep= (1 where the picture is kept) or fill= (1 where it is to be made), and not both")
    mask = keep if keep is not None else 1 - fill.to(x)  # type: ignore[union-attr]
    if mask.shape != (len(x), 1, *x.shape[2:]):
        raise ValueError(f"the mask has shape {tuple(mask.shape)}; it must be {(len(x), 1, *x.shape[2:])}")
    mask = mask.to(x)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"the mask has values from {float(mask.min()):.3g} to {float(mask.max()):.3g}; it must be 0 and 1")
    return torch.cat([codec.encode(x * mask, sample=False), mask[..., :: codec.factor, :: codec.factor]], 1)


def _known_task(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; one of {', '.join(TASKS)}")
    return task
