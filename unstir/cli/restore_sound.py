"""`unstir restore` for sounds: read, restored and written window by window, at any rate, with any number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from .._files import atomic_file
from ..data.sound import Form, faults, form_of, read_part, resample, windows, writer
from ..data.spectrogram import Spectrogram
from ..evaluate import Report
from ..evaluate.quality import Tally, sound_metrics
from ..evaluate.spectrograms import spectrogram_plot
from ..steer.windows import restore_sound
from .restore import Job, Options, Restored, number

WINDOW, OVERLAP = 512, 64  # frames of a window, and at least so many shared by two
MEASURED = 60.0  # seconds from the start that metrics look at
SHOWN = 6.0  # seconds from the start that the report shows


class Sounds:
    """The restorer of one job after another; `tally` holds the metrics of those that had a reference."""

    def __init__(self, options: Options, model: Any, plan: Any) -> None:
        if options.tile is not None:
            raise ValueError("--tile is for pictures; a sound is cut into windows of its own")
        self.options, self.model, self.plan = options, model, plan
        self.transform = Spectrogram.from_spec(model.meta["sound"])
        self.tally = Tally({})
        self.rate = 0  # that of the metrics

    def steps(self, job: Job) -> int:
        """How many rows the plan runs for this file."""
        form = form_of(job.source)
        length, step = geometry(self.transform, form.rate)
        return len(self.plan.rows) * len(places(form.length, length, step))

    def restore(self, job: Job, on_step: Callable[[Any], None]) -> Restored:
        """Restores one file. ValueError if it, or its reference, cannot be used."""
        options, form = self.options, form_of(job.source)
        length, step = geometry(self.transform, form.rate)
        begins = places(form.length, length, step)
        truth = None if options.reference is None else self._truth(job, form)
        files = job.files(options.out, options.n)
        kept, heard, clipped = [], False, False
        keep = round(form.rate * (MEASURED if truth is not None else SHOWN))
        with ExitStack() as stack:
            write = [stack.enter_context(writer(file, form)) for file in files[: options.n + 1]]
            tail = None
            for begin, given in zip(begins, windows(job.source, begins, length), strict=True):
                wrong = faults(given)
                heard |= wrong != ["silent"]
                clipped |= any(fault.startswith("clipped") for fault in wrong)
                found = self._window(given, form.rate, begin, number(job), on_step)
                if tail is not None:  # blend with the end of the window before
                    ramp = torch.arange(1, tail.shape[-1] + 1) / (tail.shape[-1] + 1)
                    found[..., : len(ramp)] = (1 - ramp) * tail + ramp * found[..., : len(ramp)]
                last = begin == begins[-1]
                ready, tail = (found, None) if last else (found[..., :step], found[..., step:])
                write[0](ready.mean(0))
                for one, draw in zip(write[1:], ready, strict=False):
                    one(draw)
                if begin < keep:
                    kept.append(ready)
        poor = [] if heard else ["silent"]
        if clipped:
            poor.append("clipped: some samples stand at full scale")
        if form.rate > self.transform.rate:
            poor.append(f"the model hears up to {self.transform.rate // 2} Hz; what is above is left out")
        draws = torch.cat(kept, -1)[..., :keep]
        given = read_part(job.source, 0, draws.shape[-1])
        metrics = {} if truth is None else self._measured(draws.mean(0), given, truth[:, :keep], form.rate)
        panels = self._panels(draws, given, truth, form.rate)
        if options.n > 1:
            with atomic_file(files[-1]) as temporary:
                temporary.write_bytes(self._plot(panels, form, job.name.name))
        return Restored(form.describe(), metrics, lambda page: self._draw(page, panels, form), poor)

    def _window(self, given: Tensor, rate: int, begin: int, index: int, on_step: Callable[[Any], None]) -> Tensor:
        """The draws (n, C, T) of one window (C, T) at the file's rate."""
        sound = resample(given, rate, self.transform.rate).to(next(self.model.parameters()).device)
        frame = begin * self.transform.rate // (rate * self.transform.hop)
        found = restore_sound(
            self.model,
            self.plan,
            sound,
            self.transform,
            seed=self.options.seed,
            index=index,
            samples=self.options.n,
            frame=frame,
            on_step=on_step,
        )
        back = resample(found.cpu().flatten(0, 1), self.transform.rate, rate)
        whole = torch.zeros(len(back), given.shape[1])
        width = min(back.shape[1], given.shape[1])
        whole[:, :width] = back[:, :width]
        return whole.reshape(len(found), *given.shape)

    def _truth(self, job: Job, form: Form) -> Tensor:
        """The start of the reference, which has the rate, the channels and the length of the file."""
        path = self.options.reference / job.name  # type: ignore[operator]
        other = form_of(path)
        for what in ("rate", "channels", "length"):
            if getattr(other, what) != getattr(form, what):
                raise ValueError(f"its reference has {what} {getattr(other, what)}, it has {getattr(form, what)}")
        return read_part(path, 0, min(form.length, round(MEASURED * form.rate)))

    def _measured(self, restored: Tensor, given: Tensor, truth: Tensor, rate: int) -> dict[str, tuple[float, float]]:
        if not self.tally.metrics:
            self.tally, self.rate = Tally(sound_metrics(rate)), rate
        if rate != self.rate:  # the means of one run are at one rate
            restored, given, truth = (resample(x, rate, self.rate) for x in (restored, given, truth))
        return self.tally.add(restored, given, truth)

    def _panels(self, draws: Tensor, given: Tensor, truth: Tensor | None, rate: int) -> dict[str, Tensor]:
        """Levels in dB of the first channel: input, restored, what the draws differ in, and the truth."""
        count = round(SHOWN * rate)
        heard = {"input": given[:1, :count], "restored": draws.mean(0)[:1, :count]}
        if truth is not None:
            heard["reference"] = truth[:1, :count]
        heard = {name: resample(x, rate, self.transform.rate) for name, x in heard.items()}
        panels = {name: self.transform.decibels(x)[0] for name, x in heard.items()}
        if len(draws) > 1:
            rest = resample((draws - draws.mean(0))[:, 0, :count], rate, self.transform.rate)
            spread = self.transform.power(rest).mean(0) / self.transform.power(heard["restored"]).amax().clamp_min(1e-20)
            panels["where the draws differ"] = 10 * spread.clamp_min(1e-8).log10()
        return panels

    def _plot(self, panels: dict[str, Tensor], form: Form, title: str = "") -> bytes:
        return spectrogram_plot(panels, self.transform.rate, min(SHOWN, form.seconds), title=title)

    def _draw(self, page: Report, panels: dict[str, Tensor], form: Form) -> None:
        page.picture(self._plot(panels, form), "dB below the loudest bin of each panel; at most the first 6 s.")


def geometry(transform: Spectrogram, rate: int) -> tuple[int, int]:
    """(length of a window, from window to window) in samples of a file at `rate` Hz.

    Windows begin on frames of the model that are whole samples of the file and multiples of
    `fold`, so that all of them are cut from one noise field; they share at least `OVERLAP` frames.
    """
    unit = math.lcm(transform.rate // math.gcd(transform.rate, transform.hop * rate), transform.fold)
    size = -(-max(WINDOW, unit + OVERLAP) // transform.frames) * transform.frames
    step = (size - OVERLAP) // unit * unit
    return (size - 1) * transform.hop * rate // transform.rate, step * transform.hop * rate // transform.rate


def places(total: int, length: int, step: int) -> range:
    """Where windows begin, the last being the first that reaches the end."""
    return range(0, step * (1 + max(0, -(-(total - length) // step))), step)
