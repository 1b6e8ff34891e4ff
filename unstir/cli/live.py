"""`live.html` of a training run: losses, learning rate, speed and samples in one file that reloads itself.

The page is a function of the run's log and of its last checkpoint; a listener of `train` writes it now and then, atomically.
Nothing in it is fetched and no script runs. What goes wrong here never stops a run: it is said on the page.
"""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from .. import codecs, data, sample
from .._files import read_tensors, write_text
from ..denoiser import Denoiser
from ..evaluate import grid
from ..evaluate.pictures import png
from ..evaluate.report import STYLE
from ..train import TrainConfig
from ..train.checkpoint import checkpoints, load_weights
from ..train.config import device_of
from .live_charts import chart

EVERY = 5.0  # seconds between two versions of the page, and between two looks of the browser
SAMPLES, CALLS = 24, 12
_TILES = """
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .45rem .8rem; }
.tiles span { display: block; color: var(--faint); font-size: .78rem; }
.tiles b { font-variant-numeric: tabular-nums; }
svg.chart { width: 100%; height: auto; max-width: 46rem; }
svg.chart text { font: 11px system-ui, sans-serif; fill: var(--faint); }
svg.chart path.grid { stroke: var(--line); stroke-width: 1; fill: none; }
img.samples { image-rendering: pixelated; max-width: 100%; }
"""


class Live:
    """A listener for `train`: Live(config)(model, dataset) watches the run in config.out; `close` writes the last page."""

    def __init__(self, config: TrainConfig, every: float = EVERY) -> None:
        self.config, self.folder, self.every = config, Path(config.out), every
        self.event: Mapping[str, Any] = {}
        self.picture, self.note, self._drawn, self._written = b"", "", "", float("-inf")
        self._model: Denoiser | None = None
        self._data: data.Dataset | data.Buckets | None = None

    def watch(self, model: Denoiser, dataset: data.Dataset | data.Buckets) -> Live:
        """Keeps a copy of the model as it is before training (a run may cut it in parts), to draw samples with."""
        self._model, self._data = copy.deepcopy(model).eval().requires_grad_(False), dataset
        return self

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.event = {**self.event, **event}
        if time.monotonic() - self._written >= self.every:
            self.write(done=False)

    def close(self, done: bool = True) -> None:
        """Writes the page once more; done: and for the last time, without reloading."""
        if self.folder.is_dir():
            self.write(done)

    def write(self, done: bool) -> None:
        """Writes live.html."""
        try:
            self._draw()
        except Exception as error:
            self.note = f"No samples: {' '.join(str(error).split()) or type(error).__name__}"
        try:
            text = page(self.config, read_log(self.folder / "log.jsonl"), self.event, self.picture, self.note, done, self.every)
            write_text(self.folder / "live.html", text)
        except Exception as error:  # a full disk, a log that somebody edits: the run goes on
            self.note = f"The page could not be written at step {self.event.get('step')}: {error}"
        self._written = time.monotonic()

    def _draw(self) -> None:
        """Samples of the last checkpoint's average, with the same seeds every time."""
        found = checkpoints(self.folder)
        if not found or found[-1].name == self._drawn or self._model is None or self._data is None:
            return
        self._drawn = found[-1].name
        shape = self._data.shape if isinstance(self._data.shape, tuple) else ()
        latent = (self.folder / "codec").is_dir()
        if isinstance(self._data, data.Pairs) or not (len(shape) == 3 and (latent or shape[0] in (1, 3))):
            self.note = "Samples are drawn of pictures that are made from noise alone."
            return
        file = found[-1] / "ema.safetensors"
        device = device_of(self.config.device, local=True)
        network: Any = self._model.to(device).network
        load_weights(network, read_tensors(file), file)
        null = self._model.meta.get("null", {})
        classes = {k: v for k, v in null.items() if isinstance(v, int) and v > 0}
        cond: dict[str, Any] = {k: torch.arange(SAMPLES, device=device) % v for k, v in classes.items()}
        with torch.no_grad():
            x = sample(self._model, nfe=CALLS, shape=SAMPLES, seed=0, **cond)
            x = codecs.load(self.folder / "codec").to(device).decode(x) if latent else x
        self.picture = png(grid(x, columns=12, value_range=(-1.0, 1.0) if latent else self._data.range))
        self.note = f"The average at image {int(found[-1].name):,}, {CALLS} calls, the same seeds at every checkpoint."


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl that are whole."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "images" in row:
            rows.append(row)
    return rows


def speeds(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """[(images, images a second)] between the lines of the log; a resumed run's clock starts anew."""
    timed = [(r["images"], r["seconds"]) for r in rows if "seconds" in r]
    return [(n, (n - m) / (s - r)) for (m, r), (n, s) in pairwise(timed) if s > r and n > m]


def page(
    config: TrainConfig,
    rows: Sequence[Mapping[str, Any]],
    event: Mapping[str, Any],
    picture: bytes = b"",
    note: str = "",
    done: bool = False,
    every: float = EVERY,
) -> str:
    """The whole page as text; a function of its arguments alone."""
    name = f"{config.data or ' '.join(config.pairs)} → {config.out}"
    losses = [(r["images"], r["loss"]) for r in rows if "loss" in r]
    checked = [r for r in rows if "validation" in r]
    bands = {lam: [(r["images"], r["validation"][lam]) for r in checked if lam in r["validation"]] for lam in _bands(checked)}
    rate, speed = [(r["images"], r["lr"]) for r in rows if "lr" in r], speeds(rows)
    latest = {**(rows[-1] if rows else {}), **event}
    left = (config.steps * config.batch - latest.get("images", 0)) / speed[-1][1] if speed else None
    tiles = {
        "step": f"{latest.get('images', 0) // config.batch:,} of {config.steps:,}",
        "images": f"{latest.get('images', 0):,}",
        "training loss": f"{losses[-1][1]:.4g}" if losses else "–",
        "validation loss": f"{checked[-1]['validation_loss']:.4g}" if checked and "validation_loss" in checked[-1] else "–",
        "learning rate": f"{rate[-1][1]:.3g}" if rate else "–",
        "images/s": f"{speed[-1][1]:,.0f}" if speed else "–",
        "skipped steps": f"{max((r.get('skipped', 0) for r in [*rows, event]), default=0)}",
        "left": "done" if done else "–" if left is None else _span(left),
    }
    total = [(r["images"], r["validation_loss"]) for r in checked if "validation_loss" in r]
    charts = [
        chart({"training": losses, "validation": total}, "Loss against images", fixed=True),
        chart({f"λ = {lam}": points for lam, points in bands.items()}, "Validation error ‖D − x0‖² by noise level λ = ln(α/σ)"),
        chart({"": rate}, "Learning rate"),
        chart({"": speed}, "Images a second"),
    ]
    image = base64.b64encode(picture).decode()
    shown = [f'<img class="samples" alt="samples" src="data:image/png;base64,{image}">'] if picture else []
    refresh = "" if done else f'<meta http-equiv="refresh" content="{max(1, round(every))}">\n'
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{refresh}'
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(name)}</title>\n<style>{STYLE}{_TILES}</style>\n</head>\n<body>\n<main>\n<h1>{escape(name)}</h1>",
            '<div class="tiles">'
            + "".join(f"<div><span>{k}</span><b>{escape(v)}</b></div>" for k, v in tiles.items())
            + "</div>",
            *charts,
            "<h2>Samples</h2>" if picture or note else "",
            *shown,
            f"<p>{escape(note)}</p>" if note else "",
            "</main>\n</body>\n</html>\n",
        ]
    )


def _bands(checked: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({lam for row in checked for lam in row["validation"]}, key=float)


def _span(seconds: float) -> str:
    minutes, s = divmod(int(max(0.0, seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m} min" if hours else f"{m} min {s} s" if m else f"{s} s"
