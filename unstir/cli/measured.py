"""From a file to the problem that it poses: which operator, which measurement, in the model's units (see `tasks`)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._random import normal
from ..data.picture import Picture, read_picture
from ..steer import ValueRange, operators
from .restore import Job, Options, number

_TASK = re.compile(r"(inpaint|sr|deblur|denoise|ct|mri)(?::?(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Task:
    """What was measured: name, its number (None: the default)."""

    name: str
    number: float | None

    @property
    def scanner(self) -> bool:
        """Is the measurement not a picture?"""
        return self.name in ("ct", "mri")


@dataclass(frozen=True)
class Measured:
    """A measurement in the model's units: y (P, …) of P pictures of the model's shape (the channels, for a grey model)."""

    operator: Any
    y: Tensor
    noise: float
    truth: Tensor | None  # (P, C, H, W)
    like: Picture
    parts: int  # 3: the channels of a colour picture apart; −1: a grey picture in three channels; else 1


def parse_task(text: str) -> Task:
    """The task that a word such as "sr4", "deblur:1.5" or "inpaint" names."""
    found = _TASK.fullmatch(text)
    if found is None or (found[2] and found[1] in ("inpaint", "denoise")) or (found[1] == "sr" and not found[2]):
        raise ValueError(f"--task {text} is unknown; one of inpaint, sr2, sr4, sr8, deblur:1.5, denoise, ct:12, mri:4")
    value = float(found[2]) if found[2] else None
    if value is not None and (value <= 0 or (found[1] in ("sr", "ct") and value != int(value))):
        raise ValueError(f"--task {text}: {value:g} must be a {'whole ' if found[1] in ('sr', 'ct') else ''}number above 0")
    return Task(found[1], value)


def problem(options: Options, model: Any, task: Task, job: Job) -> Measured:
    """The operator and the measurement of one file. ValueError names the file and what does not fit."""
    channels, height, width = model.shape
    raw = job.source.suffix == ".npy"
    if raw and not task.scanner:
        raise ValueError(f"{job.source}: --task {options.task} takes pictures; .npy files are for ct and mri")
    span = ValueRange(-1.0, 1.0, *model.meta.get("range", (-1.0, 1.0)))
    like = Picture(torch.zeros(channels, height, width), "PNG") if raw else read_picture(job.source)
    pixels, parts = _fitted(like.pixels, channels)
    size = (1, height, width)
    reference = _reference(options, job, channels, (height, width))
    try:
        if raw:
            operator, y = _scanned(task, np.load(job.source, allow_pickle=False), size)
            parts = 1
        else:
            operator = _operator(options, task, model.shape, size)
            if task.scanner:
                reference = _exactly(pixels, height, width, task)
                y = operator.A(reference)
                y = y + options.noise * normal(
                    tuple(y.shape), seed=options.seed, index=[number(job) * 8 + i for i in range(len(y))]
                )
            else:
                factor = int(task.number or 1) if task.name == "sr" else 1
                y = _exactly(pixels, height // factor, width // factor, task)
                y = operator.A(y) if task.name == "inpaint" else y  # what lies under the mask is not known
    except (ValueError, OSError) as error:
        raise ValueError(f"{job.source}: {error}") from None
    device = next(model.parameters()).device
    found = span.problem(operator, y.float(), options.noise, torch.zeros(1, channels, height, width))
    truth = None if reference is None else reference
    return Measured(found.operator, found.y.to(device), found.noise, truth, like, parts)


def _fitted(pixels: Tensor, channels: int) -> tuple[Tensor, int]:
    """(P, C, H, W) pictures with the model's number of channels, and what was done to get there."""
    if len(pixels) == channels:
        return pixels[None], 1
    return (pixels.expand(3, -1, -1)[None], -1) if len(pixels) == 1 else (pixels[:, None], 3)


def _exactly(pixels: Tensor, height: int, width: int, task: Task) -> Tensor:
    if tuple(pixels.shape[2:]) != (height, width):
        raise ValueError(
            f"it has {pixels.shape[3]}×{pixels.shape[2]} pixels; for --task {task.name} this model needs {width}×{height}"
        )
    return pixels


def _reference(options: Options, job: Job, channels: int, size: tuple[int, int]) -> Tensor | None:
    if options.reference is None:
        return None
    pixels = read_picture(options.reference / job.name).pixels
    if tuple(pixels.shape[1:]) != size:
        raise ValueError(
            f"{options.reference / job.name} has {pixels.shape[2]}×{pixels.shape[1]} pixels; the result has {size[1]}×{size[0]}"
        )
    return _fitted(pixels, channels)[0]


def _operator(options: Options, task: Task, shape: tuple[int, ...], size: tuple[int, int, int]) -> Any:
    """A of a task, for samples of the model's shape."""
    side = size[1]
    if task.name == "inpaint":
        assert options.mask is not None
        hole = read_picture(options.mask).pixels.mean(0) > 0
        if tuple(hole.shape) != size[1:]:
            raise ValueError(
                f"--mask has {hole.shape[1]}×{hole.shape[0]} pixels; the pictures of this model have {size[2]}×{side}"
            )
        if not bool(hole.any()):
            raise ValueError("--mask is black everywhere: nothing is to be filled in")
        return operators.mask((~hole).float())
    if task.name == "denoise":
        return operators.mask(torch.ones(size[1:]))
    if task.name == "sr":
        factor = int(task.number or 1)
        if side % factor or size[2] % factor:
            raise ValueError(f"--task sr{factor}: {factor} does not divide the model's size {size[2]}×{side}")
        return operators.average_pool(factor)
    if task.name == "deblur":
        std = task.number or 1.0
        reach = min(math.ceil(3 * std), (min(side, size[2]) - 1) // 2)
        line = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * std**2))
        kernel = line[:, None] * line
        return operators.blur(kernel / kernel.sum(), shape)
    if shape[0] != 1 or side != size[2]:
        raise ValueError(f"--task {task.name} needs a model of grey square pictures; this one makes {shape}")
    if task.name == "ct":
        return _views(int(task.number or max(2, side // 2)), size)
    return operators.mri(operators.lines(size, task.number or 4.0, seed=options.seed), real=True)


def _views(count: int, size: tuple[int, int, int]) -> Any:
    operator = operators.radon(torch.arange(count, dtype=torch.float64) * (math.pi / count), size)
    return operators.explicit(operator, size) if math.prod(size) <= 1024 else operator


def _scanned(task: Task, values: Any, size: tuple[int, int, int]) -> tuple[Any, Tensor]:
    """The operator and y (1, …) of a measurement that is no picture."""
    side = size[1]
    if not np.isfinite(values).all():
        raise ValueError("it contains NaN or infinite values")
    if task.name == "ct":
        if values.ndim != 2 or values.shape[1] != side or (task.number and values.shape[0] != int(task.number)):
            raise ValueError(
                f"it has shape {values.shape}; a sinogram for this model is ({int(task.number or 0) or 'angles'}, {side})"
            )
        return _views(values.shape[0], size), torch.from_numpy(np.asarray(values, np.float32))[None, None]
    if np.iscomplexobj(values):
        values = np.stack([values.real, values.imag])
    if values.shape != (2, side, side):
        raise ValueError(
            f"it has shape {values.shape}; k-space for this model is (2, {side}, {side}) or complex ({side}, {side})"
        )
    y = torch.from_numpy(np.asarray(values, np.float32))[None]
    return operators.mri((y[0] != 0).any(0).float(), real=True), y
