"""Likelihood by the probability-flow ODE against densities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unstir import process as pr
from unstir.denoiser import Denoiser, Empirical, Field, GaussianMixture
from unstir.evaluate import log_likelihood
from unstir.process import Interpolant, Poisson, Process

X = torch.tensor([[-1.0, 0.3], [0.2, 0.7], [1.5, -1.0]], dtype=torch.float64)
PROCESSES = {"Flow": pr.Flow(), "Cosine": pr.Cosine(), "EDM": pr.EDM(), "shifted": pr.shifted(pr.Flow(), 3.0)}


def mixture(process: Process) -> GaussianMixture:
    return GaussianMixture(process, [0.3, 0.7], [[-1.0, 0.5], [1.0, -0.5]], [[0.1, 0.3], [0.2, 0.15]])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_mixture_on_every_process(process: Process) -> None:
    """The exact density of the stirred state at the same time."""
    at = float(process.time(3.0))
    model = mixture(process)
    exact = model.log_prob(X, at)
    torch.testing.assert_close(log_likelihood(model, X, at=at, nfe=240), exact, rtol=0, atol=2e-3)


def test_the_error_falls_with_the_order_of_the_solver() -> None:
    model, at = mixture(pr.Flow()), float(pr.Flow().time(3.0))
    exact = model.log_prob(X, at)
    errors = [float((log_likelihood(model, X, at=at, nfe=n) - exact).abs().max()) for n in (120, 240)]
    assert 8 < errors[0] / errors[1] < 40  # order 4: 16


def test_a_field_of_an_ordinary_process_and_its_denoiser_agree() -> None:
    model = mixture(pr.OneSided("trigonometric"))
    exact = model.log_prob(X, 0.1)
    torch.testing.assert_close(log_likelihood(Field.of(model), X, at=0.1, nfe=160), exact, rtol=0, atol=2e-3)


def test_two_sided_gaussians_with_the_density_of_the_source() -> None:
    """From N(−0.7, 1.2²) to N(1, 0.5²): log p at t, by the closed-form variance."""
    p = Interpolant(gamma="quadratic")
    m0, s0, m1, s1 = 1.0, 0.5, -0.7, 1.2

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        a, b, s = p.alpha(t), p.beta(t), p.sigma(t)
        return a * m0 + b * m1, (a * s0) ** 2 + (b * s1) ** 2 + s**2

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        inner = t[:, None].detach().requires_grad_(True)
        m, v = moments(inner)
        (dm,) = torch.autograd.grad(m.sum(), inner, retain_graph=True)
        (dv,) = torch.autograd.grad(v.sum(), inner)
        m, v = moments(t[:, None])
        return dm + 0.5 * dv / v * (x - m)

    def normal(x: Tensor, t: float) -> Tensor:
        m, v = moments(torch.tensor(t, dtype=torch.float64))
        return -0.5 * ((x - m) ** 2 / v + v.log() + math.log(2 * math.pi))[:, 0]

    field, x = Field(velocity, p), torch.tensor([[-0.4], [1.1], [2.0]], dtype=torch.float64)
    top = p.span[1]
    found = log_likelihood(field, x, at=0.02, nfe=80, log_prior=lambda z: normal(z, top))
    torch.testing.assert_close(found, normal(x, 0.02), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="log_prior="):
        log_likelihood(field, x, nfe=8)


def test_heavy_tails_have_a_student_prior() -> None:
    """Atoms under Student noise: the density is a mean of Student densities, and the same ODE carries it."""
    process = Poisson(6.0, pr.EDM(0.01, 40.0))
    model = Empirical(process, torch.tensor([[-1.0, 0.2], [0.6, -0.4]], dtype=torch.float64))
    at = float(process.time(1.2))
    exact = model.log_prob(X, at)
    torch.testing.assert_close(log_likelihood(model, X, at=at, nfe=240), exact, rtol=0, atol=5e-3)
    gauss = log_likelihood(model, X, at=at, nfe=120, log_prior=pr.Flow().log_prior)
    assert float((gauss - exact).abs().max()) > 0.05  # the check can fail


def test_given_an_anchor() -> None:
    """p(x | y) of a network that sees y: here x0 = y + N(0, 0.3²) and the drift to y is no part of the answer."""

    class Towards(pr.VP):
        anchored = True

        def beta(self, t: float | Tensor) -> Tensor:
            return -torch.expm1(self._log_alpha(t))

    process = Towards()

    def network(x: Tensor, t: Tensor, anchor: Tensor) -> Tensor:
        a, b, s = (f(t)[:, None] for f in (process.alpha, process.beta, process.sigma))
        return anchor + a * 0.09 / (a**2 * 0.09 + s**2) * (x - (a + b) * anchor)

    y = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    x = y + torch.tensor([[0.1], [-0.5]], dtype=torch.float64)
    at = 1e-3
    state = process.alpha(at) * x + process.beta(at) * y
    model = Denoiser(network, process, "data", sees_anchor=True)
    v = process.alpha(at) ** 2 * 0.09 + process.sigma(at) ** 2
    exact = -0.5 * ((state - (process.alpha(at) + process.beta(at)) * y) ** 2 / v + (2 * math.pi * v).log())[:, 0]
    torch.testing.assert_close(log_likelihood(model, state, at=at, nfe=240, anchor=y), exact, rtol=0, atol=2e-3)


def test_hutchinson_is_unbiased_and_belongs_to_the_sample() -> None:
    """The mean over many probes is the exact value; a diagonal Jacobian has no variance at all."""
    model, at = mixture(pr.Flow()), 0.1
    exact = log_likelihood(model, X, at=at, nfe=40)
    options = {"at": at, "nfe": 40, "divergence": "hutchinson", "seed": 5}
    many = log_likelihood(model, X, probes=64, **options)
    one = log_likelihood(model, X, **options)
    assert float((many - exact).abs().max()) < 4 * float((one - exact).abs().max()) / 8 + 0.05
    torch.testing.assert_close(log_likelihood(model, X[:2], **options), one[:2])
    diagonal = GaussianMixture(pr.Flow(), [1.0], [[0.5, 0.1]], [[0.2, 0.4]])
    torch.testing.assert_close(
        log_likelihood(diagonal, X, **options), log_likelihood(diagonal, X, at=at, nfe=40), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"divergence": "trace"}, "divergence='trace'"),
        ({"probes": 0}, "probes=0"),
        ({"at": 0.0}, "at=0.0"),
        ({"at": 1.0}, "at=1.0"),
        ({"solver": "field-rk"}, "unknown solver"),
    ],
)
def test_bad_input_is_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        log_likelihood(mixture(pr.Flow()), X, **options)


def test_a_model_needs_a_process_and_a_graph() -> None:
    with pytest.raises(TypeError, match="no process"):
        log_likelihood(lambda x, t: x, X)
    still = Field(lambda x, t: x.detach(), pr.Flow())
    with pytest.raises(ValueError, match="no graph"):
        log_likelihood(still, X, nfe=8)
