"""Error against network evaluations: our plans beside diffusers' schedulers and k-diffusion's functions.

    .venv/bin/python benchmarks/accuracy_per_nfe.py

The denoiser is exact (a mixture of ten Gaussians fitted to scikit-learn's digits, 64 dimensions), so
what is measured is the sampler alone: RMS distance from the end of the exact trajectory through the
same start, over all starts and pixels. Everybody chooses among all of their grids, ends where their
defaults end, and may make at most the given number of calls. Writes docs/results/accuracy_per_nfe.*
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import unstir  # noqa: E402
from benchmarks import digits, peers  # noqa: E402
from unstir.process import EDM, Flow, Process, from_betas  # noqa: E402
from unstir.solvers import SOLVERS  # noqa: E402

NFES = (4, 5, 6, 8, 10, 15, 20, 40)
GRIDS = ("logistic", "logsnr", "karras", "quadratic", "uniform")
STARTS = 32
RED = '<span style="color:red">✗</span>'


def processes() -> dict[str, Process]:
    """VP is the discrete schedule that diffusers has by default, so that both sides sample the very same process."""
    return {"VP": from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)), "EDM": EDM(), "Flow": Flow()}


class Result(NamedTuple):
    """One measured cell."""

    process: str
    nfe: int
    side: str
    name: str
    grid: str
    error: float
    calls: int


class Entry(NamedTuple):
    """A contestant on one process: run(budget of calls) -> (end state, calls made)."""

    side: str
    name: str
    grid: str
    run: Callable[[int], tuple[Tensor, int]]


# -- contestants ------------------------------------------------------------------------------------------
def ours(model: digits.Fast, x: Tensor) -> Iterator[Entry]:
    """Every deterministic solver of the catalogue on every grid; equal tables are run once."""
    seen: dict[str, str] = {}
    for grid in GRIDS:
        for name in SOLVERS:
            try:
                plan = unstir.plan(name, model.process, nfe=9, grid=grid)
            except ValueError:
                continue  # a solver that wants more than a name: model statistics, say
            if plan.stochastic or seen.setdefault(plan.fingerprint(), name) != name:
                continue

            def run(nfe: int, name: str = name, grid: str = grid) -> tuple[Tensor, int]:
                plan = unstir.plan(name, model.process, nfe=nfe, grid=grid)
                return unstir.sample(model, plan, x=x), len(plan)

            yield Entry("unstir", name, grid, run)


SPACINGS = ("trailing", "linspace", "leading")
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}


def on_grids(lu: bool = False, spaced: bool = True, sigmas: bool = True) -> dict[str, dict[str, Any]]:
    """Grid name -> constructor options."""
    grids: dict[str, dict[str, Any]] = {s: {"timestep_spacing": s} for s in SPACINGS} if spaced else {"linspace": {}}
    if sigmas:
        grids |= {name: {option: True} for name, option in SIGMAS.items()}
    return grids | ({"lu": {"use_lu_lambdas": True}} if lu else {})


def two_calls(nfe: int) -> int:
    """Steps of a method with two calls a step but one in the last."""
    return (nfe + 1) // 2


def schedulers(kind: str) -> Iterator[tuple[str, str, dict[str, dict[str, Any]], dict[str, Any], Callable[[int], int]]]:
    """(label, class, grids, options, budget -> steps) of diffusers."""

    def same(nfe: int) -> int:
        return nfe

    flow = {
        f"shift {s}": {"use_flow_sigmas": True, "flow_shift": float(s), "prediction_type": "flow_prediction"} for s in (1, 3)
    }
    multistep = {
        "DPM++ 2M": {},
        "DPM++ 2M heun": {"solver_type": "heun"},
        "DPM++ 2M euler_at_final": {"euler_at_final": True},
        "DPM++ 3M": {"solver_order": 3},
        "DPM++ 3M heun": {"solver_order": 3, "solver_type": "heun"},
    }
    unipc = {
        f"UniPC-{o} {b}": {"solver_order": o, "solver_type": b} for o in (2, 3) for b in ("bh1", "bh2")
    }  # fmt: skip
    singlestep = {f"DPM++ {o}S": {"solver_order": o, "lower_order_final": True} for o in (2, 3)}
    deis = {f"DEIS-{o}": {"solver_order": o} for o in (2, 3)}
    if kind == "VP":
        yield "DDIM", "DDIMScheduler", on_grids(sigmas=False), {"clip_sample": False}, same
        yield "Euler", "EulerDiscreteScheduler", on_grids(), {}, same
        yield "LMS", "LMSDiscreteScheduler", on_grids(), {}, same
        yield "Heun", "HeunDiscreteScheduler", on_grids(), {}, two_calls
        yield "KDPM2", "KDPM2DiscreteScheduler", on_grids(), {}, two_calls
        yield (
            "PLMS",
            "PNDMScheduler",
            on_grids(sigmas=False),
            {"skip_prk_steps": True, "set_alpha_to_one": True},
            lambda n: n - 1,
        )
        for label, options in multistep.items():
            yield label, "DPMSolverMultistepScheduler", on_grids(lu=True), options, same
        for label, options in unipc.items():
            yield label, "UniPCMultistepScheduler", on_grids(), options, same
        for label, options in deis.items():
            yield label, "DEISMultistepScheduler", on_grids(), options, same
        for label, options in singlestep.items():
            yield label, "DPMSolverSinglestepScheduler", on_grids(spaced=False), options, same
    elif kind == "EDM":
        edm = {s: {"sigma_schedule": s} for s in ("karras", "exponential")}
        yield "EDMEuler", "EDMEulerScheduler", edm, {}, same
        for label, options in multistep.items():
            yield f"EDM {label}", "EDMDPMSolverMultistepScheduler", edm, options, same
    else:
        match: dict[str, dict[str, Any]] = {f"shift {s}": {"shift": float(s)} for s in (1, 3)}
        yield "FlowMatchEuler", "FlowMatchEulerDiscreteScheduler", match | {n: {o: True} for n, o in SIGMAS.items()}, {}, same
        yield "FlowMatchHeun", "FlowMatchHeunDiscreteScheduler", match, {}, two_calls
        for label, options in multistep.items():
            yield label, "DPMSolverMultistepScheduler", flow, options, same
        for label, options in unipc.items():
            yield label, "UniPCMultistepScheduler", flow, options, same
        for label, options in deis.items():
            yield label, "DEISMultistepScheduler", flow, options, same
        for label, options in singlestep.items():
            yield label, "DPMSolverSinglestepScheduler", flow, options, same


def diffusers_entries(kind: str, model: digits.Fast, x: Tensor) -> Iterator[Entry]:
    import diffusers

    for label, cls, grids, options, to_steps in schedulers(kind):
        for grid, more in grids.items():

            def run(
                nfe: int,
                cls: str = cls,
                given: dict[str, Any] = {**options, **more},  # noqa: B006
                to_steps: Callable[[int], int] = to_steps,
            ) -> tuple[Tensor, int]:
                done = peers.run_diffusers(getattr(diffusers, cls)(**given), model, model.process, x, to_steps(nfe))
                return done.x, done.calls

            yield Entry("diffusers", label, grid, run)


K_FUNCTIONS: dict[str, tuple[dict[str, Any], Callable[[int], int]]] = {
    "sample_euler": ({}, lambda n: n),
    "sample_heun": ({}, two_calls),
    "sample_dpm_2": ({}, two_calls),
    "sample_lms": ({}, lambda n: n),
    "sample_dpmpp_2s_ancestral": ({"eta": 0.0}, two_calls),
    "sample_dpmpp_2m": ({}, lambda n: n),
    "sample_dpmpp_2m_sde": ({"eta": 0.0, "solver_type": "heun"}, lambda n: n),
    "sample_dpmpp_3m_sde": ({"eta": 0.0}, lambda n: n),
}
FLOW_SAFE = ("sample_euler", "sample_heun", "sample_dpm_2", "sample_lms")  # built from (x − D)/σ only


def k_sigmas(kind: str, process: Process) -> dict[str, Callable[[int], Tensor]]:
    """k-diffusion's grids over the process's own range; for a Flow ComfyUI's linear and shifted σ."""
    k = peers.k_diffusion()
    if kind == "Flow":

        def shifted(n: int, s: float) -> Tensor:
            u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
            return s * u / (1 + (s - 1) * u)

        return {f"shift {s}": lambda n, s=s: shifted(n, float(s)) for s in (1, 3)}
    low, high = (float(process.noise_ratio(t)) for t in process.span)
    rules = {
        "karras": k.get_sigmas_karras,
        "exponential": k.get_sigmas_exponential,
        "polyexponential": k.get_sigmas_polyexponential,
    }
    out: dict[str, Callable[[int], Tensor]] = {}
    for name, rule in rules.items():
        more = {"rho": 0.7} if name == "polyexponential" else {}  # at its default ρ = 1 it is the exponential grid
        out[name] = lambda n, rule=rule, more=more: rule(n, low, high, **more).double()
    return out


def k_diffusion_entries(kind: str, model: digits.Fast, x: Tensor) -> Iterator[Entry]:
    for grid, make in k_sigmas(kind, model.process).items():
        for name, (options, to_steps) in K_FUNCTIONS.items():
            if kind == "Flow" and name not in FLOW_SAFE:
                continue

            def run(
                nfe: int,
                name: str = name,
                options: dict[str, Any] = options,
                make: Callable[[int], Tensor] = make,
                to_steps: Callable[[int], int] = to_steps,
            ) -> tuple[Tensor, int]:
                done = peers.run_k_diffusion(name, model, model.process, x, make(to_steps(nfe)), **options)
                return done.x, done.calls

            yield Entry("k-diffusion", name, grid, run)


# -- measuring ---------------------------------------------------------------------------------------------
def measure(starts: int, nfes: tuple[int, ...]) -> tuple[list[Result], dict[str, float], list[str]]:
    """(cells, gap of the two reference solvers per process, contestants that failed and why)."""
    results, gaps, failed = [], {}, []
    for kind, process in processes().items():
        mixture = digits.fit(process)
        model = digits.Fast(mixture)
        assert model.check(mixture) < 1e-10, "the fast denoiser differs from the library's"
        z = torch.randn(starts, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = float(process.sigma(1.0)) * z
        goal, gaps[kind] = digits.reference(model, x)
        entries = list(ours(model, x))
        if peers.why_not_diffusers() is None:
            entries += diffusers_entries(kind, model, x)
        if peers.why_not_k_diffusion() is None:
            entries += k_diffusion_entries(kind, model, x)
        for entry in entries:
            for nfe in nfes:
                try:
                    end, calls = entry.run(nfe)
                except Exception as error:  # a peer's own failure is a finding, not ours to raise
                    failed.append(f"{kind} {entry.side} {entry.name} {entry.grid} NFE {nfe}: {type(error).__name__}: {error}")
                    continue
                if calls > nfe:
                    failed.append(f"{kind} {entry.side} {entry.name} {entry.grid} NFE {nfe}: made {calls} calls")
                    continue
                error = float((end - goal).square().mean().sqrt())
                results.append(Result(kind, nfe, entry.side, entry.name, entry.grid, error, calls))
    return results, gaps, failed


def best(results: list[Result], kind: str, nfe: int, peer: bool) -> Result | None:
    """The most accurate cell of one side."""
    here = [r for r in results if (r.process, r.nfe) == (kind, nfe) and (r.side != "unstir") == peer and math.isfinite(r.error)]
    return min(here, key=lambda r: r.error, default=None)


def regrets(results: list[Result], nfe: int) -> list[tuple[str, str, dict[str, float], float]]:
    """(solver, grid, error / best error per process, geometric mean) of our plans, best first."""
    kinds = list(processes())
    table: dict[tuple[str, str], dict[str, float]] = {}
    for r in results:
        if r.side == "unstir" and r.nfe == nfe:
            table.setdefault((r.name, r.grid), {})[r.process] = r.error
    floor = {k: min(e[k] for e in table.values() if k in e) for k in kinds}
    rows = []
    for (name, grid), errors in table.items():
        if set(errors) == set(kinds) and all(math.isfinite(e) for e in errors.values()):
            ratio = {k: errors[k] / floor[k] for k in kinds}
            rows.append((name, grid, ratio, math.prod(ratio.values()) ** (1 / len(kinds))))
    return sorted(rows, key=lambda row: row[3])


def overall(results: list[Result], nfes: tuple[int, ...]) -> list[tuple[str, str, list[float], float]]:
    """(solver, grid, geometric-mean regret per NFE, their geometric mean): what one default would cost."""
    table: dict[tuple[str, str], list[float]] = {}
    for nfe in nfes:
        for name, grid, _, mean in regrets(results, nfe):
            table.setdefault((name, grid), []).append(mean)
    rows = [(n, g, m, math.prod(m) ** (1 / len(m))) for (n, g), m in table.items() if len(m) == len(nfes)]
    return sorted(rows, key=lambda row: row[3])


# -- writing -----------------------------------------------------------------------------------------------
def page(results: list[Result], gaps: dict[str, float], failed: list[str], starts: int, seconds: float) -> str:
    kinds, nfes = list(processes()), sorted({r.nfe for r in results})
    count = {
        side: len({(r.name, r.grid) for r in results if r.side == side}) for side in ("unstir", "diffusers", "k-diffusion")
    }
    lines = [
        "# Error per network evaluation",
        "",
        "Written by `python benchmarks/accuracy_per_nfe.py`; every cell is in `accuracy_per_nfe.csv`.",
        "",
        "Exact denoiser of a mixture of ten Gaussians fitted to scikit-learn's digits (64 dimensions), "
        f"{starts} starts, float64. Error: root mean square over starts and pixels of the distance to the end of the exact "
        "trajectory. Reference: fifth-order Adams, 2000 calls; fourth-order exponential Runge–Kutta with 5000 calls differs by "
        + ", ".join(f"{gap:.0e} ({kind})" for kind, gap in gaps.items())
        + f". Compared: {count['unstir']} solver × grid pairs of unstir, {count['diffusers']} of diffusers, "
        f"{count['k-diffusion']} of k-diffusion. VP is the discrete schedule that diffusers has by default; a peer "
        "is given its output at exactly the level its update uses, and the same start noise.",
        "",
        "✗ marks a row in which the best peer is more accurate than our best plan.",
        "",
        "| process | NFE | best plan of unstir | error | best peer | error | ours/peer | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        for nfe in nfes:
            a, b = best(results, kind, nfe, False), best(results, kind, nfe, True)
            left = f"| {kind} | {nfe} | {a.name} × {a.grid} | {a.error:.2e} |" if a else f"| {kind} | {nfe} | – | – |"
            right = f" {b.side} {b.name} × {b.grid} | {b.error:.2e} |" if b else " – | – |"
            ratio = a.error / b.error if a and b else math.nan
            lines.append(f"{left}{right} {ratio:.2f} | {RED if ratio > 1 else ''} |")
    lines += ["", "![error against NFE](accuracy_per_nfe.svg)", "", "## One default for all three processes", ""]
    lines += [
        "Error divided by the best error of any of our plans on that process and NFE, geometric mean over the processes. "
        "A name here is a candidate for `auto`.",
        "",
        "| solver × grid | " + " | ".join(f"NFE {n}" for n in nfes) + " | all |",
        "|---|" + "---|" * (len(nfes) + 1),
    ]
    for name, grid, means, mean in overall(results, tuple(nfes))[:12]:
        lines.append(f"| {name} × {grid} | " + " | ".join(f"{m:.2f}" for m in means) + f" | {mean:.2f} |")
    for nfe in nfes:
        lines += [
            "",
            f"### NFE {nfe}",
            "",
            "| solver × grid | " + " | ".join(kinds) + " | mean |",
            "|---|" + "---|" * (len(kinds) + 1),
        ]
        for name, grid, ratio, mean in regrets(results, nfe)[:8]:
            lines.append(f"| {name} × {grid} | " + " | ".join(f"{ratio[k]:.2f}" for k in kinds) + f" | {mean:.2f} |")
    if failed:
        lines += ["", "## Could not run", "", *(f"- {line}" for line in failed)]
    return "\n".join([*lines, "", f"{seconds:.0f} s on one core, torch {torch.__version__.split('+')[0]}.", ""])


def plot(results: list[Result], out: Path) -> None:
    from unstir.evaluate import error_plot

    nfes = sorted({r.nfe for r in results})
    series: dict[str, list[tuple[int, float]]] = {}
    for kind in processes():
        for label, peer in (("unstir", False), ("best peer", True)):
            points = [(n, r.error) for n in nfes if (r := best(results, kind, n, peer)) and r.error > 0]
            if points:
                series[f"{kind}, {label}"] = points
    for format in ("svg", "png"):
        (out / f"accuracy_per_nfe.{format}").write_bytes(
            error_plot(series, title="Best plan and best peer, digits mixture", ylabel="RMS error", format=format)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for reason in (peers.why_not_diffusers(), peers.why_not_k_diffusion()):
        if reason:
            print(f"left out: {reason}")
        elif peers.why_not_diffusers() is None:
            import diffusers

            diffusers.utils.logging.set_verbosity_error()
    begin = time.perf_counter()
    results, gaps, failed = measure(given.starts, NFES)
    seconds = time.perf_counter() - begin
    given.out.mkdir(parents=True, exist_ok=True)
    with open(given.out / "accuracy_per_nfe.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Result._fields)
        writer.writerows([*r[:5], f"{r.error:.6g}", r.calls] for r in results)
    summary = {
        "starts": given.starts,
        "seconds": round(seconds, 1),
        "reference_gap": gaps,
        "best": [
            {"process": k, "nfe": n, "unstir": a._asdict() if a else None, "peer": b._asdict() if b else None}
            for k in processes()
            for n in NFES
            for a, b in [(best(results, k, n, False), best(results, k, n, True))]
        ],
    }
    (given.out / "accuracy_per_nfe.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = page(results, gaps, failed, given.starts, seconds)
    (given.out / "accuracy_per_nfe.md").write_text(text)
    plot(results, given.out)
    print(text)
    print(f"wrote {given.out}/accuracy_per_nfe.md, .csv, .json, .svg, .png")


if __name__ == "__main__":
    main()
