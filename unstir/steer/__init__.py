"""Steering: denoiser → denoiser transforms, hooks and outer loops around plans."""

from . import operators
from .chain import ProductChain, stacked
from .guidance import Transform, apg, cfg, classifier, energy, threshold
from .inversion import Latent, ddim_invert, invert, regenerate
from .operators import check_operator
from .posterior import METHODS, posterior
from .replace import repaint_plan
from .time_shift import matched_time, time_shift

__all__ = [
    "METHODS",
    "Latent",
    "ProductChain",
    "Transform",
    "apg",
    "cfg",
    "check_operator",
    "classifier",
    "ddim_invert",
    "energy",
    "invert",
    "matched_time",
    "operators",
    "posterior",
    "regenerate",
    "repaint_plan",
    "stacked",
    "threshold",
    "time_shift",
]
