"""Sounds to look at: spectrograms of one length side by side, on one scale of loudness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._extras import need
from .plots import FAINT, INK, _file

COLOURS = "magma"


def spectrogram_plot(
    panels: Mapping[str, Tensor],
    rate: int,
    seconds: float,
    *,
    title: str = "",
    unit: str = "dB",
    span: tuple[float, float] = (-80.0, 0.0),
) -> bytes:
    """The PNG of {label: levels (F, N)}: frequency upwards from 0 to rate/2 Hz, `seconds` to the right, one scale of colours.

    span: the values at the ends of the scale; what lies beyond has the colour of the end.
    """
    if not panels:
        raise ValueError("panels is empty; give {label: levels (F, N)}")
    for label, levels in panels.items():
        if levels.ndim != 2 or 0 in levels.shape:
            raise ValueError(f"panels[{label!r}] has shape {tuple(levels.shape)}; it must be (frequencies, frames)")
    figure = need("matplotlib.figure").Figure(figsize=(min(12.0, 3.4 * len(panels) + 0.8), 2.6), layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    shown = None
    for ax, (label, levels) in zip(axes, panels.items(), strict=True):
        shown = ax.imshow(
            levels.cpu().numpy(),
            origin="lower",
            aspect="auto",
            cmap=COLOURS,
            vmin=span[0],
            vmax=span[1],
            extent=(0, seconds, 0, rate / 2000),
            interpolation="nearest",
        )
        ax.set_title(label.replace("$", r"\$"), loc="left", fontsize=9, color=INK)
        ax.set_xlabel("s", color=FAINT, fontsize=9)
        ax.tick_params(colors=FAINT, labelsize=8)
    axes[0].set_ylabel("kHz", color=FAINT, fontsize=9)
    bar = figure.colorbar(shown, ax=list(axes), pad=0.01)
    bar.set_label(unit, color=FAINT, fontsize=9)
    bar.ax.tick_params(colors=FAINT, labelsize=8)
    if title:
        figure.suptitle(title.replace("$", r"\$"), x=0.02, ha="left", fontsize=10, fontweight="bold", color=INK)
    return _file(figure, "png")
