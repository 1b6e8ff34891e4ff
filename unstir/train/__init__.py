"""Training: objectives (target × weight(λ) × level density), a loop that can be stopped at any moment, model building."""

from .autoencoder import fit_autoencoder, train_autoencoder
from .autoencoder_config import AutoencoderConfig
from .auxiliary import Auxiliary, Record
from .config import TrainConfig
from .fields import field_loss, fit_field
from .levels import LEVELS, Levels
from .main import train
from .measurements import MeasurementLoss, fit_measurements
from .networks import PRESETS, build_model, build_network
from .objective import Objective, data_error
from .posthoc import posthoc
from .progress import bar
from .routing import RoutingPrior, routing_prior
from .scenes import Scenes, Views
from .trainer import Result, fit, validate
from .weights import WEIGHTS, Weight

__all__ = [
    "LEVELS",
    "PRESETS",
    "WEIGHTS",
    "AutoencoderConfig",
    "Auxiliary",
    "Levels",
    "MeasurementLoss",
    "Objective",
    "Record",
    "Result",
    "RoutingPrior",
    "Scenes",
    "TrainConfig",
    "Views",
    "Weight",
    "bar",
    "build_model",
    "build_network",
    "data_error",
    "field_loss",
    "fit",
    "fit_autoencoder",
    "fit_field",
    "fit_measurements",
    "posthoc",
    "routing_prior",
    "train",
    "train_autoencoder",
    "validate",
]
