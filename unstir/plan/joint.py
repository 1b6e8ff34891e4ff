"""Several plans run in step, one per leaf of a dict state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from ..process import Process
from .plan import Plan, releases
from .row import JointRow


class JointPlan:
    """Plans of equal length, one per leaf of a dict state, run in step: leaves may have their own process.

    JointPlan({"image": plan_a, "action": plan_b}); the model is called with the dict state, with t
    (or {leaf: t}), and returns {leaf: data prediction}.
    """

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        if not plans:
            raise ValueError("plans is empty; give at least one leaf")
        for name, plan in plans.items():
            if not isinstance(plan, Plan):
                raise TypeError(f"plans[{name!r}] is {type(plan).__name__}; every leaf needs an unstir.Plan")
            if plan.offset:
                raise ValueError(f"plans[{name!r}] is the tail of a split plan; split is for plans of a single state")
        shapes = {name: [row.evaluate for row in plan.rows] for name, plan in plans.items()}
        first = next(iter(shapes.values()))
        if any(shape != first for shape in shapes.values()):
            raise ValueError(
                f"plans must call the network in the same rows; lengths are { ({k: len(v) for k, v in shapes.items()}) }"
            )
        self.plans = MappingProxyType(dict(plans))
        self.rows = tuple(JointRow({name: plan.rows[i] for name, plan in plans.items()}) for i in range(len(first)))
        self.offset = 0
        if any(plan.process.anchored for plan in plans.values()):
            raise ValueError("leaves of a joint plan must have processes without an anchor")

    @property
    def processes(self) -> dict[str, Process]:
        """The process of every leaf."""
        return {name: plan.process for name, plan in self.plans.items()}

    def __len__(self) -> int:
        return sum(row.evaluate for row in self.rows)

    def last_use(self) -> dict[int, int]:
        """As `Plan.last_use`, over all leaves."""
        use: dict[int, int] = {}
        for plan in self.plans.values():
            for i, last in plan.last_use().items():
                use[i] = max(last, use.get(i, last))
        return use

    @cached_property
    def releases(self) -> list[list[int]]:
        """As `Plan.releases`, over all leaves."""
        return releases(self)

    def needs(self) -> list[int]:
        """As `Plan.needs`: a joint plan starts at its first row."""
        return []
