"""Evaluation: metrics that print their floor, pictures, plots and one-file HTML reports.

Metrics need only torch; pictures and plots need Pillow and matplotlib (`unstir[cli]`), imported when first used.
"""

from .classifier import Classifier, load_classifier, train_classifier
from .compare import METRICS, Metric, compare, per_class
from .features import random_conv
from .forecasts import crps, quantile_loss
from .graphs import graph_mmd, orbits, random_gin
from .kernels import cmmd, energy_distance, kid, mmd
from .likelihood import log_likelihood
from .metrics import (
    Neighbours,
    PrecisionRecall,
    TrajectoryError,
    memorisation,
    neighbours,
    precision_recall,
    trajectory_error,
    vendi,
)
from .moments import frechet, frechet_infinity, frechet_moments
from .pictures import grid, labelled_rows, read_meta, save_png
from .plots import error_plot, plan_plot
from .quality import Quality, Tally, paired, picture_metrics, sound_metrics
from .report import Report
from .samples import Score
from .segmentation import Segmentation, dice, hd95, segmentation
from .spectrograms import spectrogram_plot

__all__ = [
    "METRICS",
    "Classifier",
    "Metric",
    "Neighbours",
    "PrecisionRecall",
    "Quality",
    "Report",
    "Score",
    "Segmentation",
    "Tally",
    "TrajectoryError",
    "cmmd",
    "compare",
    "crps",
    "dice",
    "energy_distance",
    "error_plot",
    "frechet",
    "frechet_infinity",
    "frechet_moments",
    "graph_mmd",
    "grid",
    "hd95",
    "kid",
    "labelled_rows",
    "load_classifier",
    "log_likelihood",
    "memorisation",
    "mmd",
    "neighbours",
    "orbits",
    "paired",
    "per_class",
    "picture_metrics",
    "plan_plot",
    "precision_recall",
    "quantile_loss",
    "random_conv",
    "random_gin",
    "read_meta",
    "save_png",
    "segmentation",
    "sound_metrics",
    "spectrogram_plot",
    "train_classifier",
    "trajectory_error",
    "vendi",
]
