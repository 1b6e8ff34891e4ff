"""Steering: denoiser → denoiser transforms, hooks and outer loops around plans."""

from .chain import ProductChain, stacked
from .time_shift import matched_time, time_shift

__all__ = ["ProductChain", "matched_time", "stacked", "time_shift"]
