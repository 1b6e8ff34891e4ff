"""`unstir train`: the options of `unstir.train.TrainConfig` as a command, from a file and from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..train import TrainConfig, run_file, train
from . import INTERRUPTED, show
from .live import Live
from .parse import parse


@dataclass(frozen=True)
class Options(TrainConfig):
    """Fit a network to data and write a model folder; Ctrl-C writes a checkpoint, --resume goes on from it.

    unstir train digits --steps 2000 --out out/train

    unstir train --pairs LQ GT --process mean-reverting --size 64 --out out/restorer

    unstir train PHOTOS --size 64 --codec out/autoencoder --out out/model

    unstir train PHOTOS --size 256 --buckets 64

    unstir train --config run.yaml --lr 1e-3

    unstir train --resume --out out/train

    The folder gets run.yaml (every option), log.jsonl, live.html (open it in a browser), checkpoints/ and model/.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """Bundled name ("digits"), a folder of pictures, or an .npy/.npz file."""
    config: Path | None = None
    """YAML or JSON file of options (names as here, with _ or -); what stands on the command line goes before it."""
    codec: Path | None = None
    """Train on the latents of this codec (`unstir autoencoder`); samples of the model are decoded."""
    live: bool = True
    """Write live.html while training."""


def parsed(record: type[Options], args: Sequence[str], command: str) -> Options | None:
    """The options of the command line over those of --config, or over those of the run that --resume goes on with."""
    file = _word(args, "--config")
    if file is None and "--resume" in args:
        kept = Path(_word(args, "--out") or TrainConfig.out) / run_file.NAME
        file = str(kept) if kept.is_file() else None
    return parse(record, args, command, record(**run_file.read(file, record)) if file is not None else record())


def run(options: Options) -> int:
    """Carries out `unstir train`."""
    config = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    config.check()
    if options.resume:
        _compare(config)
    live = Live(config) if options.live else None
    finished = False
    try:
        result = train(config, watch=[live.watch] if live else [], codec=options.codec)
        finished = not result.interrupted
    finally:
        if live is not None and live.event:
            live.close(done=finished)
    show.say(
        f"{result.steps} steps, {result.images} images in {result.seconds:.0f} s; validation loss {result.loss:.4f}"
        + (f"; {result.skipped} steps were not finite and were left out" if result.skipped else "")
    )
    if options.pairs:
        show.say(result.model.meta["data"])  # with what was skipped
    show.wrote(Path(options.out) / "model", Path(options.out) / "log.jsonl", *([live.folder / "live.html"] if live else []))
    if result.interrupted:
        print(f"unstir: stopped at step {result.steps} of {options.steps}; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    return 0


def _compare(config: TrainConfig) -> None:
    """Shows what a resumed run would do otherwise than before; ValueError unless --override allows it."""
    kept = Path(config.out) / run_file.NAME
    changed = run_file.changes(run_file.read(kept), config) if kept.is_file() else ()
    if not changed:
        return
    rows = [(name, _plain(before), _plain(now)) for name, before, now in changed]
    show.say(f"{config.out}:")
    show.table(rows, ("option", "the run so far", "now"))
    if not config.override:
        names = ", ".join(name for name, *_ in changed)
        raise ValueError(
            f"the run in {config.out} was started with other options ({names}); --override goes on with the new ones"
        )


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _word(args: Sequence[str], option: str) -> str | None:
    """The word after an option (or after its equals sign), None where it is not given."""
    for i, word in enumerate(args):
        if word == option and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
