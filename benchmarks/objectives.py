"""What of a training objective shows in a small real run: prediction, weight, levels, learned uncertainty.

    python -m benchmarks.objectives        writes docs/results/objectives.md and objectives.csv (about 2 CPU-minutes)

Digits 8×8, a network of 0.1 M parameters, 400 steps of 64 pictures, three seeds; trained by `unstir.train.fit`, whose
validation error e₀ = ‖D − x0‖² on 256 held-out digits at fixed λ is what is compared (of averaged weights). A number "at
λ ∈ [−2, 2]" is the geometric mean of e₀ over λ = −2, −1, 0, 1, 2.

The claims, written before the first run; those that do not hold stay in the table and say so:

    predictions    with one weight in x0 units (min-SNR-5) all kinds of prediction end at the same e₀ at λ ∈ [−2, 2]: the
                   largest mean over the seeds is at most 1.15 times the smallest
    min-SNR        min-SNR-5 needs at most as many steps as the simple ε-loss to 1.1 times the e₀ at λ ∈ [−2, 2] that the
                   latter ends with (mean over the seeds of the logarithm of the quotient of the steps, prediction of noise)
    stratified     the loss of a batch of 64 with one uniform number for all levels has a lower variance than with independent
                   levels, the same pictures and noise: the quotient and two standard errors (over the seeds) lie below 1
    uncertainty    learned uncertainty "levels" costs at most 5 % of e₀ at λ ∈ [−2, 2] (EDM prediction, its own weight)
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unstir import Denoiser, data, process
from unstir.train import Objective, TrainConfig, fit
from unstir.train.levels import stratified

OUT = Path(__file__).parent.parent / "docs" / "results"
SEEDS = (0, 1, 2)
KINDS = ("data", "noise", "velocity", "flow", "score", "edm")
STEPS, BATCH, EVERY = 400, 64, 20
MIDDLE = (-2, -1, 0, 1, 2)
ALIKE, NEAR, COST = 1.15, 1.1, 1.05  # the thresholds of the claims
DRAWS = 400  # batches whose loss is estimated both ways

Curve = dict[int, dict[str, float]]  # step → {λ: e₀}


class Net(nn.Module):
    """raw = MLP(x, cos ω λ, sin ω λ): 105 k parameters."""

    omega: Tensor

    def __init__(self, values: int = 64, width: int = 192, waves: int = 16) -> None:
        super().__init__()
        self.register_buffer("omega", 2.0 ** torch.linspace(-3, 2, waves))
        sizes = [values + 2 * waves, width, width, width]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, values))

    def forward(self, x: Tensor, logsnr: Tensor) -> Tensor:
        phase = logsnr[:, None] * self.omega
        return self.layers(torch.cat([x.flatten(1), phase.cos(), phase.sin()], 1)).reshape(x.shape)


def model_of(kind: str, seed: int, spread: float) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(Net(), process.VP(), kind, time="logsnr", sigma_data=spread, shape=(1, 8, 8))


def run(kind: str, weight: str, seed: int, uncertainty: Any = "none") -> tuple[Denoiser, Curve]:
    """(the trained model, its validation errors every `EVERY` steps)."""
    parts = [data.load("digits", labels="none", split=split) for split in ("train", "test")]
    config = TrainConfig(
        "digits", steps=STEPS, batch=BATCH, warmup=20, schedule="constant", seed=seed, weight=weight, workers=0,
        checkpoint_every=EVERY, keep=1, uncertainty=uncertainty, device="cpu",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = fit(model_of(kind, seed, parts[0].std()), parts[0], config, folder, validation=parts[1]).model
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return model, {row["images"] // BATCH: row["validation"] for row in rows if "validation" in row}


def middle(errors: Mapping[str, float], levels: Sequence[int] = MIDDLE) -> float:
    """The geometric mean of e₀ over some λ."""
    return math.exp(statistics.fmean(math.log(errors[str(lam)]) for lam in levels))


def steps_to(curve: Curve, goal: float) -> float:
    """The step at which e₀ at λ ∈ [−2, 2] first falls to `goal`, between two validations by its logarithm; ∞ if never."""
    before: tuple[int, float] | None = None
    for step, errors in sorted(curve.items()):
        error = middle(errors)
        if error <= goal:
            if before is None:
                return step
            share = math.log(before[1] / goal) / math.log(before[1] / error)
            return before[0] + share * (step - before[0])
        before = step, error
    return math.inf


@torch.no_grad()
def variances(model: Denoiser, seed: int) -> tuple[float, float]:
    """The variance of a batch's mean loss with stratified and with independent levels; pictures and noise are the same."""
    x0, objective, generator = data.load("digits").all(), Objective(), torch.Generator().manual_seed(1000 + seed)
    losses: list[list[float]] = [[], []]
    for _ in range(DRAWS):
        x = x0[torch.randint(len(x0), (BATCH,), generator=generator)]
        z = torch.randn(x.shape, generator=generator)
        u = torch.rand(BATCH + 1, generator=generator, dtype=torch.float64)
        for place, levels in enumerate((stratified(BATCH, float(u[-1])), u[:-1])):
            losses[place].append(float(objective.loss(model, x, z, objective.times(model, levels))[0]))
    return statistics.variance(losses[0]), statistics.variance(losses[1])


def spread(values: Sequence[float], digits: int = 4) -> str:
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def main() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    found: dict[tuple[str, str, str], list[tuple[Denoiser, Curve]]] = {}
    wanted = [(kind, "min-snr:5", "none") for kind in KINDS]
    wanted += [("noise", "noise", "none"), ("edm", "raw", "none"), ("edm", "raw", "levels")]
    for kind, weight, uncertainty in wanted:
        found[kind, weight, uncertainty] = [run(kind, weight, seed, uncertainty) for seed in SEEDS]
        last = [middle(curve[STEPS]) for _, curve in found[kind, weight, uncertainty]]
        print(f"{kind} {weight} {uncertainty}: {spread(last)}, {time.process_time() - started:.0f} s", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "objectives.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["predicts", "weight", "uncertainty", "seed", "step", "logsnr", "e0"])
        for who, runs in found.items():
            for seed, (_, curve) in zip(SEEDS, runs, strict=True):
                rows = ((step, lam, e) for step, errors in curve.items() for lam, e in errors.items())
                writer.writerows([*who, seed, step, lam, f"{e:.6g}"] for step, lam, e in rows)
    text = "\n".join([*_head(), *_predictions(found), *_min_snr(found), *_stratified(found), *_uncertainty(found)])
    text += f"\n\n{len(wanted) * len(SEEDS)} runs, {time.process_time() - started:.0f} CPU-seconds on one thread.\n"
    (OUT / "objectives.md").write_text(text)
    print(text)


def _head() -> list[str]:
    return [
        "# Objectives in small real runs",
        "",
        "Written by `python -m benchmarks.objectives`, where the claims stand as they were before the first run. Digits 8×8,",
        f"VP, an MLP of 0.1 M parameters, {STEPS} steps of {BATCH} at a constant learning rate, averaged weights; e₀ on 256",
        f"held-out digits; mean ± standard deviation over {len(SEEDS)} seeds (weights, order, noise). Curves: objectives.csv.",
    ]


def _ends(runs: Sequence[tuple[Denoiser, Curve]], levels: Sequence[int] = MIDDLE) -> list[float]:
    return [middle(curve[STEPS], levels) for _, curve in runs]


def _predictions(found: Mapping[Any, Any]) -> list[str]:
    runs = {kind: found[kind, "min-snr:5", "none"] for kind in KINDS}
    means = {kind: statistics.fmean(_ends(own)) for kind, own in runs.items()}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    rows = [
        f"| {kind} | {spread(_ends(own))} | {means[kind] / means[best]:.2f} | "
        + " | ".join(f"{statistics.fmean(c[STEPS][str(lam)] for _, c in own):.4f}" for lam in (-4, *MIDDLE, 4)) + " |"
        for kind, own in runs.items()
    ]  # fmt: skip
    alike = sorted(k for k in KINDS if means[k] <= ALIKE * means[best])
    upper = {kind: statistics.fmean(_ends(own, MIDDLE[1:])) for kind, own in runs.items()}
    shown = {lam: [statistics.fmean(c[STEPS][str(lam)] for _, c in own) for own in runs.values()] for lam in (-4, *MIDDLE, 4)}
    rows.append("| largest to smallest | | | " + " | ".join(f"{max(e) / min(e):.2f}" for e in shown.values()) + " |")
    return [
        "",
        "## One weight in x0 units, every prediction",
        "",
        f"Claim: with min-SNR-5 all kinds end within {ALIKE - 1:.0%} of each other. It "
        f"{verdict(means[worst] <= ALIKE * means[best])}:",
        f"{worst} is {means[worst] / means[best]:.2f} times {best}. Within {ALIKE - 1:.0%} of the best: {', '.join(alike)}.",
        "A prediction decides how an error of the network counts in x0 units: one of ε̂ times 1/SNR, which is 55 at",
        "λ = −2 and 0.02 at λ = 2; one of the data itself alike everywhere. So the kinds end apart where a factor",
        "is large. Added after the first run: at λ = −1, 0, 1, 2 alone the worst is",
        f"{max(upper.values()) / min(upper.values()):.2f} times the best.",
        "",
        "| predicts | e₀ at λ ∈ [−2, 2] | to the best | λ = −4 | −2 | −1 | 0 | 1 | 2 | 4 |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def _min_snr(found: Mapping[Any, Any]) -> list[str]:
    simple, clipped = (found["noise", weight, "none"] for weight in ("noise", "min-snr:5"))
    goal = NEAR * statistics.fmean(_ends(simple))
    steps = [[steps_to(curve, goal) for _, curve in runs] for runs in (simple, clipped)]
    logs = [math.log(b / a) if math.isfinite(a + b) else math.inf for a, b in zip(*steps, strict=True)]
    quotient = math.exp(statistics.fmean(logs))
    rows = [
        f"| {name} | {', '.join(f'{s:.0f}' for s in own)} | {spread(_ends(runs))} | {spread(_ends(runs, (3, 4, 5)), 6)} |"
        for name, own, runs in (("simple ε", steps[0], simple), ("min-SNR-5", steps[1], clipped))
    ]
    price = statistics.fmean(_ends(clipped, (3, 4, 5))) / statistics.fmean(_ends(simple, (3, 4, 5)))
    each = ", ".join(f"{math.exp(log):.2f}" for log in logs)
    return [
        "",
        "## min-SNR-5 against the simple ε-loss",
        "",
        f"Claim: min-SNR-5 needs at most as many steps to e₀ = {goal:.4f} at λ ∈ [−2, 2]. It {verdict(quotient <= 1)}:",
        f"{quotient:.2f} times the steps (by seed {each}). At λ = 3, 4, 5, where its weight is smaller,",
        f"it ends at {price:.2f} times the e₀.",
        "",
        "| weight | steps, by seed | last e₀ at λ ∈ [−2, 2] | last e₀ at λ = 3, 4, 5 |",
        "|---|---|---|---|",
        *rows,
    ]


def _stratified(found: Mapping[Any, Any]) -> list[str]:
    lines, holds = [], True
    for kind, weight in (("noise", "noise"), ("edm", "raw")):
        pairs = [variances(model, seed) for seed, (model, _) in zip(SEEDS, found[kind, weight, "none"], strict=True)]
        quotients = [a / b for a, b in pairs]
        holds &= statistics.fmean(quotients) + 2 * statistics.stdev(quotients) / math.sqrt(len(SEEDS)) < 1
        deviations = [statistics.fmean(math.sqrt(v) for v in own) for own in zip(*pairs, strict=True)]
        lines.append(f"| {kind} | {deviations[0]:.4f} | {deviations[1]:.4f} | {spread(quotients, 3)} |")
    return [
        "",
        "## Stratified levels",
        "",
        f"Claim: one uniform number for the levels of a batch lowers the variance of its loss. It {verdict(holds)}. Trained",
        f"models, their own losses, {DRAWS} batches of {BATCH} a seed.",
        "",
        "| predicts | deviation, stratified | deviation, independent | quotient of the variances |",
        "|---|---|---|---|",
        *lines,
    ]


def _uncertainty(found: Mapping[Any, Any]) -> list[str]:
    runs = {name: found["edm", "raw", name] for name in ("none", "levels")}
    means = {name: statistics.fmean(_ends(own)) for name, own in runs.items()}
    rows = [
        f"| {name} | {spread(_ends(own))} | {spread(_ends(own, (-4, -3)))} | {spread(_ends(own, (3, 4, 5)), 5)} |"
        for name, own in runs.items()
    ]
    return [
        "",
        "## Learned uncertainty",
        "",
        f"Claim: `--uncertainty levels` costs at most {COST - 1:.0%} at λ ∈ [−2, 2]. It "
        f"{verdict(means['levels'] <= COST * means['none'])}:",
        f"e₀ is {means['levels'] / means['none']:.3f} times that without.",
        "",
        "| uncertainty | e₀ at λ ∈ [−2, 2] | at λ = −4, −3 | at λ = 3, 4, 5 |",
        "|---|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    main()
