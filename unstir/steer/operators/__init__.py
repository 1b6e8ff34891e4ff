"""Measurement operators y = A x + noise, for posterior sampling. Those of `deepinv.physics` work as they are."""

from .derive import adjoint, check_operator, conjugate_gradients, is_linear, is_spectral, norm, pinv, prox
from .linear import (
    Linear,
    Nonlinear,
    Spectral,
    average_pool,
    blur,
    dense,
    mask,
    phase_retrieval,
    separable,
    separable_blur,
)
from .scan import explicit, lines, mri, radon

__all__ = [
    "Linear",
    "Nonlinear",
    "Spectral",
    "adjoint",
    "average_pool",
    "blur",
    "check_operator",
    "conjugate_gradients",
    "dense",
    "explicit",
    "is_linear",
    "is_spectral",
    "lines",
    "mask",
    "mri",
    "norm",
    "phase_retrieval",
    "pinv",
    "prox",
    "radon",
    "separable",
    "separable_blur",
]
