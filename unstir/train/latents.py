"""A training run on the latents of a codec: `unstir train DATA --codec FOLDER`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import codecs
from ..codecs import Codec
from ..data import Buckets, Dataset
from .config import TrainConfig, device_of


def codec_of(config: TrainConfig, folder: str | Path | None) -> Codec | None:
    """The codec in `folder`; of a run that is resumed without one its own, `config.out`/codec; else None.

    ValueError for options that mean pictures.
    """
    own = Path(config.out) / "codec"
    if folder is None and not (config.resume and own.is_dir()):
        return None
    if config.pairs:
        raise ValueError("a codec is for DATA; pairs are restored in pixels")
    if config.augment:
        raise ValueError(
            f"augment={config.augment} moves pictures, which latents are not; use --flip: mirror images are encoded"
        )
    return codecs.load(own if folder is None else folder)


def encoded(
    config: TrainConfig, codec: Codec, training: Dataset | Buckets, validation: Dataset | Buckets
) -> tuple[TrainConfig, Dataset, Dataset]:
    """(options, latents to train on, latents to validate on), encoded once and kept in `config.out`/latents.

    Where the options ask for mirror images, they are encoded, too, and not made of latents.
    """
    if isinstance(training, Buckets) or isinstance(validation, Buckets):
        raise ValueError(f"buckets={config.buckets} are of pictures; latents are kept in one shape: give --size, or no codec")
    if training.shape[0] != codec.pixels:
        raise ValueError(
            f"data has {training.shape[0]} channels, the codec's pictures {codec.pixels}; give --channels {codec.pixels}"
        )
    codec.to(device_of(config.device, local=True))
    folder = Path(config.out) / "latents"
    learnt = codecs.cache(training, codec, folder, flips=config.flip)
    kept = learnt if validation is training else codecs.cache(validation, codec, folder, flips=False, draws=1)
    codec.cpu()
    return replace(config, flip=False), learnt, kept
