"""Training: objectives (target × weight(λ) × level density), a loop that can be stopped at any moment, model building."""

from .config import TrainConfig
from .fields import field_loss, fit_field
from .levels import LEVELS, Levels
from .main import train
from .networks import PRESETS, build_model, build_network
from .objective import Objective, data_error
from .posthoc import posthoc
from .progress import bar
from .trainer import Result, fit, validate
from .weights import WEIGHTS, Weight

__all__ = [
    "LEVELS",
    "PRESETS",
    "WEIGHTS",
    "Levels",
    "Objective",
    "Result",
    "TrainConfig",
    "Weight",
    "bar",
    "build_model",
    "build_network",
    "data_error",
    "field_loss",
    "fit",
    "fit_field",
    "posthoc",
    "train",
    "validate",
]
