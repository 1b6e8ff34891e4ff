"""Our plans against diffusers' schedulers and k-diffusion's functions: the same nodes, denoiser, start and noise.

    .venv/bin/python benchmarks/parity.py      # measures every row and writes docs/parity.md

A row runs the peer in float32, takes the nodes of its grid, compiles our plan on exactly those and
compares the end states: max |difference| / max |state|. `tests/parity` asserts the same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import unstir  # noqa: E402
from benchmarks import peers  # noqa: E402
from unstir.denoiser import GaussianMixture  # noqa: E402
from unstir.process import EDM, Process  # noqa: E402

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Pair:
    """A peer and the plan that should equal it.

    peer: a class of diffusers or a function of k-diffusion, with its options (`step` holds options
    of the scheduler's step). every: which nodes are ours, for peers whose inner stages are nodes of
    their grid. noisy: supply both sides with the same noise; zero: with none at all.
    """

    peer: str
    options: dict[str, Any]
    ours: str
    our_options: dict[str, Any] = field(default_factory=dict)
    n: int = 10
    every: int = 1
    noisy: bool = False
    zero: bool = False
    step: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    remark: str = ""

    @property
    def k_diffusion(self) -> bool:
        return self.peer.startswith("sample_")

    @property
    def label(self) -> str:
        shown = {k: v for k, v in {**self.options, **self.step}.items() if not callable(v)}
        return f"{self.peer}({', '.join(f'{k}={v}' for k, v in shown.items())}), N = {self.n}"


def last_step_still(label: Any) -> float:
    """τ of SA-Solver with a deterministic last step (its last label is 91 at N = 10 on linspace, 0 is its end)."""
    return 0.0 if float(label) < 101 else 1.0


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MIN = {"final_sigmas_type": "sigma_min"}
KARRAS = {"use_karras_sigmas": True}
LOGLIN = {"use_exponential_sigmas": True}
LOWER = {"lower_final": True}
OPEN = {"exact_end": False}  # the peer keeps its order in the step to σ = 0
SDE = "sde-dpmsolver++"
INNER = "its inner stages are nodes of its grid, so equality needs a grid uniform in λ"

DIFFUSERS = (
    Pair("DDIMScheduler", {"timestep_spacing": "trailing"}, "ddim"),
    Pair("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False}, "ddim", remark="ends at label 0, not at σ = 0"),
    Pair("DDIMScheduler", {"timestep_spacing": "trailing"}, "ancestral", {"eta": 0.7}, noisy=True, step={"eta": 0.7}),
    Pair("DDPMScheduler", {"timestep_spacing": "trailing", "variance_type": "fixed_small"}, "ddpm", noisy=True),
    Pair(
        "DDPMScheduler",
        {"variance_type": "fixed_large"},
        "ddpm-large",
        noisy=True,
        remark="its last label must be 0, or it adds noise at the end",
    ),
    Pair("LCMScheduler", {"timestep_scaling": 1e4}, "renoise", n=4, noisy=True, remark="boundary scaling made negligible"),
    Pair("EulerDiscreteScheduler", {}, "euler"),
    Pair("EulerDiscreteScheduler", KARRAS, "euler"),
    Pair("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "ancestral", noisy=True),
    Pair("HeunDiscreteScheduler", {}, "heun"),
    Pair("HeunDiscreteScheduler", KARRAS, "heun"),
    Pair("KDPM2DiscreteScheduler", KARRAS, "dpm2"),
    Pair("KDPM2AncestralDiscreteScheduler", KARRAS, "dpm2-ancestral", noisy=True),
    Pair("LMSDiscreteScheduler", KARRAS, "lms", OPEN, remark="its weights by quadrature with tolerance 1e-4"),
    Pair("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, "plms", OPEN),
    Pair("DPMSolverMultistepScheduler", {}, "dpmpp-2m", LOWER),
    Pair("DPMSolverMultistepScheduler", KARRAS, "dpmpp-2m", n=20),
    Pair("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "ab-2", LOWER),
    Pair("DPMSolverMultistepScheduler", {"euler_at_final": True, **MIN}, "dpmpp-2m", LOWER, remark="not at σ = 0"),
    Pair("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp-3m-published", LOWER, remark="second order, see below"),
    Pair("DPMSolverMultistepScheduler", {"solver_order": 3, **KARRAS}, "dpmpp-3m-published", n=20),
    Pair("DPMSolverMultistepScheduler", {"algorithm_type": SDE, "solver_order": 1}, "sde", noisy=True),
    Pair("DPMSolverMultistepScheduler", {"algorithm_type": SDE}, "dpmpp-2m-sde", LOWER, noisy=True),
    Pair("DPMSolverMultistepScheduler", {"algorithm_type": SDE, "solver_type": "heun"}, "dpmpp-2m-sde-heun", LOWER, noisy=True),
    Pair("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", **MIN}, "dpm-2m", LOWER),
    Pair(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", **MIN}, "dpm-2m", {"eta": 1.0, **LOWER}, noisy=True
    ),
    Pair("DPMSolverSinglestepScheduler", LOGLIN, "dpmpp-2s", n=11, every=2, remark=INNER),
    Pair("DPMSolverSinglestepScheduler", {"solver_type": "heun", **LOGLIN}, "dpmpp-2s", {"kind": "taylor"}, n=11, every=2),
    Pair(
        "DPMSolverSinglestepScheduler",
        {"solver_order": 3, "solver_type": "heun", "lower_order_final": True, **LOGLIN},
        "dpmpp-3s",
        {"kind": "taylor"},
        n=13,
        every=3,
    ),
    Pair("DPMSolverSDEScheduler", KARRAS, "dpmpp-sde", zero=True, remark="noise-free part; its noise is a Brownian path in σ̂"),
    Pair(
        "UniPCMultistepScheduler",
        {"solver_type": "bh1", **MIN},
        "unipc-bh1",
        remark="NaN with its default end σ = 0, see below",
    ),
    Pair("UniPCMultistepScheduler", {"solver_type": "bh2"}, "unipc-bh2"),
    Pair("UniPCMultistepScheduler", {"solver_order": 3, **KARRAS}, "unipc", {"kind": "midpoint", **LOWER}, n=20),
    Pair("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1", **MIN}, "unipc", {"kind": "half"}),
    Pair("UniPCMultistepScheduler", {"predict_x0": False, **MIN}, "unipc-bh2", {"form": "noise"}),
    Pair(
        "SASolverScheduler",
        {"predictor_order": 2, "corrector_order": 2, "tau_func": last_step_still},
        "sa-solver",
        {"order": 2, "corrector_order": 2, "tau": 1.0, "kind": "half"},
        noisy=True,
    ),
    Pair(
        "SASolverScheduler",
        {"predictor_order": 3, "corrector_order": 4, "tau_func": last_step_still},
        "sa-solver",
        {"tau": 1.0, "kind": "half"},
        noisy=True,
    ),
    Pair("DEISMultistepScheduler", {}, "ab-2-noise", LOWER),
    Pair("DEISMultistepScheduler", {"solver_order": 3}, "dpm-3m", LOWER, remark="its closed forms in float32 lose digits"),
    Pair("EDMEulerScheduler", {}, "euler"),
    Pair("EDMDPMSolverMultistepScheduler", {}, "dpmpp-2m", LOWER),
    Pair("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp-3m-published", LOWER),
    Pair("FlowMatchEulerDiscreteScheduler", {}, "euler"),
    Pair("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler"),
    Pair("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0}, "dpmpp-2m", LOWER),
    Pair("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}, "unipc-bh2"),
)

K_DIFFUSION = (
    Pair("sample_euler", {}, "euler"),
    Pair("sample_euler_ancestral", {"eta": 0.7}, "ancestral", {"eta": 0.7}, noisy=True),
    Pair("sample_heun", {}, "heun"),
    Pair("sample_dpm_2", {}, "dpm2"),
    Pair("sample_dpm_2_ancestral", {}, "dpm2-ancestral", noisy=True),
    Pair("sample_lms", {}, "lms", OPEN, remark="its weights by quadrature with tolerance 1e-4"),
    Pair("sample_dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp-2s"),
    Pair("sample_dpmpp_2s_ancestral", {}, "dpmpp-2s-ancestral", noisy=True),
    Pair("sample_dpmpp_sde", {}, "dpmpp-sde", zero=True, remark="noise-free part; the law is compared below"),
    Pair("sample_dpmpp_2m", {}, "dpmpp-2m"),
    Pair("sample_dpmpp_2m_sde", {}, "dpmpp-2m-sde", noisy=True),
    Pair("sample_dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.5}, "dpmpp-2m-sde-heun", {"eta": 0.5}, noisy=True),
)


def model_on(process: Process) -> GaussianMixture:
    """A mixture of three Gaussians in two dimensions, whose D is far from linear."""
    return GaussianMixture(
        process, [0.25, 0.45, 0.3], [[-1.3, 0.4], [0.2, -0.8], [1.5, 1.0]], [[0.12, 0.06], [0.06, 0.2], [0.25, 0.1]]
    )


def double(model: Any) -> Any:
    """The denoiser evaluated in float64 and rounded once, whatever the state's type: only the sampler is compared."""
    return lambda x, t: model(x.double(), t).to(x.dtype)


def states(process: Process, n: int = 16, seed: int = 0) -> Tensor:
    """Starts at t = 1, float32."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return float(process.sigma(1.0)) * z


def noise_list(rows: int, x: Tensor, zero: bool) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=g) * (0.0 if zero else 1.0) for _ in range(rows)]


def compare(pair: Pair) -> float:
    """Relative difference of the two end states."""
    if pair.k_diffusion:
        process: Process = EDM()
        sigmas = peers.k_diffusion().get_sigmas_karras(pair.n, 0.002, 80.0)
        nodes = [float(s) / 80.0 for s in sigmas.double()]
    else:
        import diffusers

        no_clip = {"clip_sample": False} if pair.peer in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler") else {}
        scheduler = getattr(diffusers, pair.peer)(**no_clip, **pair.options)
        process = peers.process_of(scheduler)
        scheduler.set_timesteps(pair.n)
        nodes = peers.node_times(scheduler, process)
    nodes = [*nodes[: -1 : pair.every], nodes[-1]]
    model = double(model_on(process))
    x = states(process)
    noises = noise_list(4 * pair.n, x, pair.zero)
    supplied = noises if pair.noisy or pair.zero else None
    if pair.k_diffusion:
        takes_noise = supplied if any(word in pair.peer for word in ("ancestral", "sde")) else None
        theirs = peers.run_k_diffusion(pair.peer, model, process, x, sigmas, takes_noise, **pair.options).x
    else:
        theirs = peers.run_diffusers(scheduler, model, process, x, pair.n, supplied, **pair.step).x
    plan = unstir.plan(pair.ours, process, grid=nodes, **pair.our_options)
    noisy = [i for i, row in enumerate(plan.rows) if row.noisy]
    mine = unstir.sample(model, plan, x=x, noise=dict(zip(noisy, noises, strict=False)) if noisy else None)
    return float((mine - theirs).abs().max() / theirs.abs().max())


def rows() -> Iterator[tuple[str, Pair]]:
    """Every pair with its ecosystem."""
    yield from (("diffusers", pair) for pair in DIFFUSERS)
    yield from (("k-diffusion", pair) for pair in K_DIFFUSION)


BUGS = """
## Where a peer differs, and who is right

Each is a test in `tests/parity`; the figures are measured there on every run.

| peer | what differs | shown by |
|---|---|---|
"""


def main() -> None:
    from benchmarks.weak import findings

    torch.set_num_threads(1)
    lines = [
        "# Parity with diffusers and k-diffusion",
        "",
        "Written by `python benchmarks/parity.py`; `tests/parity` asserts the same rows.",
        "",
        "The peer runs in float32 on its own grid; our plan is compiled on exactly those nodes and sees the same exact "
        "denoiser, start and noise. Difference: largest difference of the end states over the largest entry. N counts the "
        "peer's steps.",
        "",
        "| peer | ours | difference | tolerance | |",
        "|---|---|---|---|---|",
    ]
    for eco, pair in rows():
        reason = peers.why_not_k_diffusion() if pair.k_diffusion else peers.why_not_diffusers()
        if reason:
            continue
        gap = compare(pair)
        own = ", ".join(f"{k}={v}" for k, v in pair.our_options.items())
        ours = f"{pair.ours} ({own})" if own else pair.ours
        remark = pair.remark if gap <= pair.tolerance else f"✗ {pair.remark}"
        lines.append(f"| {eco} `{pair.label}` | {ours} | {gap:.0e} | {pair.tolerance:.0e} | {remark} |")
        print(f"{gap:.0e}  {pair.label} = {pair.ours}", flush=True)
    lines.append(BUGS.rstrip("\n"))
    lines += [f"| {peer} | {what} | {shown} |" for peer, what, shown in findings()]
    out = ROOT / "docs" / "parity.md"
    out.write_text("\n".join(lines) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
