"""Data to learn from: picture folders, arrays, bundled real data. `load` finds out which."""

from .dataset import Dataset
from .load import BUNDLED, load

__all__ = ["BUNDLED", "Dataset", "load"]
