"""Steering: denoiser → denoiser transforms, hooks and outer loops around plans."""

from .chain import ProductChain, stacked
from .inversion import Latent, ddim_invert, invert, regenerate
from .time_shift import matched_time, time_shift

__all__ = ["Latent", "ProductChain", "ddim_invert", "invert", "matched_time", "regenerate", "stacked", "time_shift"]
