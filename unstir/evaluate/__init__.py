"""Evaluation: metrics that print their floor, pictures, plots and one-file HTML reports.

Metrics need only torch; pictures and plots need Pillow and matplotlib (`unstir[cli]`), imported when first used.
"""

from .likelihood import log_likelihood
from .metrics import (
    PrecisionRecall,
    TrajectoryError,
    energy_distance,
    frechet,
    frechet_moments,
    memorisation,
    mmd,
    precision_recall,
    trajectory_error,
)
from .pictures import grid, labelled_rows, read_meta, save_png
from .plots import error_plot, plan_plot
from .quality import Quality, Tally, picture_metrics, sound_metrics
from .report import Report
from .samples import Score
from .spectrograms import spectrogram_plot

__all__ = [
    "PrecisionRecall",
    "Quality",
    "Report",
    "Score",
    "Tally",
    "TrajectoryError",
    "energy_distance",
    "error_plot",
    "frechet",
    "frechet_moments",
    "grid",
    "labelled_rows",
    "log_likelihood",
    "memorisation",
    "mmd",
    "picture_metrics",
    "plan_plot",
    "precision_recall",
    "read_meta",
    "save_png",
    "sound_metrics",
    "spectrogram_plot",
    "trajectory_error",
]
