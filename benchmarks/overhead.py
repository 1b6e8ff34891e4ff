"""What the sampler itself costs per network evaluation, beside diffusers' schedulers.

    .venv/bin/python benchmarks/overhead.py

First part: a 1×4×64×64 float32 state and a network that returns a ready-made tensor, so that only the
sampler is timed (processor time). Contestants take turns in rotating order, in rounds; the median over the rounds is
given. Compiling our plan and the peers' `set_timesteps` are both left out. Second part: sampling with
the bundled digits model against its bare network. Writes docs/results/overhead.md and .json; always
exits 0, a missed target is said in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import unstir  # noqa: E402
from benchmarks import peers  # noqa: E402
from unstir.process import from_betas  # noqa: E402

# Processor time of this thread: on a shared machine a loop that is preempted is not a slow loop.
clock = time.thread_time
NFE = 20
SHAPE = (1, 4, 64, 64)
OURS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc")
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "DPMSolverMultistepScheduler": ("DPMSolverMultistepScheduler", {}),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", {"solver_order": 3}),
}
TARGETS = (("dpmpp-2m", "DPMSolverMultistepScheduler", 1 / 5), ("unipc", "UniPCMultistepScheduler", 1 / 10))
NETWORK_TARGET = 1.05


def contestants() -> dict[str, Callable[[], float]]:
    """{name: run one sample and return its seconds, preparations left out}."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    fixed = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    process = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    model = unstir.Denoiser(lambda x, t: fixed, process, predicts="noise", time="label")
    runs: dict[str, Callable[[], float]] = {}
    for name in OURS:
        plan = unstir.plan(name, process, nfe=NFE)

        def sample(plan: unstir.Plan = plan) -> float:
            begin = clock()
            unstir.sample(model, plan, x=x)
            return clock() - begin

        runs[name] = sample
    if peers.why_not_diffusers() is None:
        import diffusers

        for label, (cls, options) in PEERS.items():
            scheduler = getattr(diffusers, cls)(**options)

            def loop(scheduler: Any = scheduler) -> float:
                scheduler.set_timesteps(NFE)
                state: Tensor = x
                begin = clock()
                with torch.no_grad():
                    for t in scheduler.timesteps:
                        seen = scheduler.scale_model_input(state, t)
                        assert seen is not None
                        state = scheduler.step(fixed, t, state, return_dict=False)[0]
                return clock() - begin

            runs[label] = loop
    return runs


def interleaved(runs: dict[str, Callable[[], float]], rounds: int, block: int) -> dict[str, float]:
    """Median over rounds of the median of a warm block, seconds; the order is rotated every round."""
    names = list(runs)
    for run in runs.values():
        run()
    seen: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seen[name].append(statistics.median(runs[name]() for _ in range(block)))
    return {name: statistics.median(values) for name, values in seen.items()}


def with_network(rounds: int, batch: int) -> dict[str, float] | str:
    """Sampling time and NFE × bare network call of the bundled digits model, in turns, seconds; or why not."""
    try:
        model = unstir.load("digits")
    except (ValueError, OSError, AttributeError) as error:
        return f"the bundled digits model is not there: {error}"
    plan = unstir.plan("dpmpp-2m", model.process, nfe=NFE)
    x = torch.randn((batch, *model.shape), generator=torch.Generator().manual_seed(0))
    t = torch.full((batch,), 0.5)

    def sampling() -> float:
        begin = clock()
        unstir.sample(model, plan, x=x)
        return clock() - begin

    def bare() -> float:
        begin = clock()
        with torch.no_grad():
            for _ in range(NFE):
                model.network(x, t)
        return clock() - begin

    return interleaved({"sampling": sampling, "bare": bare}, rounds, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    micro = {name: seconds / NFE * 1e6 for name, seconds in interleaved(contestants(), given.rounds, given.block).items()}
    lines = [
        "# What the sampler costs per evaluation",
        "",
        "Written by `python benchmarks/overhead.py`.",
        "",
        f"State {'×'.join(map(str, SHAPE))}, float32, NFE {NFE}, one thread, a network that returns a ready-made tensor; "
        f"processor time, median of {given.rounds} interleaved rounds. Ours is the whole of `unstir.sample` with the "
        "denoiser (noise to data), the peers' only `scale_model_input` and `step`.",
        "",
        "| sampler | µs per evaluation | " + " | ".join(f"of {p}" for p in PEERS if p in micro) + " |",
        "|---|---|" + "---|" * sum(p in micro for p in PEERS),
    ]
    for name, value in micro.items():
        ratios = " | ".join(f"{value / micro[p]:.3f}" for p in PEERS if p in micro)
        lines.append(f"| {name} | {value:.1f} | {ratios} |")
    lines += ["", "| target | measured | |", "|---|---|---|"]
    checks = {}
    for ours, peer, limit in TARGETS:
        if peer in micro:
            ratio = micro[ours] / micro[peer]
            checks[f"{ours}/{peer}"] = {"ratio": ratio, "limit": limit, "holds": ratio <= limit}
            lines.append(f"| {ours} ≤ {limit:g} of {peer} | {ratio:.3f} | {'holds' if ratio <= limit else '**missed**'} |")
    network = with_network(15, 16)
    if isinstance(network, str):
        lines += ["", f"Sampling against the bare network: left out, {network}."]
    else:
        ratio = network["sampling"] / network["bare"]
        checks["digits"] = {"ratio": ratio, "limit": NETWORK_TARGET, "holds": ratio <= NETWORK_TARGET}
        lines.append(
            f"| digits model, batch 16: sampling ≤ {NETWORK_TARGET} of NFE × network | {ratio:.3f} "
            f"({network['sampling'] * 1e3:.1f} ms of {network['bare'] * 1e3:.1f} ms) | "
            f"{'holds' if ratio <= NETWORK_TARGET else '**missed**'} |"
        )
    text = "\n".join([*lines, "", f"torch {torch.__version__}.", ""])
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "overhead.md").write_text(text)
    (given.out / "overhead.json").write_text(json.dumps({"micro_per_evaluation": micro, "targets": checks}, indent=1) + "\n")
    print(text)
    print(f"wrote {given.out}/overhead.md and .json")


if __name__ == "__main__":
    main()
