"""Editing: a picture is taken up into noise under one condition, or by one model, and comes down under another.

What is kept of the picture is what the way up writes down:

    "sdedit"          only a stirred picture, α x0 + σ z (SDEdit: Guided Image Synthesis and Editing with SDEs, 2022)
    "ddim"            the state of DDIM run upwards: as exact as its steps are small (DDIM, 2021)
    "bdia", "obelm"   the pair of states of a plan that can be undone exactly, see `inversion`
    "edict"           two coupled states, undone exactly at twice the calls (EDICT: Exact Diffusion Inversion via
                      Coupled Transformations, 2023)
    "cyclediffusion"  all the noises of a stochastic plan (Unifying Diffusion Models' Latent Space, with Applications to
                      CycleDiffusion and Guidance, 2022)

The DPM-Encoder of the last draws a noisy trajectory of the picture and solves every row for its noise:

    X_0 = α_0 x0 + σ_0 ξ,   X_{i+1} = α_{i+1} x0 + √(σ²_{i+1} − c²_i) (X_i − α_i x0)/σ_i + c_i ξ_i,
    z_i = (X_{i+1} − M_i)/c_i,     M_i = a_i X_i + Σ b_ij F_{i−j} + e_i

so any plan that adds noise will do, of several stages or with history too. The last row adds none: what it misses of the
picture is the residual.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._random import PRIOR, draw, normal, sample_keys
from ..denoiser.denoiser import ConvertedDenoiser
from ..plan import Plan, sample
from ..plan.hooks import Context
from ..process import VP, Process
from ..process.base import expand
from ..solvers import compile_plan
from .inversion import ddim_invert, invert, regenerate

_ENCODE = 3 << 33  # the first random stream of encoders; row r uses stream _ENCODE + r
END = 0.005  # where inversions end: λ is infinite at clean data, so they start from x0 as the state at σ̂ = 0.03
TRAJECTORIES = ("posterior", "independent")


# -- stirring only -------------------------------------------------------------------------------------------------------
def sdedit(
    model: Any, plan: Plan, x0: Tensor, *, seed: int | Sequence[int] = 0, index: Sequence[int] | None = None, **cond: Any
) -> Tensor:
    """x0 (B, *) stirred to the plan's start and brought back; any plan, one forward call a row."""
    z = normal(tuple(x0.shape), seed=seed, index=index, stream=PRIOR, dtype=x0.dtype, device=x0.device)
    return sample(model, plan, x=plan.process.stir(x0, plan.start, z), seed=seed, index=index, **cond)


# -- the DPM-Encoder -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Encoded:
    """A picture as the noises of a plan: the start state x, {row: z}, what the noiseless end misses, and which plan it was."""

    x: Tensor
    noises: Mapping[int, Tensor]
    residual: Tensor
    plan: str


class _Encoder:
    """The hook that solves rows for their noise. Its `noise` is what the executor then adds, so the run is the trajectory."""

    def __init__(self, process: Process, x0: Tensor, keys: list[int], independent: bool) -> None:
        self.process, self.x0, self.keys, self.independent = process, x0, keys, independent
        self.noise: dict[int, Tensor] = {}

    def on_mean(self, ctx: Context, mean: Tensor) -> None:
        if not ctx.row.noisy:
            return
        alpha, sigma = (expand(f(ctx.t), mean) for f in (self.process.alpha, self.process.sigma))
        alpha2, sigma2 = (expand(f(ctx.to), mean) for f in (self.process.alpha, self.process.sigma))
        c = ctx.std.to(mean) if isinstance(ctx.std, Tensor) else ctx.std
        fresh = sigma2 if self.independent else c
        kept = (sigma2**2 - fresh**2).clamp_min(0).sqrt() * (ctx.x - alpha * self.x0) / sigma
        xi = draw(self.keys, mean.shape[1:], _ENCODE + ctx.index, mean.dtype, mean.device)
        self.noise[ctx.index] = (alpha2 * self.x0 + kept + fresh * xi - mean) / c


def encode(
    model: Any,
    plan: Plan,
    x0: Tensor,
    *,
    trajectory: str = "posterior",
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    **cond: Any,
) -> Encoded:
    """The noises with which the plan draws x0 (B, *): one forward call a row; `decode` is its inverse.

    plan: any that adds noise, to clean data. trajectory: "posterior" as in the module; "independent" stirs x0 anew at
    every noisy row, which spreads more of the picture over the noises. The model must be deterministic.
    Hooks of the model run as in sampling, and must leave the states alone. Raises ValueError for a plan without noise.
    """
    if trajectory not in TRAJECTORIES:
        raise ValueError(f"trajectory={trajectory!r} must be one of {', '.join(TRAJECTORIES)}")
    if not plan.stochastic:
        raise ValueError(
            f"plan {plan.name!r} adds no noise, so there is none to encode into; use 'ddim' with eta > 0, 'ancestral' or "
            "'dpmpp-2m-sde', or invert it (methods 'obelm', 'bdia', 'ddim')"
        )
    keys = sample_keys(len(x0), seed, index)
    xi = draw(keys, x0.shape[1:], PRIOR, x0.dtype, x0.device)
    start = plan.process.stir(x0, plan.start, xi)
    encoder = _Encoder(plan.process, x0, keys, trajectory == "independent")
    end = sample(model, plan, x=start, hooks=encoder, noise=lambda row: encoder.noise[row], **cond)
    return Encoded(start, encoder.noise, x0 - end, plan.fingerprint())


def decode(model: Any, plan: Plan, encoded: Encoded, *, exact: bool = False, **cond: Any) -> Tensor:
    """The picture that the plan draws from these noises, one forward call a row.

    exact: add the residual, which makes the picture itself of it, to rounding, under the condition of `encode`.
    """
    if plan.fingerprint() != encoded.plan:
        raise ValueError(f"plan {plan.name!r} is not the one that the picture was encoded with; noises belong to rows")
    x = sample(model, plan, x=encoded.x, noise=encoded.noises, **cond)
    return x + encoded.residual if exact else x


# -- EDICT: two coupled states, so no table; the loop is the method ----------------------------------------------------------
def _slopes(model: Any, process: Process, times: Sequence[float], **cond: Any) -> Any:
    """(A, B, ε̂) of every step: x̂' = x̂ + h ε̂ is x' = A x + B ε̂(x, t), A = α'/α, B = σ' − A σ."""
    for t, to in pairwise(times):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        a = float(process.alpha(to)) / alpha
        yield a, float(process.sigma(to)) - a * sigma, lambda x, t=t, u=alpha, s=sigma: (x - u * model(x, t, **cond)) / s


@torch.no_grad()
def edict(
    model: Any, process: Process, times: Sequence[float], x: Tensor, y: Tensor, p: float = 0.93, **cond: Any
) -> tuple[Tensor, Tensor]:
    """EDICT sampling of the pair (x, y) along decreasing times, two calls a step; p mixes the two."""
    for a, b, noise in _slopes(model, process, times, **cond):
        x = a * x + b * noise(y)
        y = a * y + b * noise(x)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return x, y


@torch.no_grad()
def edict_invert(
    model: Any, process: Process, times: Sequence[float], x: Tensor, y: Tensor, p: float = 0.93, **cond: Any
) -> tuple[Tensor, Tensor]:
    """Undoes `edict`, line by line from its end; `times` as there, decreasing."""
    for a, b, noise in reversed(list(_slopes(model, process, times, **cond))):
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = (y - b * noise(x)) / a
        x = (x - b * noise(y)) / a
    return x, y


# -- one door to them all ------------------------------------------------------------------------------------------------
class Edit(NamedTuple):
    """A method: its function, its plan, calls (up, down) of n rows, whether the plan goes to clean data (σ = 0) and runs on VP.

    run(source model, target model, plan, x0, source, target, seeds, **options); options not of it are its solver's.
    vp: its rule is written in α, and poor where α = 1 ("bdia" is the leapfrog there), so that models of other processes
    are converted to the linear VP process, which is exact. None of the methods changes D, so nothing is carried. Hooks
    of the models run on the way down as in sampling; on the way up they see states that rise in noise, except with
    "cyclediffusion", which goes down twice.
    """

    run: Callable[..., Tensor]
    solver: str
    options: Mapping[str, Any]
    calls: Callable[[int], tuple[int, int]]
    clean: bool = False
    vp: bool = False


def _sdedit(up: Any, down: Any, plan: Plan, x0: Tensor, source: Any, target: Any, seeds: Any) -> Tensor:
    return sdedit(down, plan, x0, **seeds, **target)


def _ddim(up: Any, down: Any, plan: Plan, x0: Tensor, source: Any, target: Any, seeds: Any) -> Tensor:
    return _from_end(plan, lambda x: sample(down, plan, x=ddim_invert(up, plan, x, **source), **target), x0)


def _two_step(up: Any, down: Any, plan: Plan, x0: Tensor, source: Any, target: Any, seeds: Any) -> Tensor:
    return _from_end(plan, lambda x: regenerate(down, plan, invert(up, plan, x, **source), **target), x0)


def _edict(up: Any, down: Any, plan: Plan, x0: Tensor, source: Any, target: Any, seeds: Any, p: float = 0.93) -> Tensor:
    if not 0 < p <= 1:
        raise ValueError(f"p={p} must lie in (0, 1]")

    def there_and_back(x: Tensor) -> Tensor:
        return edict(
            down, plan.process, plan.times, *edict_invert(up, plan.process, plan.times, x, x, p, **source), p, **target
        )[0]

    return _from_end(plan, there_and_back, x0)


def _cycle(
    up: Any, down: Any, plan: Plan, x0: Tensor, source: Any, target: Any, seeds: Any,
    trajectory: str = "posterior", exact: bool = False,
) -> Tensor:  # fmt: skip
    encoded = encode(up, plan, x0, trajectory=trajectory, **seeds, **source)
    return decode(down, plan, encoded, exact=exact, **target)


def _from_end(plan: Plan, edit: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """An edit of the state α x0 at the plan's end, as pictures."""
    alpha = float(plan.process.alpha(plan.end))
    return edit(alpha * x0) / alpha


EDITS: dict[str, Edit] = {
    "sdedit": Edit(_sdedit, "ddim", {"eta": 1.0}, lambda n: (0, n), clean=True),
    "ddim": Edit(_ddim, "ddim", {}, lambda n: (n, n)),
    "bdia": Edit(_two_step, "bdia", {}, lambda n: (n, n - 1), vp=True),
    "obelm": Edit(_two_step, "obelm", {}, lambda n: (n, n - 1)),
    "edict": Edit(_edict, "ddim", {}, lambda n: (2 * n, 2 * n), vp=True),
    "cyclediffusion": Edit(_cycle, "ddim", {"eta": 0.1}, lambda n: (n, n), clean=True),
}


def edit(
    model: Any,
    x0: Tensor,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    method: str = "cyclediffusion",
    strength: float | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    into: Any = None,
    refine: float = 0.0,
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """Pictures x0 (B, *) of the condition `source` as pictures of `target`.

        edit(model, x0, {"class_labels": threes}, {"class_labels": eights}, "obelm", strength=0.5)

    source, target: keywords for the networks.   method: one of `EDITS`, see the module.
    strength: how far up it goes, s in [0.05, 1], 0.6 by default, as the time of the linear VP process that is as noisy
        (σ̂ = 1.2 at 0.3, 6 at 0.6). Low keeps the picture, high follows the target; the same on every process.
    nfe: rows of the plan, 40 by default.   plan: one of your own, in place of strength and nfe; where it
        is of another process, the models are seen on that (`Denoiser.on`).
    into: the model of the way down, if it is not `model`: a guided one (`steer.cfg`), or one of another domain.
    refine: strength of a last "sdedit" of the result under the target; 0 leaves it out.
    options: of the method (trajectory, exact; p) or of its solver (eta, gamma).

    The round trip edit(…, target=source) returns x0 to rounding with "bdia", "obelm", "edict" and, with exact=True,
    "cyclediffusion". Raises ValueError for unknown methods and options, and for what a method cannot do.
    """
    if method not in EDITS:
        raise ValueError(f"method={method!r} is unknown; one of {', '.join(EDITS)}")
    entry = EDITS[method]
    process = getattr(model, "process", None)
    if process is None or process.anchored:
        raise TypeError("edit needs a model that knows its process (an unstir.Denoiser), without an anchor")
    into = model if into is None else into
    own = list(inspect.signature(entry.run).parameters)[7:]
    ours = {key: options.pop(key) for key in own if key in options}
    if plan is None:
        plan = edit_plan(process, method, 0.6 if strength is None else strength, 40 if nfe is None else nfe, **options)
    elif strength is not None or nfe is not None or options:
        given = next(iter(options), "nfe" if strength is None else "strength")
        raise ValueError(f"{given}= has no effect on a given plan; plan.tail(t) starts lower")
    seeds = {"seed": seed, "index": index}
    up, down = (m if m.process == plan.process else ConvertedDenoiser(m, plan.process) for m in (model, into))
    x = entry.run(up, down, plan, x0, dict(source), dict(target), seeds, **ours)
    return sdedit(into, edit_plan(process, "sdedit", refine, len(plan)), x, **seeds, **target) if refine else x


def edit_plan(process: Process, method: str, strength: float = 0.6, nfe: int = 40, **options: Any) -> Plan:
    """The plan that `edit` uses: nfe rows from `strength` down, uniform in the time of the linear VP process."""
    if method not in EDITS:
        raise ValueError(f"method={method!r} is unknown; one of {', '.join(EDITS)}")
    if not 0.05 <= strength <= 1:
        raise ValueError(f"strength={strength} must lie in [0.05, 1], the share of the way up into noise")
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 2:
        raise ValueError(f"nfe={nfe!r} must be an integer of at least 2, the rows of the plan")
    entry = EDITS[method]
    top = float(VP().time(process.logsnr(1.0)))
    nodes = vp_times(process, torch.linspace(min(strength, top), 0.0 if entry.clean else END, nfe + 1, dtype=torch.float64))
    if entry.vp:
        process, nodes = VP(), VP().time(process.logsnr(torch.tensor(nodes, dtype=torch.float64))).tolist()
    return compile_plan(entry.solver, process, nodes, **{**entry.options, **options})


def vp_times(process: Process, t: Tensor) -> list[float]:
    """The times of `process` that are as noisy as the times t of the linear VP process."""
    return process.time(VP().logsnr(t)).tolist()
