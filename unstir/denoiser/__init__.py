"""Denoisers: networks as data predictors, and exact ones for known data laws."""

from .._calls import Calls, count_calls
from .chunked import Chunked, chunked
from .denoiser import TIMES, ConvertedDenoiser, Denoiser
from .exact import Empirical, Gaussian, GaussianMixture, LowRankMixture
from .prediction import PREDICTIONS, Prediction

__all__ = [
    "PREDICTIONS",
    "TIMES",
    "Calls",
    "Chunked",
    "ConvertedDenoiser",
    "Denoiser",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "LowRankMixture",
    "Prediction",
    "chunked",
    "count_calls",
]
