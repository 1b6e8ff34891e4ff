"""Steering: denoiser → denoiser transforms, hooks and outer loops around plans."""

from .chain import ProductChain, stacked
from .guidance import Transform, apg, cfg, classifier, energy, threshold
from .inversion import Latent, ddim_invert, invert, regenerate
from .time_shift import matched_time, time_shift

__all__ = [
    "Latent",
    "ProductChain",
    "Transform",
    "apg",
    "cfg",
    "classifier",
    "ddim_invert",
    "energy",
    "invert",
    "matched_time",
    "regenerate",
    "stacked",
    "threshold",
    "time_shift",
]
