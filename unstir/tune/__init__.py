"""Tuning: what can be measured or learned about one model so that it samples better in few calls."""

from .learn import Progress, learn
from .statistics import model_statistics
from .verdict import Checked, check

__all__ = ["Checked", "Progress", "check", "learn", "model_statistics"]
