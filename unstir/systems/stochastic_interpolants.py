"""Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (2023).

For anyone who wants to carry samples of one law to samples of another, noise to data or data to data, with an ODE or
with an SDE whose noise is chosen after training, and with likelihoods. With x_t = α x0 + β y + σ z between a source y and
data x0, two regressions (here the path velocity α'x0 + β'y and the noise z) give the velocity v and the score s, and

    dX = (v − ε s) dt + √(2ε) dw,  t from 1 to 0,

has the marginals of x_t for every ε(t) ≥ 0. With perfect fields all ε are equal; with learned ones some noise corrects
what the ODE would carry to the end.

Parts: `unstir.process.Interpolant`, `unstir.denoiser.Field`, `unstir.train.fit_field`, the "field-…" solvers, and
`unstir.evaluate.log_likelihood`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import train
from .._files import read_tensors, write_tensors
from ..data import load
from ..denoiser import Field
from ..evaluate import energy_distance, labelled_rows, save_png
from ..plan import Plan, sample
from ..process import Interpolant, Process
from ..solvers import plan
from ._digits import report
from ._trunk import ResidualMLP
from .protocol import Result, at_most

RECIPE = 1  # part of the cache's name: raise it when the network or its training changes
START, END, CALLS = 0.995, 0.005, 100
ASCII = str.maketrans({"ε": "eps", "σ": "sigma"})  # for pictures, whose font has no Greek
EPSILONS: dict[str, Any] = {"ε = 0.25": 0.25, "ε = t": "linear", "ε = σ": "sigma", "ε = 2t": lambda t: 2 * t}


class TwoHeads(ResidualMLP):
    """(path, noise) of 8 × 8 pictures: two linear heads on h of `ResidualMLP`, 16 frequencies f/2π from 1/16 to 8."""

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__(64, 2 * torch.pi * torch.logspace(-4, 3, 16, base=2), width=width, blocks=blocks)
        self.heads = nn.Linear(width, 128)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        path, noise = self.heads(self.trunk(x, t)).reshape(len(x), 2, *x.shape[1:]).unbind(1)
        return path, noise


def digits_halves() -> tuple[Tensor, Tensor]:
    """(source, data): the digits 0 … 4 and 5 … 9, pictures (N, 1, 8, 8) in [−1, 1]."""
    digits = load("digits")
    assert digits.labels is not None
    x = digits.all()
    return x[digits.labels < 5], x[digits.labels >= 5]


def trained(folder: Path, steps: int = 1000, seed: int = 0, process: Process | None = None) -> Field:
    """The field from the digits 0 … 4 to the digits 5 … 9, drawn apart; trained once and kept in `folder`."""
    process = process or Interpolant("linear", "brownian")
    source, data = digits_halves()

    def fresh() -> Field:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Field(TwoHeads(), process, ("path", "noise"), shape=(1, 8, 8))

    field = fresh()
    assert isinstance(field.network, nn.Module)
    path = folder / f"interpolant-v{RECIPE}-{steps}-{seed}.safetensors"
    if not path.exists():
        with train.bar(steps, "digits to digits") as progress:
            average = train.fit_field(fresh(), data, source, steps=steps, batch=160, seed=seed, progress=progress)
        assert isinstance(average.network, nn.Module)
        write_tensors(path, average.network.state_dict())
    field.network.load_state_dict(read_tensors(path))
    return field.eval().requires_grad_(False)


def transport(process: Process, diffusion: Any = 0.0, solver: str = "field-em", calls: int = CALLS) -> Plan:
    """From t = 0.995 to 0.005 with uniform steps of the SDE of any ε, then one call for the data: `calls` in all."""
    steps = (calls - 1) // (2 if solver == "field-heun" else 1)
    nodes = [*torch.linspace(START, END, steps + 1, dtype=torch.float64).tolist(), 0.0]
    return plan(solver, process, grid=nodes, diffusion=diffusion, denoise=True)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Energy distance to the digits 5 … 9 after 100 calls from digits 0 … 4, for the ODE and for several ε.

    Means of 2 trainings; the ODE has Euler's and Heun's method, and the better one counts. large: 3 trainings of 6000 steps.
    """
    seeds, steps = (range(3), 6000) if large else (range(2), 1000)
    source, data = digits_halves()
    starts = source[: len(data)].to(device)
    data = data[: len(starts)]
    found: dict[str, float] = {}
    shown: dict[str, Tensor] = {"source": starts[:10].cpu()}
    before = energy_distance(data, starts.cpu(), "pixel")
    for seed in seeds:
        field = trained(out.parent, steps, seed).to(device)
        plans = {"ODE, Euler": transport(field.process), "ODE, Heun": transport(field.process, solver="field-heun")}
        plans |= {name: transport(field.process, epsilon) for name, epsilon in EPSILONS.items()}
        for name, run in plans.items():
            x = sample(field, run, x=starts, seed=seed).cpu()
            found[name] = found.get(name, 0.0) + energy_distance(data, x, "pixel").value / len(seeds)
            if seed == 0 and name != "ODE, Heun":
                shown[name.translate(ASCII)] = x[:10].clamp(-1, 1)
    ode = min(found["ODE, Euler"], found["ODE, Heun"])
    best = min(EPSILONS, key=lambda name: found[name])
    claims = [
        at_most(
            f"distance after the SDE of the best ε ({best}), against 0.1 of the source's own", found[best], 0.1 * before.value
        ),
        at_most("the same, against 0.92 of the ODE's with the same fields and calls", found[best], 0.92 * ode),
    ]
    page = report(
        "Stochastic interpolants",
        "A small network learns to carry the digits 0 … 4 to the digits 5 … 9 (drawn apart, linear path, Brownian noise). "
        f"One training serves every ε, chosen when sampling; {CALLS} calls each. Energy distance of {len(data)} results to the "
        f"digits 5 … 9, mean of {len(seeds)} trainings; two halves of the data have {before.floor or 0:.2g}.",
        claims,
    )
    rows: list[list[Any]] = [["source, untouched", before.value], *map(list, found.items())]
    page.table(rows, ["run", "energy distance"], best={"energy distance": "min"})
    sheet = labelled_rows(shown)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "The same ten source digits in all rows.").save(out / "report.html")
    return Result(claims, {"energy distance": found, "source": before.value, "floor": before.floor})
