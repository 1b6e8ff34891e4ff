"""Codecs: pictures as small latents and back. KL and VQ autoencoders, windows for large canvases, latents kept on disk."""

from .autoencoders import KL, VQ, kl
from .cached import Cached, cache
from .codec import Codec, Identity, draw
from .folder import fingerprint, load, save, write
from .tiled import Tiled, TiledDenoiser, blend, border_weights, tiled

__all__ = [
    "KL",
    "VQ",
    "Cached",
    "Codec",
    "Identity",
    "Tiled",
    "TiledDenoiser",
    "blend",
    "border_weights",
    "cache",
    "draw",
    "fingerprint",
    "kl",
    "load",
    "save",
    "tiled",
    "write",
]
