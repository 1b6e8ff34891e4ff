"""Evaluation: metrics that print their floor, pictures, plots and one-file HTML reports.

Metrics need only torch; pictures and plots need Pillow and matplotlib (`unstir[cli]`), imported when first used.
"""

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
from .pictures import grid, labelled_rows, save_png
from .plots import error_plot, plan_plot
from .report import Report
from .samples import Score

__all__ = [
    "PrecisionRecall",
    "Report",
    "Score",
    "TrajectoryError",
    "energy_distance",
    "error_plot",
    "frechet",
    "frechet_moments",
    "grid",
    "labelled_rows",
    "memorisation",
    "mmd",
    "plan_plot",
    "precision_recall",
    "save_png",
    "trajectory_error",
]
