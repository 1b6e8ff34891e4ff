"""AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model Acceleration (2023).

For owners of one trained network and a fixed budget, in steps or in executed blocks, who want the best time steps and, for
every step, the blocks that may be left out, found once before use. Evolution over pairs (time, skipped blocks): children of
the ten best are mutated or crossed, scored by the Fréchet distance of few samples to the data, first with the whole network.
Unlike in the published code every candidate sees the same noises, a time keeps its own blocks when lists are crossed, and the
last candidates are scored again on fresh noises.

Parts: `unstir.tune.search` with `Layers`, `unstir.nets.skippable`, rows with keyword arguments (skip=…), DDIM.
"""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from .. import train, tune
from ..data import load
from ..denoiser import Denoiser
from ..evaluate import frechet, labelled_rows, save_png
from ..nets.skippable import block_calls, skippable, zero
from ..plan import Plan, sample
from ..process import VP
from ._digits import report, trained
from .protocol import Result, at_most

BLOCKS = ("b.0", "b.1", "b.2")  # the branches of the digits network's three residual blocks
STARTS = ("uniform", "trailing", "quadratic")


def network(process: VP, folder: Path, steps: int = 1500) -> Denoiser:
    """The digits network with blocks that can be skipped; its prediction is clipped to the range of the pixels."""
    model = copy.deepcopy(trained(process, folder, steps))
    model.clip = (-1.0, 1.0)
    skippable(model.network, dict.fromkeys(BLOCKS, zero))  # type: ignore[arg-type]
    return model


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Searched times of 4 and 6 steps beside uniform, trailing, quadratic and random ones; then blocks; then both together.

    large: a network trained for 4800 steps instead of 1500, and 300 trials of 1000 samples instead of 120 of 400.
    """
    process = VP()
    model = network(process, out.parent, 4800 if large else 1500).to(device)
    digits = load("digits").all()
    x = process.prior((2000, 1, 8, 8), seed=20_261, device=device)
    trials, samples = (300, 1000) if large else (120, 400)

    def draw(made: Plan) -> Tensor:
        return sample(model, made, x=x).cpu()

    def fd(made: Plan) -> float:
        """Fréchet distance of 2000 samples to the digits, 24 principal coordinates."""
        return frechet(digits.flatten(1), draw(made).flatten(1)).value

    def searched(nfe: int, space: Any, method: str = "evolution") -> Plan:
        with train.bar(trials, method) as progress:
            return tune.search(
                model, nfe, space=space, method=method, budget=trials, score="frechet", data=digits, samples=samples,
                validation=1000, device=device, progress=lambda p: progress({"step": p.step, "loss": p.error}),
            )  # fmt: skip

    rows: list[list[Any]] = []
    found: dict[str, float] = {}
    shown: dict[str, Tensor] = {"digits": digits[:10]}

    def measure(name: str, made: Plan) -> float:
        found[name] = fd(made)
        record = made.options.get("searched", {}).get("genes", {})
        rows.append([name, len(made), block_calls(made, BLOCKS), found[name], str(record.get("times", ""))])
        return found[name]

    claims = []
    plans: dict[int, Plan] = {}
    for k, share in ((4, 0.65), (6, 0.85)):
        space = tune.Layers(process, k)
        for name, genes in zip(STARTS, space.starts(), strict=True):
            measure(f"{name}, {k} steps", space.plan(genes))
        lucky = measure(f"random search, {k} steps", searched(k, "times", "random"))
        plans[k] = searched(k, "times")
        best, uniform = measure(f"evolution, {k} steps", plans[k]), found[f"uniform, {k} steps"]
        claims += [
            at_most(f"{k} steps: FD of the searched times, against {share} of uniform ones", best, share * uniform),
            at_most(f"{k} steps: against 1.1 of random search with as many trials", best, 1.1 * lucky),
        ]
        shown[f"uniform, {k} steps"] = draw(space.plan(space.starts()[0]))[:10]
        shown[f"searched, {k} steps"] = draw(plans[k])[:10]

    whole = found["evolution, 6 steps"]
    masks = tune.Layers(process, 6, BLOCKS, 14, nodes=plans[6].options["searched"]["genes"]["times"])
    rng = Random(0)
    random_masks = torch.tensor([fd(masks.plan(masks.random(rng))) for _ in range(20)])
    found["median of 20 random choices of 4 blocks"] = middle = float(random_masks.quantile(0.5))
    rows.append(["6 steps, 4 of 18 blocks left out at random (median of 20)", 6, 14, middle, ""])
    thinned = searched(6, masks)
    best = measure("6 steps, 4 of 18 blocks left out by evolution", thinned)
    shown["random blocks, 14 of 18"] = draw(masks.plan(masks.random(Random(0))))[:10]
    shown["searched blocks, 14 of 18"] = draw(thinned)[:10]
    both = searched(4, tune.Layers(process, (4, 8), BLOCKS, 14))
    together = measure("times and blocks together, 14 blocks", both)
    measure("times and blocks together, 14 blocks, S³", searched(4, tune.Layers(process, (4, 8), BLOCKS, 14), "s3"))
    claims += [
        at_most("4 of 18 blocks left out: FD, against 0.6 of the median of random choices", best, 0.6 * middle),
        at_most("4 of 18 blocks left out: against 1.3 of the whole network at the same times", best, 1.3 * whole),
        at_most("14 blocks, times and blocks together: against uniform times with 18", together, found["uniform, 6 steps"]),
    ]

    page = report(
        "AutoDiffusion",
        "A network of 0.5 M weights trained on 1797 real digits, three residual blocks, unconditional, VP process, DDIM. "
        f"{trials} trials a search, each scored by the Fréchet distance of {samples} samples; the distances here are those "
        "of 2000 samples from noises that no search saw (24 principal coordinates; two halves of the data have 0.19).",
        claims,
    )
    page.table(rows, ["times and blocks", "steps", "blocks", "FD", "times (of 1000)"], best={"FD": "min"})
    sheet = labelled_rows(shown)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "Ten samples each, from the same noises.").save(out / "report.html")
    for name, made in (("6-steps", plans[6]), ("14-blocks", thinned), ("14-blocks-and-times", both)):
        made.save(out / f"{name}.json")
    skips = {name: made.options["searched"]["genes"] for name, made in (("14 blocks", thinned), ("together", both))}
    return Result(claims, {"FD": found, "random masks": random_masks.tolist(), "found": skips, "trials": trials})
