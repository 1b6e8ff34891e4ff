"""From options to a model folder: what `unstir train` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .. import codecs, data
from ..denoiser import Denoiser
from ..nets import SwitchDiT
from . import latents, run_file
from .config import TrainConfig
from .networks import build_model
from .progress import Event, Listener, bar
from .routing import routing_prior
from .trainer import Result, fit

Data = data.Dataset | data.Buckets
Watch = Callable[[Denoiser, Data], Listener]


def train(config: TrainConfig, *, show: bool = True, watch: Sequence[Watch] = (), codec: str | Path | None = None) -> Result:
    """Loads the data, builds the network, trains it, and writes the model folder `config.out`/model.

    show: a progress bar on the terminal, and what was skipped of pairs. After Ctrl-C the model so far is written, too, and
    `result.interrupted` is true. Errors are those of `data.load`, `build_model` and `fit`.
    watch: makers of listeners; each is told the model before it is trained, and the data, and its listener every step.
    codec: a codec folder: the model learns the latents, kept in `config.out`/latents, and has the codec in its folder. A run
    keeps a copy of it, `config.out`/codec, with which it is resumed.

    The options are written to `config.out`/run.yaml at the first step.
    """
    from ..interop import save_model  # interop reads models, so it knows train; not the other way round at import

    config.check()
    training, validation = _load(config)
    asked, encoder = config, latents.codec_of(config, codec)
    if encoder is not None:
        config, training, validation = latents.encoded(config, encoder, training, validation)
    model = build_model(
        training,
        process=config.process,
        predicts=config.predicts,
        conditional=config.conditional,
        preset=config.preset,
        seed=config.seed,
        self_conditioning=config.self_conditioning > 0,
        augment=config.augment > 0,
    )
    more: dict[str, Any] = {"validation": validation}
    if isinstance(model.network, SwitchDiT):
        more["auxiliary"] = {"routing": routing_prior(model, config.levels)}
    listeners = [_keep_options(asked, encoder), *(make(model, training) for make in watch)]
    with bar(config.steps, config.data or config.pairs[0], Path(config.out) / "log.jsonl") if show else nullcontext() as shown:
        if shown is not None:
            listeners.append(shown)
        result = fit(model, training, config, progress=lambda event: _tell(listeners, event), **more)
    result.model.codec = encoder
    save_model(result.model, Path(config.out) / "model")
    return result


def _tell(listeners: Sequence[Listener], event: Event) -> None:
    for listener in listeners:
        listener(event)


def _keep_options(config: TrainConfig, codec: Any = None) -> Listener:
    """Writes the options, and the codec, at the first step: then the run has begun, and this is the process that writes."""
    waiting = [Path(config.out) / run_file.NAME]

    def keep(event: Event) -> None:
        if waiting:
            run_file.write(config, waiting.pop())
            if codec is not None:
                codecs.save(codec, Path(config.out) / "codec")

    return keep


def _load(config: TrainConfig) -> tuple[Data, Data]:
    """(data to train on, data to validate on)."""
    if config.pairs:
        pairs: dict[str, Any] = {"size": config.size, "channels": config.channels}
        training = data.load_pairs(config.pairs, **pairs, split=config.split)
        return training, data.load_pairs(config.pairs, **pairs, split="test") if config.split == "train" else training
    if config.buckets:
        if not Path(config.data).is_dir():
            raise ValueError(f"buckets={config.buckets} sorts a folder of pictures by their shapes; {config.data!r} is none")
        side = {} if config.size is None else {"side": config.size}
        whole = data.load_buckets(config.data, **side, step=config.buckets, channels=config.channels, labels=config.labels)
        return whole.split(max(1, round(len(whole) / 6))) if config.split == "train" else (whole, whole)
    options: dict[str, Any] = {"size": config.size, "channels": config.channels, "labels": config.labels}
    training = data.load(config.data, **options, split=config.split)
    return training, data.load(config.data, **options, split="test") if config.split == "train" else training
