"""Two-step methods that can be run backwards exactly: BDIA, O-BELM, and the heavy ball between them.

With Δ_i = x̂_{i+1} − x̂_i and h_i = σ̂_{i+1} − σ̂_i they are one family with momentum m_i:

    Δ_i = m_i Δ_{i−1} + (h_i − m_i h_{i−1}) ε̂_i

m = 0 is DDIM; m_i = −γ α_{i−1}/α_{i+1} BDIA; m_i = −(h_i/h_{i−1})² O-BELM, the member of order 2;
m_i = (1 − β) h_i/h_{i−1} the heavy ball. As rows F is Δ itself, s its momentum, and b_0 = α_{i+1};
all m_i ≠ 0 make the plan invertible, see `inverse`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..plan.plan import Plan
from ..plan.row import Row
from .levels import Levels
from .registry import compiler
from .singlestep import plain_step


@compiler
def two_step(levels: Levels, momentum: str = "obelm", gamma: float = 1.0) -> Iterator[Row]:
    """The family of the module; momentum is "bdia" (γ in (0, 1]), "obelm", or "heavy-ball" (γ = 1 − β).

    (Exact Diffusion Inversion via Bi-directional Integration Approximation, 2024; BELM, 2024.)
    The first step is DDIM's. A step from α = 0 is a plain one and the family starts after it.
    """
    if momentum not in ("bdia", "obelm", "heavy-ball"):
        raise ValueError(f"momentum={momentum!r} must be 'bdia', 'obelm' or 'heavy-ball'")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma} must lie in (0, 1]")
    ratio = [levels[i].ratio for i in range(levels.n + 1)]
    first = int(levels.alpha[0] == 0)
    for i in range(levels.n):
        if i < first:
            yield plain_step(levels[i], levels[i + 1])
            continue
        alpha, sigma, alpha2 = levels.alpha[i], levels.sigma[i], levels.alpha[i + 1]
        h = ratio[i + 1] - ratio[i]
        m = 0.0
        if i > first:
            before = ratio[i] - ratio[i - 1]
            m = {
                "bdia": -gamma * levels.alpha[i - 1] / alpha2,
                "obelm": -((h / before) ** 2),
                "heavy-ball": gamma * h / before,
            }[momentum]
            h -= m * before
        yield Row(
            t=levels.times[i],
            to=levels.times[i + 1],
            a=alpha2 / alpha,
            b={0: alpha2},
            p=h / sigma,
            q=-h * alpha / sigma,
            s=m,
        )


def amplification(plan: Plan) -> float:
    """A = Π 1/|m_i| · α_{i−1}/α_{i+1}: how much running the plan backwards multiplies a rounding error.

    For BDIA it is γ^{−(N−1)}. Measured round-trip errors are about A times the machine epsilon.
    """
    if any(float(row.s) == 0 for row in plan.rows[1:]):
        return math.inf
    alphas = [float(plan.process.alpha(t)) for t in plan.times]
    return alphas[0] * alphas[1] / (alphas[-1] * alphas[-2]) / math.prod(abs(float(row.s)) for row in plan.rows[1:])


def invertible(plan: Plan) -> bool:
    """Can the plan be run backwards exactly? Every row: one lag 0 with weight ≠ 0, a ≠ 0, no noise, s ≠ 0 after the first."""
    return all(
        set(row.b) == {0} and not row.noisy and row.evaluate and all(float(v) != 0 for v in (row.a, row.b[0]))
        for row in plan.rows
    ) and all(float(row.s) != 0 for row in plan.rows[1:])


def check_invertible(plan: Plan, dtype: torch.dtype) -> None:
    """ValueError unless the plan is invertible and its rounding error in `dtype` stays below 1e-3."""
    if not invertible(plan):
        raise ValueError(
            f"plan {plan.name!r} cannot be run backwards: use solver 'obelm' or 'bdia' (no noise, at least 2 steps)"
        )
    error = amplification(plan) * torch.finfo(dtype).eps
    if error > 1e-3:
        raise ValueError(
            f"running this plan of {len(plan)} rows backwards in {dtype} would multiply rounding to about {error:.1e}; "
            "use gamma nearer to 1, fewer steps, or float64"
        )


def inverse(plan: Plan, dtype: torch.dtype = torch.float64) -> Plan:
    """The plan that undoes `plan` exactly, row by row from its end, with the same number of calls less one.

    Forward: F_i = p X_i + q D_i + s F_{i−1}, X_{i+1} = a X_i + b F_i. Backward, from (X_i, F_i):

        F_{i−1} = (F_i − p X_i − q D_i)/s,     X_{i−1} = (X_i − b_{i−1} F_{i−1})/a_{i−1}

    which is again a row. It starts from the pair (X_{N−1}, F_{N−1}): pass it as
    State(x=X_{N−1}, history={0: F_{N−1}}); it ends with X_0 and F_0 in the history (see
    `unstir.steer.invert`, which does both). dtype: that of the state, to refuse hopeless settings.
    """
    check_invertible(plan, dtype)
    rows = []
    for i in range(len(plan.rows) - 1, 0, -1):
        row, before = plan.rows[i], plan.rows[i - 1]
        s, a = float(row.s), float(before.a)
        rows.append(
            Row(
                t=row.t,
                to=before.t,
                a=1 / a,
                b={0: -float(before.b[0]) / a},
                p=-float(row.p) / s,
                q=-float(row.q) / s,
                s=1 / s,
            )
        )
    return Plan(rows, plan.process, name=f"inverse({plan.name})", order=plan.order, offset=1, keep=frozenset({len(rows)}))
