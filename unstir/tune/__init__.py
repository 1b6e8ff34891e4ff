"""Tuning: what can be measured or learned about one model so that it samples better in few calls."""

from .statistics import model_statistics

__all__ = ["model_statistics"]
