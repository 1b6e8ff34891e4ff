"""What a scheduler costs per step of a pipeline's loop: ours beside those of diffusers.

    .venv/bin/python benchmarks/pipeline_overhead.py

The loop is that of every pipeline (scale_model_input, a network call, step) with a network that returns
a ready-made 1×4×64×64 tensor. Contestants take turns in rotating order; processor time of this thread,
the median over the rounds. `set_timesteps` is given in a column of its own. Writes
docs/results/pipeline_overhead.md; always exits 0, a missed target is said in the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import diffusers  # noqa: E402
import torch  # noqa: E402

from unstir.interop.diffusers import PlanScheduler  # noqa: E402

STEPS, SHAPE, PEER, LIMIT = 20, (1, 4, 64, 64), "DPMSolverMultistepScheduler", 1 / 3
library: Any = diffusers


def contestants() -> dict[str, Any]:
    """{name: scheduler}; ours first."""
    peer = library.DPMSolverMultistepScheduler()
    out: dict[str, Any] = {"PlanScheduler dpmpp-2m (the peer's own method)": PlanScheduler.from_config(peer, solver="config")}
    for solver in ("ddim", "dpmpp-3m", "unipc", "auto"):
        out[f"PlanScheduler {solver}"] = PlanScheduler.from_config(peer, solver=solver)
    out["DDIMScheduler"] = library.DDIMScheduler(clip_sample=False)
    out["EulerDiscreteScheduler"] = library.EulerDiscreteScheduler()
    out[PEER] = peer
    out["UniPCMultistepScheduler"] = library.UniPCMultistepScheduler()
    return out


def once(scheduler: Any, x: torch.Tensor, raw: torch.Tensor) -> tuple[float, float]:
    """(seconds of set_timesteps, seconds of the loop)."""
    begin = time.thread_time()
    scheduler.set_timesteps(STEPS)
    middle = time.thread_time()
    with torch.no_grad():
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(raw, t, x, return_dict=False)[0]
    return middle - begin, time.thread_time() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, raw = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    runs, seen = contestants(), {}
    names = list(runs)
    for i in range(given.rounds + 3):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            took = once(runs[name], x, raw)
            if i >= 3:  # the first rounds warm up
                seen.setdefault(name, []).append(took)
    steps = {name: statistics.median(loop for _, loop in seen[name]) / STEPS * 1e6 for name in names}
    setting = {name: statistics.median(first for first, _ in seen[name]) * 1e3 for name in names}
    lines = [
        "# What a scheduler costs per step of a pipeline",
        "",
        "Written by `python benchmarks/pipeline_overhead.py`.",
        "",
        f"State {'×'.join(map(str, SHAPE))}, float32, {STEPS} steps, one thread, a network that returns a ready-made tensor; "
        f"processor time, median of {given.rounds} interleaved rounds.",
        "",
        f"| scheduler | µs per step | of {PEER} | ms of set_timesteps |",
        "|---|---|---|---|",
        *[f"| {name} | {steps[name]:.1f} | {steps[name] / steps[PEER]:.3f} | {setting[name]:.2f} |" for name in names],
        "",
        "| target | measured | |",
        "|---|---|---|",
    ]
    for name in (n for n in names if n.startswith("PlanScheduler")):
        ratio = steps[name] / steps[PEER]
        lines.append(f"| {name} ≤ 1/3 of {PEER} | {ratio:.3f} | {'holds' if ratio <= LIMIT else '**missed**'} |")
    text = "\n".join([*lines, "", f"torch {torch.__version__}, diffusers {library.__version__}.", ""])
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "pipeline_overhead.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
