"""`unstir autoencoder`: the options of `unstir.train.AutoencoderConfig` as a command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from .. import data
from ..evaluate import labelled_rows, save_png
from ..train import AutoencoderConfig, train_autoencoder
from . import INTERRUPTED, show

SHOWN = 12  # pictures on the sheet


@dataclass(frozen=True)
class Options(AutoencoderConfig):
    """Learn a codec, pictures as small latents and back, to train diffusion models on; Ctrl-C writes a checkpoint.

    unstir autoencoder PHOTOS --size 64 --steps 5000 --out out/codec

    unstir train PHOTOS --size 64 --codec out/codec --out out/model

    unstir sample out/model
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """A folder of pictures, shards, or an .npy/.npz file; the bundled "digits"."""


def run(options: Options) -> int:
    """Carries out `unstir autoencoder`."""
    if not options.data:
        raise ValueError("give DATA: a folder of pictures, shards, or an .npy/.npz file")
    result = train_autoencoder(options)
    codec = result.codec
    source = data.load(
        options.data,
        size=options.size,
        channels=options.channels,
        labels="none",
        split="test" if options.split == "train" else "all",
    )
    x = source.batch(range(min(SHOWN, len(source))))[0]
    with torch.no_grad():
        again = codec.cpu().decode(codec.encode(x, sample=False)).clamp(-1, 1)
    sheet = Path(options.out) / "reconstructions.png"
    save_png(labelled_rows({"pictures": x, "reconstructions": again}, value_range=(-1, 1)), sheet)
    sides = ", ".join(str(side // codec.factor) for side in x.shape[2:])
    which = "unseen" if options.split == "train" else "the"
    show.say(
        f"{result.steps} steps in {result.seconds:.0f} s; PSNR {result.psnr:.2f} dB on {which} pictures; latents "
        f"({codec.channels}, {sides}) of pictures {tuple(x.shape[1:])}; perceptual part: {result.perceptual}"
        + (f"; {result.skipped} steps were not finite and were left out" if result.skipped else "")
    )
    show.wrote(Path(options.out) / "codec", Path(options.out) / "log.jsonl", sheet)
    if result.interrupted:
        print(f"unstir: stopped at step {result.steps} of {options.steps}; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    return 0
