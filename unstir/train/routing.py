"""The routing prior: neighbouring noise levels share experts, distant ones do not, and some experts serve all levels.

A network with a `nets.TimeRouter` has U = L M experts, L blocks of M, of which each level uses n = L k. The prior says which,
but for their names: level number i of G, from clean to stirred, uses the window (`nets.routing.window`) of n neighbours from

    round((i/(G − 1))^α (U − n)),        α = 4,

so that max(0, 2n − U) experts in the middle are on at every level. A matching π gives its columns to experts, one each,
where they agree best with the k experts that every level keeps now:

    min_π Σ_u Σ_i |Q_iu − W_iπ(u)|,      Q: the network's choice, W: the windows, both G × U of 0 and 1

    ℓ = JSD(p_t/L ‖ W_iπ/n),             JSD(a, b) = ½ Σ [a log(a/m) + b log(b/m)],   m = ½(a + b),   0 ≤ JSD ≤ log 2

p_t (U,) are the router's probabilities at the sample's t, i is the nearest level's number. The G = 256 levels are quantiles
of the training levels, so the prior is the same for every process and density. Only router and time embedding learn from ℓ.

    fit(model, dataset, config, auxiliary={"routing": routing_prior(model, config.levels)})

(Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts, 2024. There experts are permuted
at random before each matching, to break ties; here ties are broken the same way always, on every process of a run alike.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._extras import need
from ..denoiser import Denoiser
from ..nets.routing import LEVELS, rank, top, window
from .auxiliary import Record
from .levels import Levels, times
from .levels import levels as named_levels


def jsd(a: Tensor, b: Tensor) -> Tensor:
    """The Jensen–Shannon divergence of distributions (…, U) along the last axis, in [0, log 2]; 0 log 0 = 0."""
    m = (a + b) / 2
    return 0.5 * sum((torch.xlogy(p, p) - torch.xlogy(p, m) for p in (a, b)), torch.zeros(())).sum(-1)


def matching(chosen: Tensor, windows: Tensor) -> Tensor:
    """π (U,): for each column of `chosen` (G, U) its own column of `windows` (G, U), of least total |difference|."""
    cost = torch.cdist(chosen.T.double(), windows.T.double(), p=1)
    return torch.as_tensor(need("scipy.optimize").linear_sum_assignment(cost.cpu().numpy())[1], device=chosen.device)


class RoutingPrior(nn.Module):
    """ℓ of a batch, (B,), from what the network returned: "routing" (B, L, M) and "routing_table" (G, L, M).

    times: (G,) float64, t of the table's rows, rising;   blocks, experts, k: L, M and k;   alpha: how late the window moves.
    every: training batches for which a matching is kept; it is found on the CPU, so on a GPU more than 1 saves waiting.
    """

    times: Tensor
    windows: Tensor
    found: Tensor
    calls: Tensor

    def __init__(self, times: Tensor, blocks: int, experts: int, k: int, *, alpha: float = 4.0, every: int = 1) -> None:
        super().__init__()
        self.k, self.every = k, every
        units = torch.linspace(0, 1, len(times), dtype=torch.float64)
        self.register_buffer("times", times, persistent=False)
        self.register_buffer("windows", window(units, blocks * experts, blocks * k, alpha), persistent=False)
        self.register_buffer("found", torch.arange(blocks * experts))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def match(self, table: Tensor) -> Tensor:
        """π (U,) for the choices that the table (G, L, M) of probabilities makes."""
        return matching(top(table, self.k).flatten(1), self.windows.to(table))

    def distance(self, probs: Tensor, rows: Tensor, match: Tensor) -> Tensor:
        """ℓ of probabilities (B, L, M) at the levels numbered `rows` (B,)."""
        aim = self.windows[rows][:, match].to(probs)
        return jsd(probs.flatten(1) / probs.shape[1], aim / aim.sum(1, keepdim=True))

    def forward(self, record: Record) -> Tensor:
        try:
            probs, table = record.extras["routing"], record.extras["routing_table"]
        except KeyError as missing:
            raise ValueError(
                f"the network returned no {missing}; a routing prior is for one that does, as nets.SwitchDiT"
            ) from None
        match = self.found
        if self.every == 1 or (torch.is_grad_enabled() and int(self.calls) % self.every == 0):
            match = self.match(table)
        if self.every > 1 and torch.is_grad_enabled():  # not in a validation
            self.found.copy_(match)
            self.calls += 1
        return self.distance(probs, rank(record.t, self.times), match)


def set_levels(model: Denoiser, levels: str | Levels = "uniform") -> Tensor:
    """Tells the network's router which levels training visits; their times t (256,), rising.

    levels: the density, as in `TrainConfig.levels` and `Objective.levels`. Raises TypeError for a network without router.
    """
    router = getattr(model.network, "router", None)
    if not isinstance(getattr(router, "levels", None), Tensor):
        raise TypeError(f"the network {type(model.network).__name__} has no router that knows levels; use nets.SwitchDiT")
    density = named_levels(levels) if isinstance(levels, str) else levels
    t = times(density, model.process, (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS)
    told: Any = router.levels  # type: ignore[union-attr]
    told.copy_(model.decoder(t).time)
    return t


def routing_prior(
    model: Denoiser, levels: str | Levels = "uniform", *, alpha: float = 4.0, every: int = 1, shared: bool = True
) -> RoutingPrior:
    """The auxiliary loss for a model around a `nets.SwitchDiT`, or any network with such a `router` and such outputs.

    shared: insist on experts that serve all levels; there are 2n − U of them, if more than half of the experts are on.
    Calls `set_levels`. Raises ValueError for k/M ≤ ½ if shared, for alpha ≤ 0 and every < 1; TypeError without a router.
    """
    t = set_levels(model, levels)
    router: Any = model.network.router  # type: ignore[union-attr]
    experts, k = getattr(router, "experts", None), getattr(router, "k", None)
    if experts is None or k is None:
        raise TypeError(f"{type(router).__name__} has no experts to choose; a routing prior is for nets.TimeRouter")
    if shared and 2 * k <= experts:
        raise ValueError(
            f"k={k} of experts={experts}: windows of at most half of the experts have none in common, so no expert can serve "
            "all levels; take a larger k, or shared=False"
        )
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be > 0")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r} must be a whole number of batches, at least 1")
    return RoutingPrior(t, router.logits.out_features // experts, experts, k, alpha=alpha, every=every)
