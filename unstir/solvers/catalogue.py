"""The names: which function with which options, its order, its paper (peers' names are in `aliases`).

order is the measured order of convergence (weak order for stochastic solvers).
"""

from __future__ import annotations

from .adams import deis, ghvb, heavy_ball, ipndm, plms, plms_stages
from .bridge import bridge
from .corrected import auto, er_sde, flow_adams, sa_solver, unipc
from .ems import ems_multistep
from .invertible import two_step
from .multistep import multistep
from .onestep import ddim, ddpm, renoise, sde
from .pndm import pndm, pndm_stages
from .registry import calls_per_step, register
from .singlestep import dpmpp_sde, exp_rk, fast_orders, rho_rk

DDIM = "Denoising Diffusion Implicit Models, 2021"
DDPM = "Denoising Diffusion Probabilistic Models, 2020"
EDM = "Elucidating the Design Space of Diffusion-Based Generative Models, 2022"
DPM = "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps, 2022"
DPMPP = "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022"
DEIS = "Fast Sampling of Diffusion Models with Exponential Integrator, 2023"
UNIPC = "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023"
PNDM = "Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022"
GHVB = "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts, 2024"
SA = "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models, 2023"
ER = "Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models, 2023"
V3 = "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, 2023"
LMS = "k-diffusion, 2022"
OURS = "Adams predictor–corrector in the flow frame, unstir, 2026"
BDIA = "Exact Diffusion Inversion via Bi-directional Integration Approximation, 2024"


TWO, THREE, FOUR, FIVE = (calls_per_step(n) for n in (2, 3, 4, 5))

register("auto", auto, 3, OURS)

# -- one number ------------------------------------------------------------------------------------------
register("ddim", ddim, 1, DDIM)
register("euler", ddim, 1, EDM)
register("ancestral", ddim, 1, DDIM, {"eta": 1.0})
register("ddpm", ddpm, 1, DDPM)
register("ddpm-large", ddpm, 1, DDPM, {"variance": "large"})
register("renoise", renoise, 0, "Consistency Models, 2023")
register("sde", sde, 1, DPMPP)
register("bridge", bridge, 1, "ResShift: Efficient Diffusion Model for Image Super-Resolution by Residual Shifting, 2023")

# -- exponential multistep -------------------------------------------------------------------------------
register("dpmpp-2m", multistep, 2, DPMPP, {"order": 2, "kind": "midpoint"})
register("dpmpp-3m", multistep, 3, DPMPP, {"order": 3})
register("dpmpp-3m-published", multistep, 2, DPMPP, {"order": 3, "kind": "published"})
register("dpmpp-2m-sde", multistep, 2, DPMPP, {"order": 2, "kind": "midpoint", "eta": 1.0})
register("dpmpp-2m-sde-heun", multistep, 2, DPMPP, {"order": 2, "eta": 1.0})
register("dpmpp-3m-sde", multistep, 2, DPMPP, {"order": 3, "eta": 1.0})
register("dpm-2m", multistep, 2, DPM, {"order": 2, "kind": "midpoint", "form": "noise"})
register("dpm-3m", multistep, 3, DPM, {"order": 3, "form": "noise"})
register("ab-2", multistep, 2, DPMPP, {"order": 2})
register("ab-4", multistep, 4, DPMPP, {"order": 4})
register("ab-2-noise", multistep, 2, DPM, {"order": 2, "form": "noise"})

# -- exponential Runge–Kutta -----------------------------------------------------------------------------
register("dpm-2s", exp_rk, 2, DPM, {"order": 2, "form": "noise"}, TWO)
register("dpm-3s", exp_rk, 3, DPM, {"order": 3, "form": "noise"}, THREE)
register("dpm-fast", exp_rk, 2, DPM, {"order": 3, "form": "noise"}, fast_orders)
register("dpmpp-2s", exp_rk, 2, DPMPP, {"order": 2}, TWO)
register("dpmpp-2s-ancestral", exp_rk, 1, DPMPP, {"order": 2, "eta": 1.0}, TWO)
register("dpmpp-3s", exp_rk, 3, DPMPP, {"order": 3}, THREE)
register("dpmpp-fast", exp_rk, 2, DPMPP, {"order": 3}, fast_orders)
register("dpmpp-sde", dpmpp_sde, 1, DPMPP, None, TWO)
register(
    "etd-4", exp_rk, 4, "Generalized integrating factor methods for stiff PDEs, 2005", {"order": 4, "kind": "krogstad"}, FOUR
)
register(
    "etd-4-stiff",
    exp_rk,
    4,
    "Explicit exponential Runge–Kutta methods for semilinear parabolic problems, 2005",
    {"order": 4, "kind": "stiff"},
    FIVE,
)

# -- Runge–Kutta in ρ ------------------------------------------------------------------------------------
register("heun", rho_rk, 2, EDM, {"tableau": "heun-2"}, TWO)
register("dpm2", rho_rk, 2, EDM, {"tableau": "dpm-2"}, TWO)
register("dpm2-ancestral", rho_rk, 1, EDM, {"tableau": "dpm-2", "eta": 1.0}, TWO)
register("rho-midpoint", rho_rk, 2, DEIS, {"tableau": "midpoint"}, TWO)
register("rho-kutta-3", rho_rk, 3, DEIS, {"tableau": "kutta-3"}, THREE)
register("rho-rk-4", rho_rk, 4, DEIS, {"tableau": "rk-4"}, FOUR)

# -- Adams in any variable -------------------------------------------------------------------------------
for _order in (2, 3, 4):
    register(f"tab-{_order}", deis, min(_order, 3), DEIS, {"order": _order, "variable": "t"})
    register(f"rhoab-{_order}", deis, _order, DEIS, {"order": _order, "variable": "rho"})
register("lms", deis, 4, LMS, {"order": 4, "variable": "rho"})
register("ipndm", ipndm, 2, DEIS)
register("pndm", pndm, 2, PNDM, None, pndm_stages)
register("plms", plms, 2, PNDM, None, plms_stages)
register("ghvb", ghvb, 2, GHVB)
register("ghvb-4", ghvb, 2, GHVB, {"order": 4})
register("heavy-ball", heavy_ball, 1, GHVB)

# -- predictor–corrector, stochastic -----------------------------------------------------------------------
register("unipc", unipc, 4, UNIPC, {"order": 3})
register("unipc-2", unipc, 3, UNIPC, {"order": 2})
register("unipc-bh1", unipc, 2, UNIPC, {"order": 2, "kind": "half"})
register("unipc-bh2", unipc, 3, UNIPC, {"order": 2, "kind": "midpoint"})
register("flow-adams", flow_adams, 3, OURS)
register("flow-adams-3", flow_adams, 3, OURS, {"order": 3})
register("dpm-solver-v3", ems_multistep, 3, V3, requires=("stats",))
register("sa-solver", sa_solver, 1, SA)
register("er-sde", er_sde, 1, ER)

# -- exactly invertible ------------------------------------------------------------------------------------
register("bdia", two_step, 1, BDIA, {"momentum": "bdia", "gamma": 0.96})
register(
    "obelm", two_step, 2, "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion Models, 2024"
)
