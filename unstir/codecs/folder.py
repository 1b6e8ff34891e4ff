"""The codec folder: config.json and model.safetensors, shift and scale among the weights. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from .._files import atomic_folder, read_json, read_tensors, settle, write_json, write_tensors
from .autoencoders import KL, VQ
from .codec import Codec, Identity

FORMAT, VERSION = "unstir-codec", 1
KINDS: dict[str, Any] = {"identity": Identity, "kl": KL, "vq": VQ}


def save(codec: Codec, folder: str | Path, meta: dict[str, Any] | None = None) -> Path:
    """Writes a codec folder, replacing an earlier one; the folder is whole at every moment.

    Raises TypeError for a codec of another class, ValueError if its shift and scale were not measured or the folder is
    something else.
    """
    if type(codec) is not KINDS.get(codec.kind):
        raise TypeError(f"codec is {type(codec).__name__}; only {', '.join(k.__name__ for k in KINDS.values())} have folders")
    codec._measured()
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))):
        raise ValueError(f"folder={str(folder)!r} exists and is no codec folder; it will not be replaced")
    with atomic_folder(folder) as new:
        write(codec, new, meta)
    return folder


def write(codec: Codec, folder: Path, meta: dict[str, Any] | None = None) -> None:
    """The two files of a codec, into a folder that is being made."""
    config = {"format": FORMAT, "version": VERSION, "kind": codec.kind, "options": codec.options, "meta": meta or {}}
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", codec.state_dict())


def load(folder: str | Path) -> Codec:
    """The codec in a folder (or in the folder of a run of `unstir autoencoder`, its codec/), frozen.

    Raises ValueError, in one line, naming the file: missing, no codec, a kind unknown here, weights that do not fit, no scale.
    """
    folder = Path(folder)
    settle(folder)
    if not (folder / "config.json").is_file() and (folder / "codec" / "config.json").is_file():
        folder = folder / "codec"
    file = folder / "config.json"
    config = read_json(file)
    if config.get("format") != FORMAT:
        raise ValueError(f"{file} has format {config.get('format')!r}, not {FORMAT!r}: this is no codec folder")
    if config.get("version") != VERSION:
        raise ValueError(f"{file} has version {config.get('version')!r}; this unstir reads version {VERSION}")
    kind, options = config.get("kind"), config.get("options")
    if kind not in KINDS or not isinstance(options, dict):
        raise ValueError(f"{file}: kind is {kind!r} with options {options!r}; known kinds: {', '.join(KINDS)}")
    try:
        codec: Codec = KINDS[kind](**options) if kind == "identity" else KINDS[kind].of(options)
    except ImportError:
        raise
    except Exception as error:  # whatever a constructor makes of wrong options
        raise ValueError(f"{file}: {kind} cannot be built with these options: {' '.join(str(error).split())}") from None
    weights = folder / "model.safetensors"
    try:
        codec.load_state_dict(read_tensors(weights))
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {file}: {' '.join(str(error).split())[:300]}") from None
    if bool(torch.isnan(codec.scale).any()):
        raise ValueError(f"{weights} holds no latent scale (NaN); call fit_stats on the codec and save it anew")
    return codec.freeze()


def fingerprint(codec: Codec) -> str:
    """A short hash of a codec's kind, options and every weight."""
    digest = hashlib.sha256(json.dumps([codec.kind, codec.options], sort_keys=True, default=str).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + str(tensor.dtype).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return digest.hexdigest()[:16]
