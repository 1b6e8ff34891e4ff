"""diffusers' schedulers and k-diffusion's functions as one call each: (peer, exact denoiser, start, n) -> end state.

A peer asks for its own kind of output at its own kind of level. Here it gets that output computed
from the same data prediction D, at exactly the level its update uses (a scheduler that rounds its
levels to integer labels for the network is spared the rounding):

    labels   state VP, ᾱ of the integer label                 ε̂ = (x − α D)/σ
    vp       state VP, σ̂ = scheduler.sigmas[i]                 ε̂
    ve       state x̂ = x/α, σ̂ = scheduler.sigmas[i]            ε̂
    flow     state (1 − σ) x0 + σ z, σ = scheduler.sigmas[i]   v = (x − D)/σ
    edm      state x0 + σ z                                    F = (D − c_skip x)/c_out
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unstir.process import EDM, Flow, Process, Table

LABELS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler")
VE = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE")


class Run(NamedTuple):
    """The end state in the process's own coordinates, and the times at which the network was called."""

    x: Tensor
    times: list[float]

    @property
    def calls(self) -> int:
        return len(self.times)


@lru_cache(maxsize=1)
def why_not_diffusers() -> str | None:
    """None if diffusers can be imported, else the reason."""
    try:
        importlib.import_module("diffusers")
    except ImportError as error:
        return f"diffusers is not importable: {error}"
    return None


def family(scheduler: Any) -> str:
    """Which line of the module's table a scheduler belongs to."""
    name = type(scheduler).__name__
    if name in LABELS:
        return "labels"
    if name.startswith("FlowMatch") or getattr(scheduler.config, "use_flow_sigmas", False):
        return "flow"
    if name.startswith("EDM"):
        return "edm"
    return "ve" if name.startswith(VE) else "vp"


def process_of(scheduler: Any) -> Process:
    """The process a scheduler samples, as ours."""
    kind = family(scheduler)
    if kind == "flow":
        return Flow()
    if kind == "edm":
        return EDM(scheduler.config.sigma_min, scheduler.config.sigma_max)
    return Table(scheduler.alphas_cumprod.double())


def node_times(scheduler: Any, process: Process) -> list[float]:
    """The nodes of the scheduler's grid, as times of `process`: distinct levels, then the end."""
    if family(scheduler) == "labels":
        times = [float(process.time_of_label(label)) for label in scheduler.timesteps]  # type: ignore[attr-defined]
        one = getattr(scheduler.config, "set_alpha_to_one", True)
        end = 0.0 if one else float(process.time_of_label(0))  # type: ignore[attr-defined]
        return [*dict.fromkeys(times), end]
    levels = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    if family(scheduler) == "flow":
        return levels
    return [float(process.time(-torch.tensor(s).double().log())) if s else 0.0 for s in levels]


@contextmanager
def supplied(scheduler: Any, noises: Sequence[Tensor] | None) -> Iterator[None]:
    """Inside the block the scheduler's k-th draw of noise is noises[k]."""
    if noises is None:
        yield
        return
    module, left = sys.modules[type(scheduler).__module__], iter(noises)
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = lambda *_: next(left)
        yield
        return
    drawn = module.randn_tensor

    def give(shape: Any, *, dtype: torch.dtype, **_: Any) -> Tensor:
        return next(left).to(dtype)

    module.randn_tensor = give
    try:
        yield
    finally:
        module.randn_tensor = drawn


def _time(scheduler: Any, process: Process, kind: str) -> float:
    """Time of the level at which the scheduler's next `step` uses the network's output."""
    i = scheduler.step_index or 0
    level = scheduler.sigmas[i]
    if kind == "ve" and not getattr(scheduler, "state_in_first_order", True):  # an inner stage, stored by each in its own way
        if hasattr(scheduler, "mid_point_sigma"):
            level = scheduler.mid_point_sigma
        elif hasattr(scheduler, "sigmas_interpol"):
            level = scheduler.sigmas_interpol[i - 1 if hasattr(scheduler, "sigmas_up") else i]
    return float(level) if kind == "flow" else float(process.time(-level.double().log()))


def run_diffusers(
    scheduler: Any,
    model: Callable[[Tensor, float], Tensor],
    process: Process,
    x: Tensor,
    steps: int,
    noises: Sequence[Tensor] | None = None,
    levels: Tensor | None = None,
    **options: Any,
) -> Run:
    """Sample with a scheduler. model(x, t) is D on `process`; x is the state at t = 1; options go to `step`.

    levels: replaces the scheduler's own `sigmas` (steps + 1 of them), for grids that it does not offer.
    """
    kind = family(scheduler)
    scheduler.set_timesteps(steps)
    if levels is not None:
        scheduler.sigmas = levels
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or repeated labels are looked up wrongly
    if kind == "ve":
        x = x / float(process.alpha(1.0))
    times: list[float] = []
    with supplied(scheduler, noises), torch.no_grad():
        for label in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, label) if hasattr(scheduler, "scale_model_input") else x
            t = float(process.time_of_label(label)) if kind == "labels" else _time(scheduler, process, kind)  # type: ignore[attr-defined]
            times.append(t)
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            if kind == "edm":
                data = model(x, t)
                sd = scheduler.config.sigma_data
                s2 = sigma**2 + sd**2
                out = (data - sd**2 / s2 * x) * (s2**0.5 / (sigma * sd))
            else:
                out = (seen - (1.0 if kind == "flow" else alpha) * model(seen, t)) / sigma
            x = scheduler.step(out, label, x, **options).prev_sample
    return Run(x, times)


# -- k-diffusion ------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def k_diffusion() -> Any:
    """The module `k_diffusion.sampling`, loaded alone, or an ImportError that says why not.

    The package's own `__init__` imports training tools; the samplers need one helper of its `utils`.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("k-diffusion is not installed")
    package = types.ModuleType("_k_diffusion_alone")
    package.__path__ = []
    utils = types.ModuleType("_k_diffusion_alone.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    path = Path(next(iter(spec.submodule_search_locations))) / "sampling.py"
    source = importlib.util.spec_from_file_location("_k_diffusion_alone.sampling", path)
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    sys.modules |= {"_k_diffusion_alone": package, "_k_diffusion_alone.utils": utils}
    source.loader.exec_module(module)
    return module


def why_not_k_diffusion() -> str | None:
    """None if k-diffusion's samplers can be loaded, else the reason."""
    try:
        k_diffusion()
    except ImportError as error:
        return f"k-diffusion's samplers are not importable: {error}"
    return None


def run_k_diffusion(
    name: str,
    model: Callable[[Tensor, float], Tensor],
    process: Process,
    x: Tensor,
    sigmas: Tensor,
    noises: Sequence[Tensor] | None = None,
    **options: Any,
) -> Run:
    """Sample with `k_diffusion.sampling.<name>` on `sigmas`, decreasing σ̂ (for a Flow: σ), the last 0.

    k-diffusion knows x̂ = x/α only. On a Flow it is run as ComfyUI does, on the flow's own state
    and σ: for methods built from (x − D)/σ, which is the flow's velocity, that is right.
    """
    times: list[float] = []
    flow = isinstance(process, Flow)

    def denoise(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = sigma.double().flatten()[0]
        t = float(level) if flow else float(process.time(-level.log()))
        times.append(t)
        return model(state if flow else state * float(process.alpha(t)), t)

    if noises is not None:
        left = iter(noises)
        options = {**options, "noise_sampler": lambda *_: next(left).to(x)}
    if not flow:
        x = x / float(process.alpha(1.0))
    with torch.no_grad():
        return Run(getattr(k_diffusion(), name)(denoise, x, sigmas, disable=True, **options), times)
