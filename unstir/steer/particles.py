"""Particles: samples that run together, are weighed on the way and resampled, so that they draw from a tilted law.

k particles a wanted sample walk through a plan. For a reward r, any function of the data prediction, the target is

    p*(x0) ∝ p(x0) exp(λ r(x0)),      p(x0) what model and plan draw.

After each row the weights take in r(D_i) by a potential G_i (see `population`). Where the effective sample size
(Σ w)²/Σ w² of a group falls below a share of k, its particles are drawn anew by weight, with history, hooks and
memory of the run, and log w ← 0. Weights are kept from one resampling to the next.
(A General Framework for Inference-time Scaling and Steering of Diffusion Models, 2025.)

With gradients the rows are guided too (Practical and Asymptotically Exact Conditional Sampling in Diffusion
Models, 2023): of a row X' = M + c z the mean becomes M + c² g, g = λ ∇_X r(D(X, t)), and the weight takes

    log p(X')/q(X') = [‖X' − M − c² g‖² − ‖X' − M‖²]/2c² = −⟨X' − M − c² g, g⟩ − ½ c² ‖g‖².
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._calls import Calls
from ..denoiser.denoiser import accepts
from ..denoiser.inner import evaluate
from ..plan import sample
from ..plan.hooks import Context
from ..plan.sample import choose
from ..plan.state import State, full_shape, tree_map
from .guidance import Transform
from .population import Population, check

Reward = Callable[..., Any]


@dataclass(frozen=True)
class Swarm:
    """n groups of k weighted particles: x (n, k, *), rewards and normalised log_weights (n, k), log_z (n,), origin (n, k)."""

    x: Tensor
    rewards: Tensor
    log_weights: Tensor
    log_z: Tensor
    origin: Tensor
    calls: Calls = field(default_factory=Calls)

    @property
    def best(self) -> Tensor:
        """(n, *), the particle of each group with the largest reward."""
        return self.pick(self.rewards.argmax(1))

    def pick(self, which: Tensor) -> Tensor:
        """(n, *), particle which[i] of group i."""
        return self.x[torch.arange(len(which)), which]

    def draw(self, seed: int = 0) -> Tensor:
        """(n, *), one particle of each group drawn by weight: samples of the target, as far as k reaches."""
        u = torch.rand(len(self.log_z), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.pick((self.log_weights.exp().cumsum(1) < u).sum(1).clamp_max(self.x.shape[1] - 1))

    @property
    def ancestors(self) -> Tensor:
        """(n,), how many of the k starts have descendants at the end: 1 says that a group has become one family."""
        return torch.tensor([len(set(row)) for row in self.origin.tolist()])


def particles(
    model: Any,
    plan: Any,
    reward: Reward,
    n: int = 1,
    k: int = 8,
    lam: float = 1.0,
    *,
    potential: str = "difference",
    proposal: str = "plan",
    resampling: str = "systematic",
    threshold: float = 0.5,
    every: int = 1,
    start: int = 0,
    stop: int | None = None,
    nfe: int | None = None,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    index: Sequence[int] | None = None,
    anchor: Tensor | None = None,
    hooks: Sequence[Any] = (),
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Swarm:
    """n samples of p(x0) exp(λ r(x0)), each from k particles: particles(model, plan, reward, n=16, k=8).best.

    model, plan, nfe, seed, hooks, dtype: as in `unstir.sample`; any process, any plan. It should add noise, for copies
        of a deterministic plan never part (a warning).
    reward: reward(data) -> (B,), numbers of any kind, larger is better; of a latent model reward(decode(data)). If it
        names an argument t it is told the row's time, as a likelihood of y given x_t asks for.
    lam: λ.   potential: see the module.   resampling: "systematic", "stratified" or "multinomial".
    threshold: a group is resampled where its effective sample size < threshold · k; 1 always, 0 never.
    every, start, stop: the rows that are weighed, start, start + every, … < stop (all but the last, whose end state is).
    proposal: "plan" leaves the rows as they are; "gradient" guides them with the reward's gradient, which must exist.
    index: the groups of this call; a group's samples depend on (seed, its index) only.
    cond, anchor: tensors of n entries are given to all particles of their group.

    Carries: nothing is changed in D, so nothing is kept of it; hooks see states and predictions after the resampling,
    which takes place on the mean of a row, before its noise parts the copies. Calls a particle: one forward a row,
    and with proposal="gradient" one backward. The reward's own cost is not counted.

    Raises ValueError for a reward of the wrong length, not finite (naming the row), or without a gradient where one is
    needed; and for a schedule that weighs no row.
    """
    plan = choose(model, plan, nfe)
    for name, value in {"n": n, "k": k, "every": every}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if proposal not in ("plan", "gradient"):
        raise ValueError(f"proposal={proposal!r} must be 'plan' or 'gradient'")
    check(n * k, k, lam, potential, resampling, threshold)
    if k > 1 and not getattr(plan, "stochastic", True):
        warnings.warn(
            f"plan {plan.name!r} adds no noise, so copies of a particle never part; use 'ancestral' or solvers.churn(plan)",
            stacklevel=2,
        )
    last = len(plan.rows) - 1 if hasattr(plan, "rows") else sys.maxsize
    stop = last if stop is None else stop
    if k > 1 and potential != "none" and last > 0 and not 0 <= start < min(stop, last):
        raise ValueError(f"start={start}, stop={stop} weigh no row of this plan of {last + 1} rows but the last")
    hook = _Steering(reward, lambda keys: Population(keys, k, lam, potential, resampling, threshold), range(start, stop, every))
    if proposal == "gradient":
        if foreign := [*getattr(model, "hooks", ()), *hooks]:
            raise ValueError(f"proposal='gradient' knows the law of its rows, which the hook {foreign[0]!r} may change")
        model = Transform(hook.differentiated(model), model)

    def each(value: Any) -> Any:
        many = isinstance(value, Tensor) and value.ndim > 0 and len(value) == n
        return value.repeat_interleave(k, 0) if many else value

    if shape is None and getattr(model, "shape", None) is None:
        raise ValueError("the model does not know its sample shape; give shape=, of one sample without the batch")
    size = full_shape(model, (n * k, *(model.shape if shape is None else shape)))
    places = None if index is None else [i * k + j for i in index for j in range(k)]
    seen: list[Any] = [None]  # the last step: its x is the state itself, in whatever frame the rows run
    state: State = sample(
        model, plan, shape=size, seed=seed, index=places, hooks=(*hooks, hook), anchor=each(anchor), full=True,
        on_step=lambda step: seen.__setitem__(0, step), dtype=dtype, **{key: each(value) for key, value in cond.items()},
    )  # fmt: skip
    x, end = seen[0].x, seen[0].to
    crowd, rewards = hook.population, hook.checked(hook.value(x, end), len(x), "end state")
    crowd.finish(rewards)
    weights = crowd.log_weights.log_softmax(1)
    return Swarm(x.reshape(n, k, *x.shape[1:]), rewards.reshape(n, k), weights, crowd.log_z, crowd.origin, state.calls)


class _Steering:
    """The hook: weighs and resamples on the mean of a row, and guides it where gradients are wanted."""

    population: Population

    def __init__(self, reward: Reward, populate: Callable[[Sequence[int]], Population], rows: range) -> None:
        self.reward, self.populate, self.rows, self.wants_time = reward, populate, rows, accepts(reward, "t")
        self.guided: tuple[Tensor, Tensor] | None = None  # r and g of the row, where it is guided
        self.mean: Tensor | None = None

    def value(self, data: Any, t: Any) -> Any:
        """r(data), whatever the reward returns."""
        return self.reward(data, t=t) if self.wants_time else self.reward(data)

    @staticmethod
    def checked(raw: Any, batch: int, where: str) -> Tensor:
        """Rewards as (B,) float64 on the CPU."""
        r = torch.as_tensor(raw).detach().to("cpu", torch.float64)
        if r.shape != (batch,):
            raise ValueError(f"the reward returned shape {tuple(r.shape)} for {batch} predictions; return one number each")
        if bad := int((~torch.isfinite(r)).sum()):
            raise ValueError(f"{where}: the reward is NaN or infinite for {bad} of {batch} predictions; bound it (clamp)")
        return r

    def start(self, ctx: Context) -> None:
        self.population = self.populate(ctx.run.keys)

    def on_mean(self, ctx: Context, mean: Any) -> Any:
        if ctx.data is None or not ctx.boundary:
            self.guided = None
            return None
        if ctx.index in self.rows and not ctx.last:
            raw = self.value(ctx.data, ctx.t) if self.guided is None else self.guided[0]
            self.population.weigh(self.checked(raw, len(ctx.run.keys), f"row {ctx.index}"))
            perm = self.population.resample(ctx.index)
            if perm is not None:
                ctx.permute(perm)  # history, memory and the other hooks; what this row made is ours to permute
                ctx.x, ctx.data, mean = (
                    tree_map(lambda v, perm=perm: v[perm.to(v.device)], tree) for tree in (ctx.x, ctx.data, mean)
                )
                if self.guided is not None:
                    self.guided = (self.guided[0], self.guided[1][perm.to(mean.device)])
        if self.guided is not None:
            mean = mean + _std(ctx, mean) ** 2 * self.guided[1]
            self.mean = mean
        ctx.mean = mean
        return mean

    def on_row(self, ctx: Context, x: Any) -> None:
        if self.guided is not None:
            g = self.guided[1]
            back = (x - self.mean) * g + 0.5 * (_std(ctx, x) * g) ** 2
            self.population.add(-back.double().flatten(1).sum(1).cpu())
            self.guided = None

    def differentiated(self, model: Any) -> Callable[..., Tensor]:
        """The rule of a transform that leaves D alone, and finds r and g on the way."""
        advice = "proposal='gradient' needs a reward that torch can differentiate; use proposal='plan' for this one"

        def rule(x: Tensor, t: Any, ctx: Context, cond: dict[str, Any]) -> Tensor:
            if not isinstance(x, Tensor):
                raise TypeError("proposal='gradient' guides states that are one tensor; use 'plan' for dicts")
            with torch.enable_grad():
                u = x.detach().requires_grad_(True)
                data = evaluate(model, u, t, ctx, cond)
                if not data.requires_grad:
                    raise ValueError("proposal='gradient' differentiates the model, whose result has no graph")
                try:
                    r = self.value(data, t)
                except RuntimeError as error:
                    if "requires grad" in str(error):  # what numpy() says
                        raise ValueError(f"the reward leaves torch: {advice}") from error
                    raise
                if not (isinstance(r, Tensor) and r.requires_grad):
                    raise ValueError(f"the reward has no gradient: {advice}")
                (slope,) = torch.autograd.grad(r.sum(), u)
            self.guided = (r.detach(), self.population.lam * slope)
            return data.detach()

        return rule


def _std(ctx: Context, like: Tensor) -> Any:
    """c of the row, to multiply a state with."""
    return ctx.std.to(like) if isinstance(ctx.std, Tensor) else ctx.std
