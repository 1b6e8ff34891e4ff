"""Which of our solvers a peer scheduler's config means (agreement in docs/parity.md)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import diffusers

from .convention import FAMILIES, like_of

Config = Mapping[str, Any]
OPEN = {"exact_end": False}  # the peer keeps its order in the step to σ = 0
SIMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("ddim", {}),
    "DDIMParallel": ("ddim", {}),
    "CogVideoXDDIM": ("ddim", {}),
    "EulerDiscrete": ("euler", {}),
    "EulerAncestralDiscrete": ("ancestral", {}),
    "HeunDiscrete": ("heun", {}),
    "LMSDiscrete": ("lms", OPEN),
    "KDPM2Discrete": ("dpm2", {}),
    "KDPM2AncestralDiscrete": ("dpm2-ancestral", {}),
    "LCM": ("renoise", {}),
    "EDMEuler": ("euler", {}),
    "DPMSolverSDE": ("dpmpp-sde", {}),
}
# What a peer does where its config has no key for it.
IMPLIED: dict[str, dict[str, Any]] = {
    "DEISMultistep": {"final_sigmas_type": "sigma_min"},
    "SASolver": {"final_sigmas_type": "sigma_min"},
    "DPMSolverSinglestep": {"timestep_spacing": "linspace"},
    "CogVideoXDDIM": {"clip_sample": False},  # it has the key and does not heed it
    "CogVideoXDPM": {"clip_sample": False},
}


def peer_of(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a foreign config means beyond its own words: {"like": its class, and that class's defaults}.

    diffusers drops defaults when a config changes its class, so that Euler's linspace would become our
    trailing. `given` are the caller's wishes, which stand.
    """
    if config.get("peer"):
        known = {key: value for key, value in config["peer"].items() if key not in given}
        return {**known, "like": given["like"]} if "like" in given else known
    names = [given.get("like") or config.get("_class_name")]
    if names == [None]:
        names = _owners(frozenset(k for k in config if not k.startswith("_")))
    if not names or not isinstance(names[0], str) or names[0].removesuffix("Scheduler") not in FAMILIES:
        return {}
    told = {
        **{k: config[k] for k in config.get("_use_default_values", ())},
        **IMPLIED.get(names[0].removesuffix("Scheduler"), {}),
    }
    unsure = {"unsure": names} if len(names) > 1 else {}
    return {"like": names[0], **unsure, **{key: value for key, value in told.items() if key not in given}}


@lru_cache(maxsize=64)
def _owners(keys: frozenset[str]) -> list[str]:
    """The classes whose options are exactly these: a config that was never saved does not name its class."""
    found = []
    for name in FAMILIES:
        cls = getattr(diffusers, f"{name}Scheduler", None)
        if (
            cls is not None
            and not name.endswith("Parallel")
            and keys == set(inspect.signature(cls.__init__).parameters) - {"self"}
        ):
            found.append(f"{name}Scheduler")
    return found


def own_solver(config: Config, n: int) -> tuple[str, dict[str, Any]]:
    """(solver, options) of the peer that the config came from, for n of its steps."""
    like, order = like_of(config), int(config.get("solver_order", 2))
    if config.get("unsure"):
        raise ValueError(
            f"solver='config': this config may be that of {' or '.join(config['unsure'])}; "
            "pass the scheduler itself to from_config, or like='…'"
        )
    lower = {"lower_final": bool(config.get("lower_order_final", True)) and n < 15}
    if like in SIMPLE:
        return SIMPLE[like]
    if like in ("DDPM", "DDPMParallel"):
        return ("ddpm-large" if config.get("variance_type") == "fixed_large" else "ddpm"), {}
    if like == "PNDM":
        return ("plms", OPEN) if config.get("skip_prk_steps") else ("pndm", OPEN)
    if like == "FlowMatchEulerDiscrete":
        return ("renoise" if config.get("stochastic_sampling") else "euler"), {}
    if like in ("DPMSolverMultistep", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"):
        default = "sde-dpmsolver++" if like.startswith("Cosine") else "dpmsolver++"
        return _multistep(config.get("algorithm_type", default), order, config.get("solver_type"), lower)
    if like == "UniPCMultistep":
        kind = "half" if config.get("solver_type") == "bh1" else "midpoint"
        form = "data" if config.get("predict_x0", True) else "noise"
        return "unipc", {"order": order, "kind": kind, "form": form, "lower_final": bool(config.get("lower_order_final", True))}
    if like == "DEISMultistep":
        return "ab-2-noise", {"order": order, **lower}
    if like == "SASolver":
        levels = int(config.get("num_train_timesteps", 1000))
        orders = {"order": config.get("predictor_order", 2), "corrector_order": config.get("corrector_order", 2)}

        def tau(t: float) -> float:
            return 1.0 if 200 <= levels * t - 1 <= 800 else 0.0

        return "sa-solver", {**orders, "kind": "half", "tau": tau}
    raise ValueError(
        f"solver='config': no plan equals {like + 'Scheduler' if like else 'a config that does not say whose it is'}; "
        "name a solver (unstir.solvers.SOLVERS), or pass the scheduler itself to from_config"
    )


def _multistep(algorithm: str, order: int, kind: str | None, lower: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    heun = kind == "heun"
    if algorithm == "dpmsolver++":
        name = {1: "euler", 2: "ab-2" if heun else "dpmpp-2m", 3: "dpmpp-3m-published"}.get(order)
        return (name or f"dpmpp-{order}m"), ({} if order == 1 else lower)
    if algorithm == "sde-dpmsolver++":
        if order == 1:
            return "sde", {}
        return (("dpmpp-2m-sde-heun" if heun else "dpmpp-2m-sde") if order == 2 else "dpmpp-3m-sde"), lower
    if algorithm in ("dpmsolver", "sde-dpmsolver"):
        exact = "published" if order == 3 else "exact" if heun else "midpoint"
        return "dpm-2m", {"order": order, "kind": exact, "eta": float(algorithm.startswith("sde")), **lower}
    raise ValueError(f"algorithm_type={algorithm!r} must be one of dpmsolver++, sde-dpmsolver++, dpmsolver, sde-dpmsolver")
