"""Plans and the executor that runs them."""

from .brownian import brownian
from .execute import steps
from .hooks import Context, Steered
from .joint import JointPlan
from .plan import Plan
from .row import Row
from .sample import sample
from .state import NonFiniteError, State, Step, tree_map
from .trace import Symbol, Tracer, trace

__all__ = [
    "Context",
    "JointPlan",
    "NonFiniteError",
    "Plan",
    "Row",
    "State",
    "Steered",
    "Step",
    "Symbol",
    "Tracer",
    "brownian",
    "sample",
    "steps",
    "trace",
    "tree_map",
]
