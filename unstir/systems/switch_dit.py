"""Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts (2024).

For people who pre-train diffusion transformers: the same transformer, but every block sees its input through k of M small
linear experts, chosen by the noise level alone. As published, it learns faster and ends better at almost the same cost:

    r = x ⊙ m_t,   x ← block(r) + (1 − m_t) ⊙ x,   m_t = 1 + Σ_j g_{t,j} (x A_j + b_j),   g_t = the k largest of p_t

and an auxiliary loss gives neighbouring levels common experts, and all levels a few. Which experts a step of a plan needs is
known before it runs (`gate_table`), so the others may be left on a disk. A trained DiT becomes a Switch-DiT for free: its
weights load, and the experts start as m = 1.

Parts: `nets.SwitchDiT` (and `nets.RoutedBlock` for blocks of any other network), `train.routing_prior`;
`nets.ChannelRoutedDiT` is the fixed routing that it improves on.
From the command line: `unstir train DATA --preset switch-dit-small`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import train
from ..data import Dataset, load
from ..denoiser import Denoiser
from ..evaluate import frechet, labelled_rows, save_png
from ..nets import ChannelRoutedDiT, DiT, SwitchDiT, default_condition
from ..nets.routing import LEVELS, top
from ..plan import Plan, sample
from ..process import OneSided
from ..solvers import plan
from ..train.progress import Event
from ..train.routing import set_levels
from ._digits import CLASSES, report
from .protocol import Result, at_least, at_most

PROCESS = OneSided("trigonometric")
TINY: dict[str, Any] = {"width": 48, "depth": 3, "heads": 4, "waves": 64, "classes": CLASSES}
TESTED = 397  # digits; the other 1400 are learned
BATCH, STEPS, CHECKED = 96, 700, (200, 400, 700)  # images a step, steps, and when the error is measured
SEEDS = (0, 1, 2)
ALWAYS = 0.95  # an expert that is on at more of the levels is shared


def gate_table(model: Denoiser, plan: Plan) -> Tensor:
    """(calls, blocks, experts): the gates of every call of a plan, before it is run; 0 for experts that it does not use.

    TypeError for a network without `routes`.
    """
    network: Any = model.network
    if not hasattr(network, "routes"):
        raise TypeError(f"the network {type(network).__name__} has no routes to tabulate; use nets.SwitchDiT")
    times = torch.tensor([row.t for row in plan.rows if row.evaluate], dtype=torch.float64)
    with torch.no_grad():
        return network.routes(model.decoder(times).time.to(network.router.logits.weight)).gates


class Routing(NamedTuple):
    """What a router does at its 256 levels, from clean to stirred; experts are ordered as the prior's columns."""

    on: Tensor  # (256, U) of 0 and 1
    distance: float  # mean divergence from the prior
    shared: int  # experts on at more than `ALWAYS` of the levels
    correlation: float  # of ⟨q_t, q_s⟩ with −|t − s|, q_t (U,) the choice at t, over pairs t < s


@torch.no_grad()
def routing(model: Denoiser) -> Routing:
    """The router of a model, measured against the prior."""
    network: Any = model.network
    prior = train.routing_prior(model).to(network.router.levels.device)
    table = network.routes(network.router.levels).probs
    match = prior.match(table)
    distance = prior.distance(table, torch.arange(LEVELS, device=table.device), match)
    on = top(table, network.router.k).flatten(1).cpu()
    i, j = torch.triu_indices(LEVELS, LEVELS, 1)
    overlap, near = (on @ on.T)[i, j], (i - j).float()
    r = torch.corrcoef(torch.stack([overlap, near]))[0, 1]
    ordered = torch.empty_like(on)
    ordered[:, match.cpu()] = on
    return Routing(ordered, float(distance.mean()), int((on.mean(0) > ALWAYS).sum()), float(r))


def untrained(kind: type[DiT], seed: int = 0, **options: Any) -> Denoiser:
    """A fresh transformer for the digits that predicts velocities."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = default_condition(kind(1, **TINY | options), {"class_labels": CLASSES})
    meta = {"null": {"class_labels": CLASSES}, "classes": [str(n) for n in range(CLASSES)]}
    return Denoiser(network, PROCESS, "velocity", time="thousand", shape=(1, 8, 8), meta=meta)


@torch.no_grad()
def velocity_error(model: Denoiser, test: Dataset, levels: int = 13) -> float:
    """‖v̂ − v‖², mean over the test digits with their classes and `levels` fixed times, each with a fixed z."""
    device = next(model.parameters()).device
    x, labels = test.batch(range(len(test)))
    assert labels is not None
    x, cond = x.to(device), {"class_labels": labels.to(device)}
    total = 0.0
    for i in range(levels):
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(device)
        t = torch.full((len(x),), (i + 0.5) / levels, dtype=torch.float64)
        total += float(train.Objective().loss(model, x, z, t, cond)[0]) / levels
    return total


def learned(
    model: Denoiser, data: Dataset, test: Dataset, steps: int, *, prior: float = 0.0, device: str = "cpu", seed: int = 0
) -> dict[int, float]:
    """Trains `model` with `prior` times the routing prior; the test error at the steps `CHECKED`, as shares of `steps`.

    AdamW with rate 2e-3 falling along half a cosine, batch 96, stratified levels, a tenth of the classes dropped; the last
    weights, not their average.
    """
    config = train.TrainConfig(
        data="digits", split="all", steps=steps, batch=BATCH, warmup=0, ema=0.0, seed=seed, predicts="velocity",
        device=device, checkpoint_every=steps, keep=1, workers=0,
    )  # fmt: skip
    checked, errors = [steps * n // STEPS for n in CHECKED], {}
    auxiliary = {"routing": (train.routing_prior(model), prior)} if prior else {}
    with train.bar(steps, type(model.network).__name__) as bar, tempfile.TemporaryDirectory() as folder:

        def look(event: Event) -> None:
            bar(event)
            if event["step"] in checked:
                errors[event["step"]] = velocity_error(model, test)

        run = train.fit(model, data, config, folder, auxiliary=auxiliary, progress=look)
    if run.interrupted:
        raise KeyboardInterrupt
    model.eval().requires_grad_(False)
    return errors


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Three transformers learn the digits: plain, switched with the routing prior, and switched without it.

    Errors differ from seed to seed by about 0.004, so those of the first two are means over three seeds; all else is of seed 0.

    large: 7000 steps instead of 700, and two more: fixed channels, and a plain one as large as the switched.
    """
    data, test = load("digits").split(TESTED)
    steps = 10 * STEPS if large else STEPS
    models: dict[str, tuple[Denoiser, float]] = {
        "plain": (untrained(DiT), 0.0),
        "switched, with prior": (untrained(SwitchDiT), 1.0),
        "switched, without": (untrained(SwitchDiT), 0.0),
    }
    if large:
        models |= {"fixed channels": (untrained(ChannelRoutedDiT), 0.0), "plain, wider": (untrained(DiT, width=52), 0.0)}
        set_levels(models["fixed channels"][0])
    errors = {name: learned(model, data, test, steps, prior=w, device=device) for name, (model, w) in models.items()}
    every = {name: [errors[name]] for name in ("plain", "switched, with prior")}
    for seed in SEEDS[1:]:
        for name, kind, w in (("plain", DiT, 0.0), ("switched, with prior", SwitchDiT, 1.0)):
            every[name].append(learned(untrained(kind, seed=seed), data, test, steps, prior=w, device=device, seed=seed))
    plain, switched = ({n: sum(e[n] for e in found) / len(found) for n in found[0]} for found in every.values())
    routes = {name: routing(models[name][0]) for name in ("switched, with prior", "switched, without")}
    with_prior, without = routes.values()
    claims = [
        *(
            at_most(f"test error after {n} steps, mean of three seeds, against the plain one", switched[n], plain[n])
            for n in plain
        ),
        at_most("routing: divergence from the prior, with it", with_prior.distance, 0.02),
        at_least("routing: divergence from the prior, without it", without.distance, 0.05),
        at_least(f"experts shared by {ALWAYS:.0%} of the levels, with the prior", with_prior.shared, 2),
        at_least("correlation of common experts with nearness in time", with_prior.correlation, 0.4),
    ]
    figures: dict[str, Any] = {
        "parameters": {name: _size(model.network) for name, (model, _) in models.items()},
        "test error": errors,
        "test error, every seed": every,
        "divergence": {name: r.distance for name, r in routes.items()},
        "shared experts": {name: r.shared for name, r in routes.items()},
        "correlation": {name: r.correlation for name, r in routes.items()},
        "training steps": steps,
    }
    _page(out, claims, figures, {name: model for name, (model, _) in models.items()}, routes, test)
    return Result(claims, figures)


def _page(
    out: Path, claims: Any, figures: dict[str, Any], models: dict[str, Denoiser], routes: dict[str, Routing], test: Dataset
) -> None:
    """The report and its pictures, and the Fréchet distances of samples into `figures`."""
    x = test.all()
    ten = plan("dpmpp-3m", PROCESS, nfe=20)
    labels = torch.arange(500) % CLASSES
    device = next(models["plain"].parameters()).device
    drawn = {name: sample(m, ten, shape=(500, 1, 8, 8), class_labels=labels.to(device)).cpu() for name, m in models.items()}
    figures["Fréchet distance of 500 samples"] = {name: frechet(x, s[: len(x)]).value for name, s in drawn.items()}
    page = report(
        "A transformer with experts for noise levels",
        f"1400 digits to learn, {TESTED} to test, {figures['training steps']} steps of {BATCH}, transformers of "
        f"{TINY['depth']} blocks of width {TINY['width']}; velocities on the path α = cos ½πt.",
        claims,
    )
    steps = list(figures["test error"]["plain"])
    rows = [
        [name, figures["parameters"][name], *figures["test error"][name].values(), figures[list(figures)[-1]][name]]
        for name in models
    ]
    columns = ["transformer", "parameters", *(f"error, {n} steps" for n in steps), "Fréchet distance"]
    page.table(rows, columns, caption="‖v̂ − v‖² on the test digits, and the distance of 500 samples (20 calls) to them.")
    prior = train.routing_prior(models["switched, without"]).windows.float()
    tables = {"prior": prior, **{name: route.on for name, route in routes.items()}}
    bands = {
        name: 0.9 - 0.75 * on.T[None, None].repeat_interleave(12, 2).repeat_interleave(2, 3) for name, on in tables.items()
    }
    sheet = labelled_rows(
        bands, scale=1, value_range=(0, 1), header=["experts (rows) that are on (dark): clean (left) to noise (right)"]
    )
    save_png(sheet, out / "experts.png")
    page.picture(sheet, "Which of the nine experts the 256 quantiles of the levels use; rows are ordered as the prior's.")
    short = plan("dpmpp-3m", PROCESS, nfe=8)
    gates = gate_table(models["switched, with prior"], short)
    lines = [
        [i, row.t, float(PROCESS.logsnr(row.t)), *(_names(block) for block in call)]
        for i, (row, call) in enumerate(zip(short.rows, gates, strict=True))
    ]
    blocks = [f"block {n}" for n in range(1, gates.shape[1] + 1)]
    page.table(lines, ["row", "t", "λ", *blocks], caption="Experts that 8 calls of dpmpp-3m use, with their gates.")
    sheet = labelled_rows({name: s[:10].clamp(-1, 1) for name, s in drawn.items()}, value_range=(-1, 1))
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "Samples of the classes 0 … 9, 20 calls from the same noise.")
    page.save(out / "report.html")


def _names(gates: Tensor) -> str:
    return "  ".join(f"{j}: {g:.2f}" for j, g in enumerate(gates.tolist(), 1) if g)


def _size(network: Any) -> int:
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0
