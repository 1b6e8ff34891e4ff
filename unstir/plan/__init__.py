"""Plans and the executor that runs them."""

from .execute import NonFiniteError, State, Step, steps, tree_map
from .hooks import Context, Steered
from .plan import JointPlan, Plan, Row
from .sample import sample
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
    "sample",
    "steps",
    "trace",
    "tree_map",
]
