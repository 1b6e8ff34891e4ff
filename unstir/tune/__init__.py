"""Tuning: what can be measured or learned about one model so that it samples better in few calls."""

from .layers import Layers
from .learn import Progress, learn
from .search import search
from .space import Solvers
from .statistics import model_statistics
from .stochastic import learn_noise
from .verdict import Checked, check

__all__ = ["Checked", "Layers", "Progress", "Solvers", "check", "learn", "learn_noise", "model_statistics", "search"]
