"""The nodes that a scheduler's config asks for: times t_0 ≥ … ≥ t_N of our process, and the label of each but the last.

The labels are what the network is told, and need not be those of the nodes: the peers round some of
them. Two equal nodes are possible (more steps than labels); such a step does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...process import EDM, Table
from .convention import Convention, like_of

Config = Mapping[str, Any]
SINGLE = 2e-7  # relative error of a level that was rounded to float32
RULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


class Nodes(NamedTuple):
    """N + 1 times and N labels."""

    times: list[float]
    labels: list[float]


def nodes_of(
    config: Config,
    convention: Convention,
    n: int,
    labels: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Nodes:
    """The config's nodes for n steps, or those of given labels or sigmas."""
    given = rule(config)
    if given is not None and labels is not None:
        raise ValueError(f"timesteps= cannot be given together with {given}=True in the config; use one of them")
    make = {"flow": _flow, "edm": _edm}.get(convention.family, _table)
    return make(config, convention, n, labels, sigmas, mu)


def rule(config: Config) -> str | None:
    """The one respacing rule of σ̂ that the config sets."""
    rules = [key for key in RULES if config.get(key)]
    if len(rules) > 1:
        raise ValueError(f"only one of {', '.join(RULES)} can be True; got {', '.join(rules)}")
    return rules[0] if rules else None


def respaced(name: str, first: float, last: float, n: int, rho: float = 7.0) -> np.ndarray:
    """n levels from `first` down to `last`: linear in σ^(1/ρ), log-linear, or at the quantiles of Beta(0.6, 0.6)."""
    ramp = np.linspace(0, 1, n)
    if name == "use_karras_sigmas":
        return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho
    if name == "use_beta_sigmas":
        try:
            from scipy.special import betaincinv
        except ImportError:
            raise ImportError("use_beta_sigmas=True needs scipy: pip install scipy") from None
        return last + (first - last) * betaincinv(0.6, 0.6, 1 - ramp)
    return np.exp(np.linspace(math.log(first), math.log(last), n))


def single(values: np.ndarray) -> np.ndarray:
    """Rounded to float32, as they are published: who gives them back gets the same run."""
    return values.astype(np.float32).astype(np.float64)


def below(end: float, times: list[float]) -> float:
    """The end, or a hair below the last node where they are one: a step that does next to nothing, but counts as a step."""
    return end if end < times[-1] * (1 - 1e-6) else times[-1] * (1 - 1e-6)


# -- tables --------------------------------------------------------------------------------------------------
def spaced(config: Config, family: str, n: int, top: int) -> np.ndarray:
    """n labels below `top`, by the config's timestep_spacing as its family reads it."""
    levels, spacing = int(config.get("num_train_timesteps", 1000)), config.get("timestep_spacing", "trailing")
    offset = config.get("steps_offset", 0)
    if like_of(config) == "LCM":
        k = config.get("original_inference_steps", 50)
        own = (np.arange(1, k + 1) * (levels // k) - 1)[::-1]
        return own[np.floor(np.linspace(0, len(own), n, endpoint=False)).astype(int)].astype(float)
    if spacing == "trailing":
        return np.round(levels - np.arange(n) * (levels / n)) - 1
    if spacing == "leading":
        if family == "multi":
            return np.arange(n, 0, -1.0) * (top // (n + 1)) + offset
        return np.arange(n - 1, -1, -1.0) * (levels // n) + offset
    if spacing == "linspace":
        if family == "multi":
            return np.linspace(0, top - 1, n + 1).round()[:0:-1]
        labels = np.linspace(0, levels - 1, n)[::-1]
        return labels.round() if family == "labels" else labels
    raise ValueError(f"timestep_spacing={spacing!r} must be 'leading', 'trailing' or 'linspace'")


def _table(config: Config, convention: Convention, n: int, labels: Any, sigmas: Any, mu: float | None) -> Nodes:
    table, family = convention.process, convention.family
    assert isinstance(table, Table)
    whole = torch.arange(table.levels, dtype=torch.float64)
    hats = table.noise_ratio(table.time_of_label(whole)).numpy()  # σ̂ of every label, increasing

    def time(hat: float) -> float:
        return float(table.time(-math.log(hat)))

    def place(hat: np.ndarray) -> np.ndarray:
        """Fractional labels of levels σ̂."""
        return np.interp(np.log(np.maximum(hat, 1e-10)), np.log(hats), whole.numpy())

    end = _table_end(config, table)
    if sigmas is not None:
        given = np.asarray(sigmas, dtype=np.float64)
        if given[-1] == 0:
            given, end = given[:-1], 0.0
        elif len(given) > 1 and end > 0 and abs(given[-1] / hats[0] - 1) < 1e-5:
            given = given[:-1]  # the list names the config's own end
        # A label's own level, rounded to float32, is that label again.
        nearest = np.abs(given[:, None] / hats - 1).argmin(1)
        known = np.abs(given / hats[nearest] - 1) < SINGLE
        times = [(k + 1) / table.levels if same else time(hat) for k, same, hat in zip(nearest, known, given, strict=True)]
        told = np.where(known, nearest, np.interp(given, hats, whole.numpy()))
        return Nodes([*times, below(end, times)], single(told).tolist())
    top = table.levels
    clipped = config.get("lambda_min_clipped", -math.inf)
    if math.isfinite(clipped):
        top -= int(np.searchsorted(-np.log(hats)[::-1], clipped))
    told = single(np.asarray(labels, dtype=np.float64) if labels is not None else spaced(config, family, n, top))
    if labels is None:  # pairs of label and level that give each other in float32, whichever is given back
        for _ in range(3):
            back = np.interp(single(np.interp(told, whole.numpy(), hats)), hats, whole.numpy())
            told = np.where(told == np.round(told), told, single(back))
    if (told < 0).any() or (told > table.levels - 1).any():
        raise ValueError(f"timesteps={told.tolist()} must lie in 0 … {table.levels - 1}")
    name = rule(config)
    if config.get("interpolation_type") == "log_linear":  # n + 1 levels of their own, whatever the labels say
        return Nodes([time(hat) for hat in single(respaced("", hats[-1], hats[0], len(told) + 1))], told.tolist())
    if name is None:
        exact = told == np.round(told)
        level = np.interp(told, whole.numpy(), hats)
        times = [(k + 1) / table.levels if e else time(h) for k, e, h in zip(told, exact, single(level), strict=True)]
        return Nodes([*times, below(end, times)], told.tolist())
    # σ̂ between the ends of the table, or (Euler and its kin) between the ends of the spaced labels.
    ends = (hats[-1], hats[0]) if family == "multi" else tuple(np.interp(told[[0, -1]], whole.numpy(), hats))
    low, high = config.get("sigma_min"), config.get("sigma_max")
    level = single(respaced(name, ends[0] if high is None else high, ends[1] if low is None else low, len(told)))
    told = place(level)
    if family == "multi":  # their labels are integers: rounded by some rules, cut by the others
        cut = name not in ("use_karras_sigmas", "use_lu_lambdas") or config.get("beta_schedule") == "squaredcos_cap_v2"
        told = np.floor(told) if cut else told.round()
    times = [time(hat) for hat in level]
    return Nodes([*times, below(end, times)], told.tolist())


def _table_end(config: Config, table: Table) -> float:
    """The last node: σ = 0, or label 0 where the config ends there."""
    final = config.get("final_sigmas_type", "zero")
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={final!r} must be 'zero' or 'sigma_min'")
    return 0.0 if final == "zero" and config.get("set_alpha_to_one", True) else 1 / table.levels


# -- flows -----------------------------------------------------------------------------------------------------
def shift(config: Config, mu: float | None) -> float:
    """s of σ' = s σ/(1 + (s − 1) σ): the config's own, or that of mu where it shifts dynamically."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0))
    if mu is None:
        raise ValueError("mu must be given to set_timesteps: the config has use_dynamic_shifting=True")
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise ValueError(f"time_shift_type={kind!r} must be 'exponential' or 'linear'")
    return math.exp(mu) if kind == "exponential" else float(mu)


def _flow(config: Config, convention: Convention, n: int, labels: Any, sigmas: Any, mu: float | None) -> Nodes:
    levels, multi = int(config.get("num_train_timesteps", 1000)), bool(config.get("use_flow_sigmas"))
    unipc, s = like_of(config) == "UniPCMultistep", shift(config, mu)

    def shifted(sigma: Any) -> Any:
        return s * sigma / (1 + (s - 1) * sigma)

    if sigmas is not None:
        sigma = np.asarray(sigmas, dtype=np.float64)
        sigma = sigma[:-1] if sigma[-1] == 0 else sigma
    elif labels is not None:
        sigma = np.asarray(labels, dtype=np.float64) / levels
    elif unipc:
        sigma = np.linspace(1, 1 / levels, n + 1)[:-1]
    elif multi:
        sigma = np.linspace(1 - 1 / levels, 0, n + 1)[:-1]
    else:
        # FlowMatchEuler shifts its clean end here and again below (docs/parity.md); pictures depend on it, so it stays.
        last = 1 / levels if config.get("use_dynamic_shifting") else shifted(1 / levels)
        sigma = np.linspace(1, last, n)
    sigma = shifted(sigma)
    if config.get("shift_terminal"):
        sigma = 1 - (1 - sigma) * (1 - config["shift_terminal"]) / (1 - sigma[-1])
    name = rule(config)
    if name is not None:
        low, high = config.get("sigma_min"), config.get("sigma_max")
        sigma = respaced(name, sigma[0] if high is None else high, sigma[-1] if low is None else low, len(sigma))
    if unipc and sigma[0] > 1 - 1e-6:
        sigma[0] = 1 - 1e-6  # the peer stays off α = 0, so that its first node counts as history
    told = np.asarray(labels, dtype=np.float64) if labels is not None else levels * sigma
    if config.get("invert_sigmas"):
        told = levels * (1 - sigma)
    if multi:
        told = np.floor(told)
    if (sigma <= 0).any() or (sigma > 1).any():
        raise ValueError(f"sigmas of a flow must lie in (0, 1]; got {sigma.tolist()}")
    times = single(sigma).tolist()
    end = below(times[-1], times) if config.get("final_sigmas_type") == "sigma_min" else 0.0
    return Nodes([*times, end], told.tolist())


# -- x0 + σ z ---------------------------------------------------------------------------------------------------
def _edm(config: Config, convention: Convention, n: int, labels: Any, sigmas: Any, mu: float | None) -> Nodes:
    process = convention.process
    assert isinstance(process, EDM)
    if labels is not None:
        raise ValueError("timesteps= has no meaning for this scheduler, whose labels are functions of σ; give sigmas=")
    exponential = config.get("sigma_schedule") == "exponential" or rule(config) == "use_exponential_sigmas"
    name = "use_exponential_sigmas" if exponential else "use_karras_sigmas"
    end = process.sigma_min if config.get("final_sigmas_type") == "sigma_min" else 0.0
    if sigmas is None:
        sigma = respaced(name, process.sigma_max, process.sigma_min, n, config.get("rho") or 7.0)
    else:
        sigma = np.asarray(sigmas, dtype=np.float64)
        sigma = sigma[:-1] if sigma[-1] == 0 else sigma
    times = torch.as_tensor(sigma / process.sigma_max).clamp(max=1.0)
    return Nodes([*times.tolist(), end / process.sigma_max], convention.label(times).tolist())
