"""What the training loop itself costs, beside a minimal loop written by hand; and its memory on a folder ten times larger.

    .venv/bin/python benchmarks/training.py

First part: the same network, batch, optimiser, clipping and weight average in both loops, which take turns in one process,
in rounds of alternating order; processor time of the one thread that also makes the batches; medians over the rounds, and the
spread. Second part: two processes train on folders of N and 10 N pictures; their peak resident memory. Writes
docs/results/training.md and .json; always exits 0, a missed target is said in the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from unstir import data, train  # noqa: E402
from unstir.train.parallel import World  # noqa: E402
from unstir.train.step import step  # noqa: E402
from unstir.train.trainer import _prepare  # noqa: E402

clock = time.thread_time  # on a shared machine a loop that is preempted is not a slow loop
RATIO, GROWTH = 0.97, 1.10
SIDE, BATCH = 32, 8  # of the pictures in the folders


def ours(model: Any, dataset: data.Dataset, batch: int) -> Callable[[], None]:
    """The step of `fit`: batches, losses, averages and counters as in a run; data made in this thread."""
    config = train.TrainConfig("benchmark", batch=batch, workers=0, steps=10**6, device="cpu")
    run = _prepare(model, dataset, config.objective(), config, World(), torch.device("cpu"))

    def one() -> None:
        step(run)
        run.counters.losses.clear()

    return one


def by_hand(model: Any, dataset: data.Dataset, batch: int) -> Callable[[], None]:
    """The same training with nothing of the library but the network: the VP process, EDM's preconditioning on x/α and σ/α.

    raw ≈ (x0 − c_skip x/α)/c_out,   c_skip = σ_d²/(σ̂² + σ_d²),   c_out = σ̂ σ_d/√(σ̂² + σ_d²),   σ̂ = σ/α
    """
    network, spread = copy.deepcopy(model.network).train(), model.prediction.sigma_data
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    x, labels = dataset.all(), dataset.labels
    weights, averages = list(network.parameters()), list(average.parameters())
    order, place = torch.randperm(len(x)), 0

    def one() -> None:
        nonlocal order, place
        if place + batch > len(x):
            order, place = torch.randperm(len(x)), 0
        rows = order[place : place + batch]
        place += batch
        x0, noise, t = x[rows], torch.randn(batch, *x.shape[1:]), torch.rand(batch)
        cond = {}
        if labels is not None:
            cond["class_labels"] = torch.where(torch.rand(batch) < 0.1, len(dataset.classes), labels[rows])
        alpha = torch.exp(-0.5 * (0.1 * t + 9.95 * t**2)).clamp(1e-6, 1 - 1e-7).reshape(-1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        ratio = sigma / alpha
        seen = alpha * x0 + sigma * noise
        raw = network(seen / (sigma**2 + (alpha * spread) ** 2).sqrt(), 1000 * t, **cond)
        raw = raw if isinstance(raw, torch.Tensor) else raw.sample
        total = (ratio**2 + spread**2).sqrt()
        goal = (x0 - spread**2 / total**2 * (seen / alpha)) * total / (ratio * spread)
        loss = (raw - goal).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.001)  # pyright: ignore[reportPrivateImportUsage]
        float(loss.detach())  # as a loop that watches its loss

    return one


def subjects() -> dict[str, tuple[data.Dataset, str, int]]:
    """{name: (data, preset, batch)}: networks and batches of the two bundled models (for CIFAR-10 random pictures)."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 3, 32, 32), np.uint8)
    coloured = data.load(pixels, labels=[i % 10 for i in range(512)])
    return {
        "digits, tiny, batch 128": (data.load("digits"), "tiny", 128),
        "32×32 colour, tiny, batch 64": (coloured, "tiny", 64),
    }


def throughput(rounds: int, block: int) -> dict[str, dict[str, float]]:
    """{network: milliseconds a step of both loops (medians), their ratio, and the quartiles of the ratios of the rounds}."""
    found = {}
    for name, (dataset, preset, batch) in subjects().items():
        model = train.build_model(dataset, preset=preset)
        loops = {"hand": by_hand(model, dataset, batch), "ours": ours(copy.deepcopy(model), dataset, batch)}
        for loop in loops.values():
            loop()
        seen: dict[str, list[float]] = {k: [] for k in loops}
        for i in range(rounds):
            for k in list(loops)[:: 1 if i % 2 else -1]:
                begin = clock()
                for _ in range(block):
                    loops[k]()
                seen[k].append((clock() - begin) / block)
        ratios = sorted(h / o for h, o in zip(seen["hand"], seen["ours"], strict=True))
        quarter = len(ratios) // 4
        found[name] = {
            "hand_ms": statistics.median(seen["hand"]) * 1e3,
            "ours_ms": statistics.median(seen["ours"]) * 1e3,
            "ratio": statistics.median(seen["hand"]) / statistics.median(seen["ours"]),
            "low": ratios[quarter],
            "high": ratios[-1 - quarter],
        }
    return found


def write_pictures(folder: Path, count: int) -> None:
    """`count` smooth random PNGs of SIDE × SIDE."""
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = generator.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png", compress_level=1)


def peak(folder: Path, steps: int) -> float:
    """MiB of a process's peak resident memory that trains on a folder of pictures."""
    command = [sys.executable, __file__, "--train-on", str(folder), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def train_on(folder: Path, steps: int) -> None:
    """Trains, and prints this process's peak resident memory in MiB."""
    pictures = data.load(folder)
    model = train.build_model(pictures, preset="tiny")
    config = train.TrainConfig(str(folder), steps=steps, batch=BATCH, device="cpu")
    # Few samples to validate on: their activations would hide what the folder takes.
    train.fit(model, pictures, config, folder.with_suffix(".run"), validation=pictures.subset(range(BATCH)))
    # Not getrusage: its maximum survives exec, so that a child reports its parent's.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=1100)
    parser.add_argument("--steps", type=int, default=10, help="of the runs whose memory is measured")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--train-on", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.train_on:
        train_on(given.train_on, given.steps)
        return
    speed = throughput(given.rounds, given.block)
    lines = [
        "# What the training loop costs",
        "",
        "Written by `python benchmarks/training.py`.",
        "",
        "Our step (batches, noise and levels as functions of the image counter, objective, clipping, AdamW, weight average, "
        "counters) and a minimal loop written by hand around the same network, optimiser, clipping and average. One thread, "
        f"processor time, data made in the same thread; medians of {given.rounds} interleaved rounds of {given.block} steps; "
        "in brackets the quartiles of the rounds' ratios.",
        "",
        "| network | by hand, ms a step | ours, ms a step | throughput of ours | |",
        "|---|---|---|---|---|",
    ]
    for name, row in speed.items():
        verdict = "holds" if row["ratio"] >= RATIO else f"**missed** ({RATIO} wanted)"
        spread = f"{row['ratio']:.3f} ({row['low']:.3f} … {row['high']:.3f})"
        lines.append(f"| {name} | {row['hand_ms']:.1f} | {row['ours_ms']:.1f} | {spread} | {verdict} |")
    with tempfile.TemporaryDirectory() as place:
        memory = {}
        for count in (given.pictures, 10 * given.pictures):
            write_pictures(Path(place) / str(count), count)
            memory[count] = peak(Path(place) / str(count), given.steps)
    small, large = memory.values()
    lines += [
        "",
        f"Peak resident memory of a run on a folder of {SIDE}×{SIDE} PNGs in colour, batch {BATCH}, {given.steps} steps:",
        "",
        "| pictures | MiB | |",
        "|---|---|---|",
        f"| {given.pictures} | {small:.0f} | |",
        f"| {10 * given.pictures} | {large:.0f} | {large / small:.3f} of it: "
        f"{'holds' if large <= GROWTH * small else '**missed**'} (at most {GROWTH:g}); {large - small:.0f} MiB more, where the "
        f"pictures have {9 * given.pictures * 3 * SIDE**2 / 2**20:.0f} MiB more pixels |",
        "",
        f"torch {torch.__version__}.",
        "",
    ]
    text = "\n".join(lines)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "training.md").write_text(text)
    report = {"throughput": speed, "memory_mib": {str(k): v for k, v in memory.items()}}
    (given.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(text)
    print(f"wrote {given.out}/training.md and .json")


if __name__ == "__main__":
    main()
