"""What several systems share: real digits with an exact denoiser, a small trained network, error tables, one report.

Two test benches, both on scikit-learn's 1797 handwritten digits.

- *Exact*: 400 digits in their 20 leading principal coordinates, blurred by N(0, 0.3² I). E[x0 | x_t] is
  known in closed form, so all error is the solver's, and a run takes a fraction of a second.
- *Trained*: a multilayer perceptron of 0.5 M weights that learns all digits in about a minute on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import train
from ..data import load
from ..denoiser import Denoiser, Empirical
from ..evaluate import Report, trajectory_error
from ..nets import default_condition
from ..plan import Plan, sample
from ..process import EDM, Process
from ._kept import once
from ._trunk import ResidualMLP, zero
from .protocol import Claim

Model = Callable[..., Tensor]
Errors = dict[str, dict[int, float]]  # {plan: {NFE: error}}


# -- the exact bench ----------------------------------------------------------------------------------------
class PcaDigits(NamedTuple):
    """Digits in principal coordinates: pixel = mean + scale · x · axes."""

    x: Tensor  # (N, dims), unit overall standard deviation over all 1797 digits
    labels: Tensor  # (N,)
    mean: Tensor  # (64,)
    axes: Tensor  # (dims, 64), orthonormal
    scale: float

    def pictures(self, x: Tensor) -> Tensor:
        """States (B, dims) as pictures (B, 1, 8, 8)."""
        return (self.mean + self.scale * x @ self.axes).reshape(-1, 1, 8, 8)


def pca_digits(count: int = 400, dims: int = 20, seed: int = 0) -> PcaDigits:
    """`count` digits drawn without replacement, in the `dims` leading principal coordinates of all digits."""
    digits = load("digits")
    pixels = digits.all().double().flatten(1)
    mean = pixels.mean(0)
    axes = torch.linalg.svd(pixels - mean, full_matrices=False).Vh[:dims]
    x = (pixels - mean) @ axes.T
    scale = float(x.std())
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
    assert digits.labels is not None
    return PcaDigits(x[rows] / scale, digits.labels[rows], mean, axes, scale)


def exact(digits: PcaDigits, process: Process, label: int | None = None, bandwidth: float = 0.3) -> Empirical:
    """The exact denoiser of the blurred digits, of all of them or of one class.

    A class keeps only its digits among those drawn, so that p(x | label) is a part of p(x), as guidance needs.
    """
    return Empirical(process, digits.x if label is None else digits.x[digits.labels == label], bandwidth)


# -- the trained bench --------------------------------------------------------------------------------------
RECIPE = 1  # part of the cache's name: raise it when the network or its training changes
STEPS = 1500
SIGMA_DATA = 0.752  # of the pixels in [−1, 1]
CLASSES = 10  # and the label 10 means "any"


class DigitsNet(ResidualMLP):
    """F(c_in x̂, c_noise, label) for 8 × 8 pictures, c_noise = ¼ log σ̂:

    h of `ResidualMLP`, told one-hot labels, 16 frequencies f from ¼ to 8;   F = H h
    """

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__(64, torch.logspace(-2, 3, 16, base=2), told=CLASSES + 1, width=width, blocks=blocks)
        self.head = zero(nn.Linear(width, 64))
        self.close()

    def told(self, condition: Tensor) -> Tensor:
        """(B, 11): the condition as the network sees it."""
        return nn.functional.one_hot(condition, CLASSES + 1)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        return self.head(self.trunk(x, time, self.told(class_labels).to(time))).reshape(x.shape)


def untrained(process: Process, seed: int = 0) -> Denoiser:
    """A fresh denoiser of pictures (1, 8, 8); class_labels=… is optional, without it the model is unconditional.

    EDM's preconditioning depends on the state and σ̂ only through x/α, so one network serves every process.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = default_condition(DigitsNet(), {"class_labels": CLASSES})
    meta = {"null": {"class_labels": CLASSES}, "classes": [str(n) for n in range(CLASSES)]}
    return Denoiser(network, process, "edm", time="c_noise", sigma_data=SIGMA_DATA, shape=(1, 8, 8), meta=meta)


def trained(process: Process, folder: Path, steps: int = STEPS, seed: int = 0) -> Denoiser:
    """The digits model on `process`, trained once and kept in `folder` as safetensors.

    log σ̂ ~ N(−0.6, 1.3²), weight (σ̂² + σ_d²)/(σ̂ σ_d)², batch 192, rate 2e-3 falling linearly, weight average
    0.995, a fifth of the labels dropped. A run that was stopped goes on where it stopped.
    """
    config = train.TrainConfig(
        data="digits", split="all", steps=steps, batch=192, schedule="linear", warmup=0, seed=seed, process="edm",
        levels="lognormal:-0.6,1.3", ema=0.995, cond_dropout=0.2, device="cpu", checkpoint_every=steps, keep=1,
    )  # fmt: skip
    found = once(
        folder / f"digits-v{RECIPE}-{steps}-{seed}.safetensors",
        steps,
        lambda run, bar: train.fit(untrained(EDM(), seed), load("digits"), config, run, resume=True, progress=bar),
        title="digits network",
    )
    model = untrained(process, seed)
    model.network.load_state_dict(found)  # type: ignore[union-attr]
    return model.eval().requires_grad_(False)


# -- what is done with them ---------------------------------------------------------------------------------
def guided(model: Model, base: Model, scale: float) -> Model:
    """Classifier-free guidance, D_base + w (D_model − D_base); conditions go to `model` only.

    With a network trained on dropped labels both are the same: guided(net, net, 7.5), then class_labels=….
    """

    def denoise(x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        data = base(x, t)
        return data + scale * (model(x, t, **cond) - data)

    return denoise


def median_error(x: Tensor, reference: Tensor) -> float:
    """Median over the samples of the root-mean-square error."""
    return trajectory_error(x, reference).median


def errors(
    model: Model,
    plans: Mapping[str, Callable[[int], Plan]],
    budgets: Iterable[int],
    x: Tensor,
    reference: Tensor,
    measure: Callable[[Tensor, Tensor], float] = median_error,
    **cond: Any,
) -> Errors:
    """The error of every plan at every budget of calls, from the start states `x` to the states `reference`."""
    budgets = list(budgets)
    return {name: {n: measure(sample(model, make(n), x=x, **cond), reference) for n in budgets} for name, make in plans.items()}


def error_rows(found: Errors) -> tuple[list[list[Any]], list[str]]:
    """(rows, columns) for `Report.table`: a row a plan, a column a budget."""
    budgets = sorted({n for row in found.values() for n in row})
    return [[name, *(row.get(n) for n in budgets)] for name, row in found.items()], ["plan", *(f"{n} NFE" for n in budgets)]


def bench(digits: PcaDigits, x: Tensor) -> str:
    """The exact bench in words."""
    return (
        f"The exact denoiser of {len(digits.x)} real digits ({digits.x.shape[1]} principal coordinates, blur 0.3), VP process, "
        f"t from 1 to 0.001, {len(x)} starts. Error: median over the samples of the root-mean-square distance to the reference."
    )


def report(title: str, summary: str, claims: Sequence[Claim]) -> Report:
    """A report that opens with the summary and the claims; a claim that failed is red."""
    rows = [(c.text, c.measured, f"{'≤' if c.sense == '<=' else '≥'}\u00a0{c.threshold:.4g}", c.held) for c in claims]
    failed = [i for i, claim in enumerate(claims) if not claim.held]
    return Report(title).text(summary).table(rows, ["claim", "measured", "needed", "held"], failed=failed)


def error_section(
    page: Report, out: Path, found: Errors, caption: str, name: str = "errors", ylabel: str = "error to the reference"
) -> Report:
    """Table and plot of errors; the plot also lies in `out` as NAME.svg."""
    from ..evaluate import error_plot

    rows, columns = error_rows(found)
    page.table(rows, columns, best=dict.fromkeys(columns[1:], "min"), caption=caption)
    plot = error_plot({label: sorted(row.items()) for label, row in found.items()}, ylabel=ylabel)
    (out / f"{name}.svg").write_bytes(plot)
    return page.plot(plot)
