"""What a scheduler's config says about its model: the process, what the network predicts and what it is told.

    labels   DDIM, DDPM, …           a table of ᾱ, nodes at integer labels
    multi    DPMSolverMultistep, …   the same table, N + 1 labels of which the last gives way to the end
    sigmas   Euler, Heun, …          the same table, fractional labels, σ̂ interpolated linearly
    flow     FlowMatchEuler, …       x = (1 − σ) x0 + σ z
    edm      EDMEuler, …             x = x0 + σ z, preconditioned network

In all of them the state that a pipeline carries is ours: x = α x0 + σ z. (Euler and its kin carry
x/α between calls and x into the network; here both are x, so `scale_model_input` does nothing.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...denoiser import Prediction
from ...process import EDM, Flow, Process, Shifted, Table

FAMILIES: dict[str, str] = {
    **dict.fromkeys(("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LCM", "TCD", "CogVideoXDDIM"), "labels"),
    **dict.fromkeys(
        ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver", "CogVideoXDPM"), "multi"
    ),
    **dict.fromkeys(
        ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "DPMSolverSDE"), "sigmas"
    ),
    **dict.fromkeys(("KDPM2Discrete", "KDPM2AncestralDiscrete"), "sigmas"),
    **dict.fromkeys(("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM"), "flow"),
    **dict.fromkeys(("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"), "edm"),
}  # fmt: skip
PREDICTS = {
    "epsilon": "noise",
    "sample": "data",
    "original_sample": "data",
    "v_prediction": "velocity",
    "flow_prediction": "flow",
}
# These put ᾱ_T = 2⁻²⁴ where the rescaled table says 0.
FLOORED = ("DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "UniPCMultistep")


@dataclass(frozen=True)
class Convention:
    """How a pipeline and its network speak.

    process: whose state the pipeline carries.   prediction, sign: raw = sign · (p x + q D).
    label: t -> what the network is told.   family: see the module.
    """

    family: str
    process: Process
    prediction: Prediction
    sign: float
    label: Callable[[Tensor], Tensor]

    def on(self, process: Process) -> Convention:
        """The same with a plan's own process, if it runs along the same states; else ValueError."""
        base = process.base if isinstance(process, Shifted) else process
        if process != self.process and not (self.family == "flow" and isinstance(base, Flow)):
            raise ValueError(f"the plan was made for {process!r}; this scheduler's config describes {self.process!r}")
        return Convention(self.family, process, self.prediction, self.sign, labels_on(process, self))

    def decode(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(m, n, c_in): D = m x + n raw, and the scale of the network's input (None for 1)."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        if self.prediction.kind == "noise" and bool((alpha == 0).any()):
            raise ValueError(
                "prediction_type='epsilon' says nothing about the data where α = 0 (zero terminal SNR); "
                "use timesteps below the last one, or a model with prediction_type='v_prediction'"
            )
        m, n = self.prediction.decode(alpha, sigma)
        return m, n * self.sign, self.prediction.input_scale(alpha, sigma)


def like_of(config: Mapping[str, Any]) -> str:
    """The peer whose reading of the config is wanted, without "Scheduler"; "" for none."""
    return str(config.get("like") or "").removesuffix("Scheduler")


def family(config: Mapping[str, Any]) -> str:
    """The line of the module's table."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        return "edm"
    like = like_of(config)
    if like in FAMILIES:
        return FAMILIES[like]
    if like:
        raise ValueError(f"like={like}Scheduler is not one whose config can be read; known: {', '.join(FAMILIES)}")
    return "flow" if config.get("use_dynamic_shifting") or config.get("shift", 1.0) != 1.0 else "multi"


def convention(config: Mapping[str, Any]) -> Convention:
    """The convention that a scheduler's config describes; ValueError for one that we cannot express."""
    kind, levels = family(config), int(config.get("num_train_timesteps", 1000))
    raw = config.get("prediction_type", "epsilon")
    if raw not in PREDICTS:
        raise ValueError(f"prediction_type={raw!r} must be one of {', '.join(PREDICTS)}")
    if kind == "flow":
        inverted = bool(config.get("invert_sigmas"))  # the network's σ is 1 − ours, and its velocity runs the other way
        predicts = "data" if raw == "sample" else "flow"
        label = (lambda t: levels * (1 - t)) if inverted else (lambda t: levels * t)
        return Convention(kind, Flow(), Prediction(predicts), -1.0 if inverted else 1.0, label)
    if kind == "edm":
        low, high = config.get("sigma_min"), config.get("sigma_max")
        process = EDM(0.002 if low is None else low, 80.0 if high is None else high)
        video = config.get("timestep_type") == "continuous"  # Euler's v on x/α is the preconditioning with σ_data = 1
        data = 1.0 if video else float(config.get("sigma_data") or 0.5)
        cosine = like_of(config) == "CosineDPMSolverMultistep"
        return Convention(
            kind,
            process,
            Prediction("edm", data),
            -1.0 if raw == "v_prediction" else 1.0,
            (lambda t: 2 / math.pi * process.sigma(t).atan()) if cosine else (lambda t: 0.25 * process.sigma(t).log()),
        )
    table = table_of(config)
    return Convention(kind, table, Prediction(PREDICTS[raw]), 1.0, table.label)


def labels_on(process: Process, old: Convention) -> Callable[[Tensor], Tensor]:
    """The labels of `old` as a function of another process's time (a flow's shift moves times, not σ)."""
    if process == old.process:
        return old.label
    return lambda t: old.label(process.sigma(t))


# -- tables ------------------------------------------------------------------------------------------------
def betas_of(config: Mapping[str, Any]) -> Tensor:
    """β of every label, float32: the very numbers that the networks were trained with."""
    trained, n = config.get("trained_betas"), int(config.get("num_train_timesteps", 1000))
    low, high = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float32)
    if name == "linear":
        return torch.linspace(low, high, n, dtype=torch.float32)
    if name == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, n, dtype=torch.float32) ** 2
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, n)) * (high - low) + low
    if name not in _ALPHA_BAR:
        raise ValueError(f"beta_schedule={name!r} must be linear, scaled_linear, sigmoid, {', '.join(_ALPHA_BAR)}")
    u = [_ALPHA_BAR[name](i / n) for i in range(n + 1)]
    return torch.tensor([min(1 - u[i + 1] / u[i], 0.999) for i in range(n)], dtype=torch.float32)


def _laplace(t: float) -> float:
    lam = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(lam) / (1 + math.exp(lam)))


_ALPHA_BAR: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda t: math.exp(-12 * t),
    "laplace": _laplace,
}


def alphas_cumprod_of(config: Mapping[str, Any]) -> Tensor:
    """ᾱ of every label, in float32 as the peers have it, with the config's shift of the SNR and its zero at the end."""
    beta = betas_of(config)
    bar = torch.cumprod(1 - beta, 0)
    if not bool((bar.diff() < 0).all()) or float(bar[-1]) < 1e-20:
        # Out of numbers: the labels whose picture is gone stay at α = 1e-10, in their order.
        floor = 1e-20 * (1 - torch.arange(len(bar), dtype=torch.float64) / (2 * len(bar)))
        bar = torch.maximum(torch.cumprod(1 - beta.double(), 0), floor)
    scale = config.get("snr_shift_scale")
    if scale:
        bar = bar / (scale + (1 - scale) * bar)
    if config.get("rescale_betas_zero_snr"):
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        # A noise prediction says nothing where α = 0; the peers that allow it go not quite there.
        floored = like_of(config) in FLOORED or config.get("prediction_type", "epsilon") == "epsilon"
        bar[-1] = min(2.0**-24, float(bar[-2]) / 2) if floored else 0.0
    return bar


def table_of(config: Mapping[str, Any]) -> Table:
    """The process of the config's table."""
    return _table(tuple(alphas_cumprod_of(config).double().tolist()))


@lru_cache(maxsize=32)
def _table(alphas_cumprod: tuple[float, ...]) -> Table:
    return Table(alphas_cumprod)
