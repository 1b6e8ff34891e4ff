"""The exact denoisers against brute force: they are the oracles of everything else, so nothing else may check them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unstir import process as pr
from unstir.denoiser import Empirical, Gaussian, GaussianMixture, LowRankMixture

F64 = torch.float64
VP, FLOW = pr.VP(), pr.Flow()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=rng(seed))


def covariances(k: int, n: int) -> Tensor:
    a = randn(k, n, n, seed=5)
    return a @ a.mT / n + 0.05 * torch.eye(n, dtype=F64)


def bayes(x: Tensor, weights, means: Tensor, cov: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(E[x0 | x], log p(x)) of a mixture by dense conditioning: no eigenvectors, no tricks."""
    logs, each = [], []
    for w, m, c in zip(weights, means, cov, strict=True):
        s = alpha**2 * c + sigma**2 * torch.eye(len(m), dtype=F64)
        r = x - alpha * m
        each.append(m + (alpha * c @ torch.linalg.solve(s, r.T)).T)
        quadratic = (r * torch.linalg.solve(s, r.T).T).sum(1)
        logs.append(math.log(w / sum(weights)) - 0.5 * (quadratic + torch.logdet(2 * math.pi * s)))
    log = torch.stack(logs)
    return (log.softmax(0)[..., None] * torch.stack(each)).sum(0), log.logsumexp(0)


def test_mixture_by_integration_in_one_dimension(process: pr.Process, mixture) -> None:
    """D = ∫ x0 p(x0) N(x; αx0, σ²) dx0 / ∫ …, on a fine grid."""
    model = mixture.model(process)
    x0 = torch.linspace(-6, 6, 24001, dtype=F64)
    prior = sum(w / s * torch.exp(-0.5 * ((x0 - m) / s) ** 2) for w, m, s in zip(mixture.w, mixture.mu, mixture.s, strict=True))
    for t in (0.1, 0.4, 0.9):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = torch.linspace(-2, 2, 7, dtype=F64)[:, None] * (alpha**2 + sigma**2).sqrt()
        joint = prior * torch.exp(-0.5 * ((x - alpha * x0) / sigma) ** 2)
        brute = (joint * x0).sum(1, keepdim=True) / joint.sum(1, keepdim=True)
        torch.testing.assert_close(model(x, t), brute, rtol=1e-8, atol=1e-9)
        density = joint.sum(1) * (x0[1] - x0[0]) / (2 * math.pi) / sigma
        torch.testing.assert_close(model.log_prob(x, t), density.log(), rtol=1e-8, atol=1e-8)


def test_full_covariances_by_bayes(process: pr.Process) -> None:
    weights, means, cov, x = [1.0, 2.0, 0.5], randn(3, 3), covariances(3, 3), randn(6, 3, seed=2)
    model = GaussianMixture(process, weights, means, cov)
    for t in (0.05, 0.5, 0.95):
        brute, log = bayes(x, weights, means, cov, process.alpha(t), process.sigma(t))
        torch.testing.assert_close(model(x, t), brute, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model.log_prob(x, t), log, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("variances", "full"),
    [
        (torch.tensor([0.2, 0.5], dtype=F64), lambda v: v[:, None, None] * torch.eye(3, dtype=F64)),
        (torch.tensor(0.3, dtype=F64), lambda v: (v * torch.eye(3, dtype=F64)).expand(2, 3, 3)),
        (randn(2, 3).abs(), torch.diag_embed),
    ],
    ids=["per component", "number", "diagonal"],
)
def test_short_forms_of_the_covariance(variances: Tensor, full) -> None:
    means, x = randn(2, 3), randn(5, 3, seed=2)
    short, long = (GaussianMixture(VP, [1, 3], means, c) for c in (variances, full(variances)))
    torch.testing.assert_close(short(x, 0.3), long(x, 0.3), rtol=1e-12, atol=1e-12)


def test_gaussian_forms() -> None:
    mean, x = randn(2, 2), randn(5, 2, 2, seed=2)
    cov = covariances(1, 4)[0]
    brute, _ = bayes(x.reshape(5, 4), [1.0], mean.reshape(1, 4), cov[None], VP.alpha(0.4), VP.sigma(0.4))
    torch.testing.assert_close(Gaussian(VP, mean, cov)(x, 0.4).reshape(5, 4), brute, rtol=1e-10, atol=1e-10)
    std = randn(2, 2, seed=3).abs()
    torch.testing.assert_close(Gaussian(VP, mean, std=std)(x, 0.4), Gaussian(VP, mean, std**2)(x, 0.4))
    torch.testing.assert_close(Gaussian(VP, mean, std=0.5)(x, 0.4), Gaussian(VP, mean, 0.25 * torch.eye(4, dtype=F64))(x, 0.4))
    # A number: D = m + α s² (x − α m)/(α² s² + σ²), written out.
    a, s = float(VP.alpha(0.4)), float(VP.sigma(0.4))
    one = torch.tensor([[0.7]], dtype=F64)
    expected = 0.2 + a * 0.09 * (0.7 - a * 0.2) / (a * a * 0.09 + s * s)
    assert float(Gaussian(VP, 0.2, std=0.3)(one, 0.4)) == pytest.approx(expected, rel=1e-13)


def test_low_rank_mixture_is_the_singular_mixture() -> None:
    """Subspaces of unequal dimension, with means, against dense conditioning on Σ = U Λ Uᵀ."""
    n, dims = 6, (1, 3, 2)
    bases = [torch.linalg.qr(randn(n, d, seed=d)).Q for d in dims]
    lam = [randn(d, seed=10 + d).abs() + 0.1 for d in dims]
    means, weights, x = randn(3, n, seed=4), [1.0, 2.0, 0.7], randn(7, n, seed=2)
    cov = torch.stack([u @ torch.diag(e) @ u.T for u, e in zip(bases, lam, strict=True)])
    model = LowRankMixture(VP, weights, bases, lam, means)
    full = GaussianMixture(VP, weights, means, cov)
    for t in (0.1, 0.5, 1.0):
        brute, log = bayes(x, weights, means, cov, VP.alpha(t), VP.sigma(t))
        for m in (model, full):
            torch.testing.assert_close(m(x, t), brute, rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(m.log_prob(x, t), log, rtol=1e-8, atol=1e-8)
    plain = LowRankMixture(VP, weights, bases)  # eigenvalues 1, means 0
    brute, _ = bayes(
        x, weights, torch.zeros(3, n, dtype=F64), torch.stack([u @ u.T for u in bases]), VP.alpha(0.5), VP.sigma(0.5)
    )
    torch.testing.assert_close(plain(x, 0.5), brute, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
def test_empirical_is_an_explicit_softmax(process: pr.Process, bandwidth: float) -> None:
    points, x = randn(20, 2, 3), randn(5, 2, 3, seed=1)
    model = Empirical(process, points, bandwidth)
    for t in (0.05, 0.5, 0.95):
        alpha, sigma = process.alpha(t), process.sigma(t)
        var = (alpha * bandwidth) ** 2 + sigma**2
        gap = x[:, None] - alpha * points
        w = (-gap.square().flatten(2).sum(2) / (2 * var)).softmax(1)[:, :, None, None]
        brute = (w * (points + alpha * bandwidth**2 / var * gap)).sum(1)
        torch.testing.assert_close(model(x, t), brute, rtol=1e-8, atol=1e-9)
        kernel = torch.distributions.Normal(alpha * points, var.sqrt())
        log = kernel.log_prob(x[:, None]).flatten(2).sum(2).logsumexp(1) - math.log(20)
        torch.testing.assert_close(model.log_prob(x, t), log, rtol=1e-9, atol=1e-9)


def laws(process: pr.Process) -> dict[str, torch.nn.Module]:
    bases = [torch.linalg.qr(randn(3, d, seed=d)).Q for d in (1, 2)]
    return {
        "gaussian": Gaussian(process, randn(3), covariances(1, 3)[0]),
        "mixture": GaussianMixture(process, [1, 2], randn(2, 3), covariances(2, 3)),
        "low rank": LowRankMixture(process, [1, 2], bases),
        "empirical": Empirical(process, randn(10, 3), 0.2),
        "points": Empirical(process, randn(10, 3)),
    }


LAWS = ["gaussian", "mixture", "low rank", "empirical", "points"]


@pytest.mark.parametrize("law", LAWS)
def test_tweedie(process: pr.Process, law: str) -> None:
    """D = (x + σ² ∇ log p_t(x))/α ties the denoiser to its density."""
    model, t = laws(process)[law], 0.5
    x = (3 * randn(6, 3, seed=7)).requires_grad_(True)
    (score,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
    tweedie = (x + process.sigma(t) ** 2 * score) / process.alpha(t)
    torch.testing.assert_close(model(x, t), tweedie, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("law", LAWS)
def test_the_ends_are_finite(process: pr.Process, law: str) -> None:
    model, x = laws(process)[law], randn(6, 3, seed=7)
    for dtype in (F64, torch.float32):
        for t in (0.0, 1e-12, 1.0):
            assert torch.isfinite(model(x.to(dtype), t)).all(), (dtype, t)
    if law in ("gaussian", "mixture", "empirical"):
        # σ = 0: whatever lies in the support of the data is the data.
        torch.testing.assert_close(model(x, 0.0), x, rtol=0, atol=1e-9)
    if float(process.alpha(1.0)) == 0:  # pure noise: D is the mean of the data
        mean = {
            "gaussian": lambda: model.means[0],
            "mixture": lambda: (torch.tensor([1, 2], dtype=F64)[:, None] * randn(2, 3)).sum(0) / 3,
            "low rank": lambda: torch.zeros(3, dtype=F64),
        }.get(law, lambda: randn(10, 3).mean(0))()
        torch.testing.assert_close(model(x, 1.0), mean.expand(6, 3), rtol=0, atol=1e-12)


def test_clean_states_are_projected_on_the_data() -> None:
    points = randn(10, 3)
    torch.testing.assert_close(Empirical(VP, points)(points + 1e-3, 0.0), points, rtol=0, atol=1e-12)
    base = torch.linalg.qr(randn(3, 1)).Q
    x = randn(4, 3, seed=1)
    torch.testing.assert_close(LowRankMixture(VP, [1], [base])(x, 0.0), x @ base @ base.T, rtol=0, atol=1e-9)


def test_the_anchor_is_taken_off_first(anchored: pr.Process) -> None:
    model, x, y = Gaussian(anchored, torch.zeros(3), std=0.5), randn(4, 3), randn(4, 3, seed=1)
    u = x - float(anchored.beta(0.4)) * y
    torch.testing.assert_close(model(x, 0.4, anchor=y), Gaussian(VP, torch.zeros(3), std=0.5)(u, 0.4))


def test_samples_have_the_right_moments_and_their_own_streams() -> None:
    n, cov = 20000, covariances(1, 3)[0]
    means = torch.stack([randn(3), randn(3, seed=1) + 4])
    model = GaussianMixture(VP, [0.3, 0.7], means, torch.stack([cov, 2 * cov]))
    x = model.sample(n, seed=3)
    assert torch.equal(model.sample(5, seed=3), x[:5])
    assert not torch.equal(model.sample(5, seed=4), x[:5])
    mean = 0.3 * means[0] + 0.7 * means[1]
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.06)
    gap = (means[0] - means[1])[:, None]
    torch.testing.assert_close(torch.cov(x.T), (0.3 + 1.4) * cov + 0.21 * gap @ gap.T, rtol=0.06, atol=0.06)
    assert Gaussian(VP, torch.zeros(2, 2), std=1.0).sample(4).shape == (4, 2, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianMixture(VP, [1, -1], [0, 1], 1.0), "weights must be 2 positive"),
        (lambda: GaussianMixture(VP, [1], [0, 1], 1.0), "weights must be 2 positive"),
        (lambda: GaussianMixture(VP, [1, 1], [0, 1], [1.0, -1.0]), "positive semi-definite"),
        (lambda: GaussianMixture(VP, [1], [[0, 1]], [[[1, 0.5], [0, 1]]]), "symmetric"),
        (lambda: GaussianMixture(VP, [1, 1], [0, 1], [1.0, 1, 1]), "covariances has shape"),
        (lambda: Gaussian(VP, 0.0), "exactly one of"),
        (lambda: Gaussian(VP, 0.0, 1.0, std=1.0), "exactly one of"),
        (lambda: LowRankMixture(VP, [1], [torch.ones(3, 2)]), r"bases\[0\] must be \(3, d\) with orthonormal"),
        (lambda: LowRankMixture(VP, [1], [torch.eye(3)], [[1, 2]]), r"eigenvalues\[0\] must be 3"),
        (lambda: Empirical(VP, [1.0, 2.0]), "data must be"),
        (lambda: Empirical(VP, [[math.nan]]), "NaN"),
        (lambda: Empirical(VP, [[1.0]], -1), "bandwidth=-1"),
        (lambda: Gaussian(VP, torch.zeros(3), std=1.0)(torch.zeros(2, 4), 0.5), r"sample shape \(4,\)"),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_denoiser_needs_a_process() -> None:
    with pytest.raises(TypeError, match="process is str"):
        Gaussian("VP", 0.0, std=1.0)
