"""Denoisers: networks as data predictors, and exact ones for known data laws."""

from .._calls import Calls, count_calls
from .aggregate import Aggregate, Joint, Known, Modality, categorical, continuous, orthogonal_codes
from .chunked import Chunked, chunked
from .denoiser import TIMES, ConvertedDenoiser, Denoiser
from .exact import Empirical, Gaussian, GaussianMixture, LowRankMixture
from .field import FIELDS, Field
from .forward_model import ForwardModelDenoiser
from .prediction import PREDICTIONS, Prediction

__all__ = [
    "FIELDS",
    "PREDICTIONS",
    "TIMES",
    "Aggregate",
    "Calls",
    "Chunked",
    "ConvertedDenoiser",
    "Denoiser",
    "Empirical",
    "Field",
    "ForwardModelDenoiser",
    "Gaussian",
    "GaussianMixture",
    "Joint",
    "Known",
    "LowRankMixture",
    "Modality",
    "Prediction",
    "categorical",
    "chunked",
    "continuous",
    "count_calls",
    "orthogonal_codes",
]
