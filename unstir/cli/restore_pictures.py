"""`unstir restore` for pictures: in overlapping windows, each channel count fitted to the model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..data.picture import Picture, read_picture, write_picture
from ..evaluate import Report, grid
from ..evaluate.quality import Tally, picture_metrics
from ..steer.windows import restore_picture, starts
from .restore import Job, Options, Restored, number

BATCH = 16  # windows in one call of the network
REPORT = 480  # pixels: the report shows the middle of a larger picture


class Pictures:
    """The restorer of one job after another; `tally` holds the metrics of those that had a reference."""

    def __init__(self, options: Options, model: Any, plan: Any) -> None:
        self.options, self.model, self.plan = options, model, plan
        if model.shape is not None:
            self.channels, height, width = model.shape
            self.size = (options.tile or height, options.tile or width)
        elif options.tile is not None:
            self.channels, self.size = 3, (options.tile, options.tile)
        else:
            raise ValueError("the model does not say what size it was trained on: give --tile")
        if self.channels not in (1, 3):
            raise ValueError(f"the model was trained on {model.shape}, which is no picture of 1 or 3 channels")
        self.low, self.high = model.meta.get("range", (-1.0, 1.0))
        self.tally = Tally(picture_metrics())

    def steps(self, job: Job) -> int:
        """How many rows the plan runs for this file."""
        from PIL import Image

        with Image.open(job.source) as image:
            sides, colours = (image.height, image.width), len(image.getbands())
        overlaps = (min(self.options.overlap, side - 1) for side in self.size)
        windows = math.prod(len(starts(n, s, o)) for n, s, o in zip(sides, self.size, overlaps, strict=True))
        parts = 3 if colours >= 3 and self.channels == 1 else 1
        return len(self.plan.rows) * parts * -(-windows * self.options.n // BATCH)

    def restore(self, job: Job, on_step: Callable[[Any], None]) -> Restored:
        """Restores one file. ValueError if it, or its reference, cannot be used."""
        options, out = self.options, self.options.out
        picture = read_picture(job.source)
        truth = None
        if options.reference is not None:
            truth = read_picture(options.reference / job.name).pixels
            if truth.shape[1:] != picture.pixels.shape[1:]:
                raise ValueError(
                    f"its reference has {truth.shape[2]}×{truth.shape[1]} pixels, it has "
                    f"{picture.pixels.shape[2]}×{picture.pixels.shape[1]}"
                )
        draws = self._draws(picture.pixels, number(job), on_step)
        mean, std = draws.mean(0), draws.std(0, correction=0)
        spread = std.mean(0, keepdim=True)
        spread = spread / spread.max().clamp_min(1e-12)
        for file, pixels in zip(job.files(out, options.n), [mean, *draws], strict=False):
            write_picture(file, pixels, picture)
        if options.n > 1:
            write_picture(job.beside(out, "std", ".png"), 2 * spread - 1, Picture(spread, "PNG"))
        metrics = {}
        if truth is not None:
            same = truth if len(truth) == len(mean) else truth.mean(0, keepdim=True).expand_as(mean)
            metrics = self.tally.add(mean.clamp(-1, 1)[None], picture.pixels[None], same[None])
        return Restored(picture.describe(), metrics, lambda page: _draw(page, picture.pixels, mean, std, truth))

    def _draws(self, pixels: Tensor, index: int, on_step: Callable[[Any], None]) -> Tensor:
        """(n, C, H, W) restored pixels in [−1, 1]; channels of a colour picture one by one for a grey model."""
        scale, shift = (self.high - self.low) / 2, (self.high + self.low) / 2
        y = (pixels * scale + shift).to(next(self.model.parameters()).device)
        parts = self._parts(y)
        found = [
            restore_picture(
                self.model,
                self.plan,
                part,
                size=self.size,
                overlap=self.options.overlap,
                seed=self.options.seed,
                index=index,
                samples=self.options.n,
                batch=BATCH,
                on_step=on_step,
            )
            for part in parts
        ]
        whole = torch.cat(found, 1)
        if whole.shape[1] > len(pixels):  # grey, restored in colour
            whole = whole.mean(1, keepdim=True)
        return ((whole.cpu() - shift) / scale).float()

    def _parts(self, y: Tensor) -> list[Tensor]:
        """y (C, H, W) as pictures with the model's number of channels."""
        if len(y) == self.channels:
            return [y]
        return [y.expand(3, -1, -1)] if len(y) == 1 else list(y[:, None])


def _draw(page: Report, given: Tensor, restored: Tensor, std: Tensor, truth: Tensor | None) -> None:
    """Before, after, what the draws differ in, and the truth, side by side."""
    panels, scale = {"input": given, "restored": restored.clamp(-1, 1)}, ""
    if bool(std.any()):
        spread = std.mean(0, keepdim=True).expand_as(given)
        panels["where the draws differ"] = 2 * spread / spread.max() - 1
        scale = f" White is a standard deviation of {127.5 * float(spread.max()):.3g} of 255."
    if truth is not None:
        panels["reference"] = truth
    sheet = torch.stack([_middle(p).expand(3, -1, -1) for p in panels.values()])
    page.picture(grid(sheet, columns=len(sheet)), f"{', '.join(panels).capitalize()}.{scale}")


def _middle(pixels: Tensor) -> Tensor:
    _, height, width = pixels.shape
    top, left = max(0, height - REPORT) // 2, max(0, width - REPORT) // 2
    return pixels[:, top : top + REPORT, left : left + REPORT]
