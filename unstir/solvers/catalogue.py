"""The names: which function with which options, its order, its paper, and what the peers call it."""

from __future__ import annotations

from .multistep import multistep
from .onestep import ddim, ddpm, heun, heun_stages, renoise, sde
from .registry import register

_DDIM = "Denoising Diffusion Implicit Models, 2021"
_DDPM = "Denoising Diffusion Probabilistic Models, 2020"
_EDM = "Elucidating the Design Space of Diffusion-Based Generative Models, 2022"
_DPM = "DPM-Solver, 2022"
_DPMPP = "DPM-Solver++, 2022"
_DEIS = "Fast Sampling of Diffusion Models with Exponential Integrator, 2023"

register("ddim", ddim, order=1, paper=_DDIM, peers={"diffusers": "DDIMScheduler", "a1111": "DDIM", "comfyui": "ddim"})
register(
    "euler", ddim, order=1, paper=_EDM,
    peers={"diffusers": "EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler", "k-diffusion": "sample_euler", "a1111": "Euler", "comfyui": "euler"},
)  # fmt: skip
register(
    "ancestral", ddim, order=1, paper=_DDIM, options={"eta": 1.0},
    peers={"diffusers": "EulerAncestralDiscreteScheduler", "k-diffusion": "sample_euler_ancestral", "a1111": "Euler a", "comfyui": "euler_ancestral"},
)  # fmt: skip
register("ddpm", ddpm, order=1, paper=_DDPM, peers={"diffusers": "DDPMScheduler(variance_type='fixed_small')", "comfyui": "ddpm"})
register("ddpm-large", ddpm, order=1, paper=_DDPM, options={"variance": "large"}, peers={"diffusers": "DDPMScheduler(variance_type='fixed_large')"})
register("renoise", renoise, order=0, paper="Consistency Models, 2023", peers={"diffusers": "LCMScheduler", "comfyui": "lcm"})
register("sde", sde, order=1, paper=_DPMPP, peers={"diffusers": "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++', solver_order=1)"})
register(
    "heun", heun, order=2, paper=_EDM, stages=heun_stages,
    peers={"diffusers": "HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler", "k-diffusion": "sample_heun", "a1111": "Heun", "comfyui": "heun"},
)  # fmt: skip
register(
    "dpmpp-2m", multistep, order=2, paper=_DPMPP, options={"order": 2, "kind": "midpoint"},
    peers={"diffusers": "DPMSolverMultistepScheduler", "k-diffusion": "sample_dpmpp_2m", "a1111": "DPM++ 2M", "comfyui": "dpmpp_2m"},
)  # fmt: skip
register("dpmpp-3m", multistep, order=3, paper=_DPMPP, options={"order": 3})
register(
    "dpmpp-3m-published", multistep, order=2, paper=_DPMPP, options={"order": 3, "kind": "published"},
    peers={"diffusers": "DPMSolverMultistepScheduler(solver_order=3)", "k-diffusion": "sample_dpmpp_3m_sde(eta=0)"},
)  # fmt: skip
register(
    "dpmpp-2m-sde", multistep, order=2, paper=_DPMPP, options={"order": 2, "kind": "midpoint", "eta": 1.0},
    peers={
        "diffusers": "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++')", "k-diffusion": "sample_dpmpp_2m_sde",
        "a1111": "DPM++ 2M SDE", "comfyui": "dpmpp_2m_sde",
    },
)  # fmt: skip
register(
    "dpmpp-3m-sde", multistep, order=2, paper=_DPMPP, options={"order": 3, "eta": 1.0},
    peers={"k-diffusion": "sample_dpmpp_3m_sde", "a1111": "DPM++ 3M SDE", "comfyui": "dpmpp_3m_sde"},
)  # fmt: skip
register("dpm-2m", multistep, order=2, paper=_DPM, options={"order": 2, "kind": "midpoint", "form": "noise"})
register("dpm-3m", multistep, order=3, paper=_DPM, options={"order": 3, "form": "noise"}, peers={"diffusers": "DEISMultistepScheduler(solver_order=3)"})
for _order in (1, 2, 3, 4):
    register(f"ab-{_order}", multistep, order=_order, paper=_DEIS, options={"order": _order})
    register(f"ab-{_order}-noise", multistep, order=_order, paper=_DEIS, options={"order": _order, "form": "noise"})
