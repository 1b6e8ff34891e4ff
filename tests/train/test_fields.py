"""Field losses: minimised by the conditional expectation, of finite variance, and the loop that uses them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unstir.denoiser import FIELDS, Field
from unstir.process import Interpolant, OneSided
from unstir.train import field_loss, fit_field

SOURCE, DATA = (
    torch.randn(512, 2, generator=torch.Generator().manual_seed(k)) * s + m for k, s, m in ((0, 1.0, -1.0), (1, 0.5, 2.0))
)


class Affine(nn.Module):
    """One line in x for every output, at one time: what a Gaussian problem needs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...] | Tensor:
        out = tuple(a * x + b for a, b in self.weights)
        return out if len(out) > 1 else out[0]


@pytest.mark.parametrize("name", ["velocity", "path", "noise", "score", "data", "source"])
def test_the_minimum_is_the_conditional_expectation(name: str) -> None:
    """Independent Gaussians at t = 0.3: the gradient vanishes at the regression line of the Gaussian rule."""
    p, t = Interpolant(), 0.3
    a, b, s = (float(f(t)) for f in (p.alpha, p.beta, p.sigma))
    cx, cy, cz = (float(torch.as_tensor(c)) for c in FIELDS[name](p, torch.tensor(t, dtype=torch.float64)))
    variance = (0.5 * a) ** 2 + b**2 + s**2
    slope = (0.25 * cx * a + cy * b + cz * s) / variance
    level = 2 * cx - cy - slope * (2 * a - b)
    model = Field(Affine(1), p, name)
    n = 40_000
    g = torch.Generator().manual_seed(3)
    x0, y, z = 0.5 * torch.randn(n, 1, generator=g) + 2, torch.randn(n, 1, generator=g) - 1, torch.randn(n, 1, generator=g)
    found = []
    for weights in ((slope, level), (slope + 0.2, level)):
        model.network.weights.data[0] = torch.tensor(weights)
        loss = field_loss(model, x0, y, z, torch.full((n,), t)).mean()
        (gradient,) = torch.autograd.grad(loss, model.network.weights)
        found.append(float(gradient.abs().max()))
    scale = abs(cx) + abs(cy) + abs(cz)
    assert found[0] < 0.05 * scale
    assert found[1] > 0.1


def test_antithetic_pairs_keep_the_variance_finite() -> None:
    """Near t = 0 the velocity holds z/√t: without pairs its loss is a hundred times as noisy."""
    model = Field(Affine(1), Interpolant(), "velocity")
    model.network.weights.data[0] = torch.tensor([1.0, 0.0])
    z, t = torch.randn(512, 2, generator=torch.Generator().manual_seed(2)), torch.full((512,), 1e-5)
    pairs, plain = (field_loss(model, DATA, SOURCE, z, t, antithetic=on).detach() for on in (True, False))
    assert float(plain.std()) > 20 * float(pairs.std())


def test_the_loop_learns_a_gaussian_map_and_repeats_itself() -> None:
    class Quadratic(nn.Module):  # affine in x, quadratic in t: enough for two Gaussians
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            t = t[:, None]
            return self.layer(torch.cat([x, x * t, x * t**2, t, t**2], 1))

    def run(steps: int) -> Field:
        torch.manual_seed(0)
        model = Field(Quadratic(), Interpolant(gamma="quadratic"))
        return fit_field(model, DATA, SOURCE, steps=steps, batch=32, lr=0.3, seed=1)

    short, again = run(5), run(5)
    for one, two in zip(short.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    import unstir

    field = run(400)
    x = unstir.sample(field, unstir.plan("field-heun", field.process, 20), x=SOURCE)
    assert float((x.mean(0) - 2).abs().max()) < 0.1  # from −1
    assert float((x.std(0) - 0.5).abs().max()) < 0.1  # from 1


def test_paired_rows_stay_together() -> None:
    """With y = x0 the path velocity is 0 on a linear path: only paired training can see that."""
    seen: list[Tensor] = []

    class Spy(Affine):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x, t)  # type: ignore[return-value]

    fit_field(Field(Spy(1), Interpolant(gamma="zero"), "path"), DATA, DATA, steps=1, batch=16, paired=True)
    assert bool(((seen[0][:, None] - DATA).abs().amax(2).amin(1) < 1e-5).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f, z: field_loss(f, DATA, None, z, torch.full((512,), 0.5)), "pass source="),
        (lambda f, z: field_loss(f, DATA, SOURCE[:3], z, torch.full((512,), 0.5)), r"source has shape \(3, 2\)"),
        (lambda f, z: field_loss(f, DATA, SOURCE, z[:3], torch.full((512,), 0.5)), r"noise has shape \(3, 2\)"),
        (lambda f, z: field_loss(f, DATA, SOURCE, z, torch.zeros(512)), "inside"),
        (lambda f, z: fit_field(f, DATA, SOURCE[:, :1]), "source has samples of shape"),
        (lambda f, z: fit_field(f, DATA, SOURCE[:7], paired=True), "one row for each row"),
        (lambda f, z: fit_field(f, DATA, SOURCE, steps=0), "steps=0"),
        (lambda f, z: fit_field(f, DATA, SOURCE, margin=0.5), "margin=0.5"),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(Field(Affine(1), Interpolant()), torch.zeros(512, 2))


def test_without_a_source_none_is_asked_for() -> None:
    model = Field(Affine(1), OneSided(), "velocity")
    assert field_loss(model, DATA, None, torch.zeros(512, 2), torch.full((512,), 0.5)).shape == (512,)
