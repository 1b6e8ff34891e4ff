"""Who is right: convergence orders and exact variances of peers, without sampling.

With Gaussian data D is linear, so an end state is a fixed combination of the start and of every
noise. Running a peer on a batch of unit impulses gives the weights, hence the exact variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import unstir
from benchmarks import peers
from unstir.denoiser import Gaussian, GaussianMixture
from unstir.process import EDM, Process

SPREAD = 0.5  # standard deviation of the Gaussian data


def slope(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Order of convergence between the first and the last count."""
    return math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])


def line(process: Process) -> tuple[Any, Tensor]:
    """The one-dimensional mixture of the solver tests, and eight starts."""
    mixture = GaussianMixture(process, [0.25, 0.45, 0.30], [-1.3, 0.2, 1.5], [0.35**2, 0.25**2, 0.5**2])
    return mixture, float(process.sigma(1.0)) * torch.linspace(-1.6, 1.6, 8, dtype=torch.float64)[:, None]


def strong_error(process: Process, nodes: Sequence[float], end: Tensor) -> float:
    """RMS distance of `end` from the end of the exact trajectory from nodes[0] to nodes[-1]."""
    model, x = line(process)
    lam = torch.linspace(float(process.logsnr(nodes[0])), float(process.logsnr(nodes[-1])), 2001, dtype=torch.float64)
    fine = [nodes[0], *process.time(lam).tolist()[1:-1], nodes[-1]]
    goal = unstir.sample(model, unstir.plan("ab-4", process, grid=fine), x=x)
    return float((end - goal).square().mean().sqrt())


def impulses(n: int) -> tuple[Tensor, list[Tensor]]:
    """A start with a one in sample 0 and noises with a one in sample k + 1."""
    eye = torch.eye(n + 1, dtype=torch.float64)[:, :, None]
    return eye[0], [eye[k + 1] for k in range(n)]


def variance_error(process: Process, end: Tensor, time: float, start_std: float) -> float:
    """|variance of the end − that of the stirred data| from the impulse responses `end`."""
    weights = end[:, 0].clone()
    weights[0] *= start_std
    exact = float((process.alpha(time) * SPREAD) ** 2 + process.sigma(time) ** 2)
    return abs(float((weights**2).sum()) - exact)


def start_std(process: Process) -> float:
    """Standard deviation of the stirred Gaussian data at t = 1."""
    return float(((process.alpha(1.0) * SPREAD) ** 2 + process.sigma(1.0) ** 2).sqrt())


def gaussian(process: Process) -> Gaussian:
    return Gaussian(process, [0.0], std=SPREAD)


def plan_variance_error(plan: unstir.Plan) -> float:
    """The same for one of our plans, from its rows."""
    process = plan.process

    def gain(t: float) -> float:
        a, s = float(process.alpha(t)), float(process.sigma(t))
        return a * SPREAD**2 / (a * a * SPREAD**2 + s * s)

    _, std = plan.propagate(gain, x_std=start_std(process))[-1]
    exact = float((process.alpha(plan.end) * SPREAD) ** 2 + process.sigma(plan.end) ** 2)
    return abs(std**2 - exact)


def log_uniform(process: Process, n: int, low: float = 0.02) -> tuple[Tensor, list[float]]:
    """(σ̂ of n + 1 nodes uniform in λ from t = 1 to σ̂ = low, their times): the grid for clean orders."""
    levels = torch.exp(torch.linspace(-float(process.logsnr(1.0)), math.log(low), n + 1, dtype=torch.float64))
    times = process.time(-levels.log()).tolist()
    return levels, [1.0, *times[1:]]


COUNTS = (40, 80, 160)
UNIFORM = {"final_sigmas_type": "sigma_min", "lower_order_final": False}


def orders(peer: Mapping[str, Any], ours: str) -> tuple[float, float]:
    """Measured orders of DPMSolverMultistepScheduler(**peer) and of our plan on the same uniform-λ grids.

    Strong order on a mixture; for a stochastic algorithm the order of the variance for Gaussian data.
    """
    import diffusers

    theirs, mine = [], []
    for n in COUNTS:
        scheduler = diffusers.DPMSolverMultistepScheduler(**UNIFORM, **peer)
        process = peers.process_of(scheduler)
        levels, times = log_uniform(process, n)
        plan = unstir.plan(ours, process, grid=times)
        if plan.stochastic:
            x, noises = impulses(n)
            end = peers.run_diffusers(scheduler, gaussian(process), process, x, n, noises, levels).x
            theirs.append(variance_error(process, end, times[-1], start_std(process)))
            mine.append(plan_variance_error(plan))
        else:
            model, x = line(process)
            end = peers.run_diffusers(scheduler, model, process, x, n, levels=levels).x
            theirs.append(strong_error(process, times, end))
            mine.append(strong_error(process, times, unstir.sample(model, plan, x=x)))
    return slope(COUNTS, theirs), slope(COUNTS, mine)


def ddim_spacing(n: int, spacing: str) -> tuple[float, float]:
    """Strong errors of DDIMScheduler and of our ddim on its nodes, at n steps that do not divide 1000."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    process = peers.process_of(scheduler)
    model, x = line(process)
    end = peers.run_diffusers(scheduler, model, process, x, n).x
    nodes = peers.node_times(scheduler, process)
    mine = unstir.sample(model, unstir.plan("ddim", process, grid=nodes), x=x)
    goal = [*nodes[:-1], 1e-5]
    return strong_error(process, goal, end), strong_error(process, goal, mine)


def unipc_bh1_is_finite() -> bool:
    """Does UniPC with solver_type bh1 survive its default end at σ = 0?"""
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(solver_type="bh1")
    process = peers.process_of(scheduler)
    model, x = line(process)
    return bool(torch.isfinite(peers.run_diffusers(scheduler, model, process, x, 10).x).all())


def flow_shift_end(shift: float) -> tuple[float, float]:
    """(last σ above 0 of FlowMatchEuler's grid, what one application of the shift to 0.001 gives)."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    return float(scheduler.sigmas[-2]), shift * 1e-3 / (1 + (shift - 1) * 1e-3)


def k_diffusion_3m(n: int = 6, eta: float = 0.0) -> tuple[float, float]:
    """Relative differences of sample_dpmpp_3m_sde to our published 3M, and to the same with its second row Taylor's."""
    process = EDM()
    sigmas = peers.k_diffusion().get_sigmas_karras(n, 0.002, 80.0)
    model, x = line(process)
    z = list(torch.randn(n, *x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    end = peers.run_k_diffusion("sample_dpmpp_3m_sde", model, process, x, sigmas.double(), z, eta=eta).x
    nodes = (sigmas.double() / 80).tolist()
    published = unstir.plan("dpmpp-3m-published", process, grid=nodes, eta=eta)
    taylor = unstir.plan("ab-2", process, grid=nodes, eta=eta)
    mixed = unstir.Plan([published[0], taylor[1], *published.rows[2:]], process)
    gaps = [
        float((unstir.sample(model, p, x=x, noise=dict(enumerate(z))) - end).abs().max() / end.abs().max())
        for p in (published, mixed)
    ]
    return gaps[0], gaps[1]


def k_diffusion_fast(n: int) -> float:
    """Relative difference of sample_dpm_fast to our dpm-fast with n calls from σ = 80 to 0.01."""
    process = EDM()
    model, x = line(process)

    def denoise(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return model(state, float(sigma.flatten()[0]) / 80)

    end = peers.k_diffusion().sample_dpm_fast(denoise, x, 0.01, 80.0, n, disable=True)
    plan = unstir.plan("dpm-fast", process, nfe=n, grid="logsnr", end=0.01 / 80)
    return float((unstir.sample(model, plan, x=x) - end).abs().max() / end.abs().max())


def dpmpp_sde_variances(n: int) -> tuple[float, float]:
    """Variance errors of sample_dpmpp_sde, its noises increments of one Brownian path in σ, and of our dpmpp-sde."""
    process = EDM()
    sigmas = torch.exp(torch.linspace(math.log(80.0), math.log(0.05), n + 1, dtype=torch.float64))
    start, units = impulses(2 * n)
    path = iter(range(2 * n))
    whole: list[tuple[float, Tensor]] = []

    def noise(high: Tensor, low: Tensor) -> Tensor:
        # Called for [σ, σ_m], then for [σ, σ']: the second is the first and a fresh increment.
        length, fresh = float(high - low), units[next(path)]
        if len(whole) % 2 == 0:
            whole.append((length, fresh))
            return fresh
        first, z = whole[-1]
        whole.append((length, fresh))
        return (math.sqrt(first) * z + math.sqrt(length - first) * fresh) / math.sqrt(length)

    model = gaussian(process)

    def denoise(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return model(state, float(sigma.flatten()[0]) / 80)

    end = peers.k_diffusion().sample_dpmpp_sde(denoise, start, sigmas, noise_sampler=noise, disable=True)
    times = (sigmas / 80).tolist()
    ours = unstir.plan("dpmpp-sde", process, grid=[1.0, *times[1:]])
    return variance_error(process, end, times[-1], start_std(process)), plan_variance_error(ours)


def findings() -> Iterator[tuple[str, str, str]]:
    """(peer, what differs, measured evidence) for docs/parity.md."""
    if peers.why_not_diffusers() is None:
        theirs, mine = orders({"solver_order": 3}, "dpmpp-3m")
        yield (
            "DPMSolverMultistepScheduler(solver_order=3), sample_dpmpp_3m_sde",
            "the third-order term lacks a factor 2 (`dpmpp-3m-published` equals it, `dpmpp-3m` is the corrected one)",
            f"order of convergence {theirs:.2f}, ours {mine:.2f}",
        )
        theirs, mine = orders({"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, "dpmpp-3m-sde")
        yield (
            "DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++, solver_order=3)",
            "sign of the second difference",
            f"order of the variance {theirs:.2f}, ours {mine:.2f}",
        )
        theirs, mine = ddim_spacing(600, "linspace")
        yield (
            "DDIMScheduler(timestep_spacing=linspace or trailing), N not a divisor of 1000",
            "steps to t − 1000//N, which is not where it evaluates next",
            f"error at N = 600 {theirs:.1e}, ours on its nodes {mine:.1e}",
        )
        yield (
            "UniPCMultistepScheduler(solver_type=bh1)",
            "B(h) = h is infinite at its default end σ = 0",
            "finite" if unipc_bh1_is_finite() else "returns NaN; `unipc-bh1` takes that step with order 1",
        )
        last, once = flow_shift_end(3.0)
        yield (
            "FlowMatchEulerDiscreteScheduler(shift=3)",
            "the shift is applied twice at the clean end",
            f"last σ {last:.4f}; once would give {once:.4f}",
        )
        yield (
            "FlowMatchHeunDiscreteScheduler",
            "averages the flow's velocities, `heun` averages noise predictions: both of order 2, not the same method",
            "no plan of ours equals it",
        )
    if peers.why_not_k_diffusion() is None:
        published, mixed = k_diffusion_3m()
        yield (
            "sample_dpmpp_3m_sde",
            "its second step is Taylor's, in the published code (and `dpmpp-3m-published`) it is the midpoint rule",
            f"difference {published:.0e}; {mixed:.0e} with that row exchanged",
        )
        theirs, mine = dpmpp_sde_variances(40)
        yield (
            "sample_dpmpp_sde, DPMSolverSDEScheduler",
            "couples inner and end noise by a Brownian path in σ̂, ours by the Ornstein–Uhlenbeck process of the step",
            f"error of the variance at 40 steps {theirs:.1e}, ours {mine:.1e}",
        )
