"""Denoisers: networks as data predictors, and exact ones for known data laws."""

from .._calls import Calls, count_calls
from .chunked import Chunked, chunked
from .denoiser import TIMES, ConvertedDenoiser, Denoiser
from .exact import Empirical, Gaussian, GaussianMixture, LowRankMixture
from .field import FIELDS, Field
from .prediction import PREDICTIONS, Prediction

__all__ = [
    "FIELDS",
    "PREDICTIONS",
    "TIMES",
    "Calls",
    "Chunked",
    "ConvertedDenoiser",
    "Denoiser",
    "Empirical",
    "Field",
    "Gaussian",
    "GaussianMixture",
    "LowRankMixture",
    "Prediction",
    "chunked",
    "count_calls",
]
