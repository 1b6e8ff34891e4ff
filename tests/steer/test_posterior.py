"""Posterior sampling against Gaussians, whose posterior denoiser is known: conditioning a Gaussian gives a Gaussian.

An exact method is compared with the exact denoiser of N(m_y, Σ_y), in single calls and in whole runs, so
no Monte Carlo is needed to see that means, covariances and samples are right.
"""

import math

import pytest
import torch

import unstir
from unstir import steer
from unstir.denoiser import Denoiser, Gaussian, GaussianMixture
from unstir.plan import Plan
from unstir.process import EDM, VP, Flow
from unstir.steer import operators as ops
from unstir.steer.posterior import METHODS, posterior
from unstir.steer.replace import repaint_plan

torch.set_num_threads(1)
PROCESSES = [VP(), EDM(), Flow()]
N = 6


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN = randn(N, seed=1)
FULL = (lambda r: 0.5 * r @ r.T / N + 0.1 * torch.eye(N, dtype=torch.float64))(randn(N, N, seed=2))
DENSE = randn(3, N, seed=3)
KEEP = torch.tensor([1.0, 0, 1, 1, 0, 0], dtype=torch.float64)
MATRICES = {"dense": DENSE, "mask": torch.diag(KEEP)}
STD = 0.7


def operator_of(name, bare=False):
    if bare:  # no decomposition: adjoint by vjp, everything else by conjugate gradients
        return ops.Linear(lambda x: x @ MATRICES[name].T.to(x), (N,))
    return ops.dense(DENSE, (N,)) if name == "dense" else ops.mask(KEEP)


def measurement(name, noise, batch=1, seed=4):
    m = MATRICES[name]
    y = (MEAN + randn(batch, N, seed=seed)) @ m.T + noise * randn(batch, len(m), seed=seed + 1)
    return y * KEEP if name == "mask" else y


def conditioned(process, cov, name, y, noise):
    """The exact denoiser of x0 given y: N(m + K (y − A m), Σ − K A Σ), K = Σ Aᵀ (A Σ Aᵀ + σ_y²)⁺."""
    a = MATRICES[name]
    gain = cov @ a.T @ torch.linalg.pinv(a @ cov @ a.T + noise**2 * torch.eye(len(a)), rtol=1e-12)
    left = cov - gain @ a @ cov
    return Gaussian(process, MEAN + gain @ (y[0] - a @ MEAN), (left + left.T) / 2)


def levels(process, lams=(-2.0, -0.5, 0.3, 1.5, 3.0)):
    return [float(process.time(lam)) for lam in lams]


EXACT = {
    "pigdm": ("pigdm", {"data_std": STD}, STD**2 * torch.eye(N, dtype=torch.float64)),
    "diffpir": ("diffpir", {"data_std": STD}, STD**2 * torch.eye(N, dtype=torch.float64)),
    "tmpd": ("tmpd", {"steps": N}, FULL),
}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("noise", [0.3, 0.0])
@pytest.mark.parametrize("bare", [False, True], ids=["spectral", "bare"])
def test_exact_methods_are_the_denoiser_of_the_conditioned_gaussian(process, method, name, noise, bare) -> None:
    method, options, cov = EXACT[method]
    y = measurement(name, noise)
    post = posterior(Gaussian(process, MEAN, cov), operator_of(name, bare), y, method, noise, carry="data", **options)
    exact = conditioned(process, cov, name, y, noise)
    x = randn(5, N, seed=7)
    times = torch.tensor(levels(process), dtype=torch.float64)
    for t in times:
        torch.testing.assert_close(post(x, t), exact(x, t), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(post(x, times), exact(x, times), rtol=1e-6, atol=1e-6)  # a time per sample


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["ddim", "ancestral", "dpmpp-2m"])
@pytest.mark.parametrize("method", EXACT)
def test_runs_of_exact_methods_are_runs_of_the_exact_denoiser(process, plan, method) -> None:
    """Also from α = 0, where the Jacobian is 0 · ∞, and to σ = 0; mean and covariance of samples follow."""
    method, options, cov = EXACT[method]
    y = measurement("dense", 0.2)
    table = unstir.plan(plan, process, nfe=12)
    isotropic = cov[0, 1] == 0
    start = {} if isotropic else {"x": randn(4, N, seed=9)}
    if not isotropic:  # at α = 0 the covariance of the data is taken for σ_d² I
        table = unstir.plan(plan, process, nfe=12, start=levels(process)[0])
    run = {"shape": (4, N), "dtype": torch.float64, "seed": 3} if isotropic else start
    post = posterior(Gaussian(process, MEAN, cov), operator_of("dense"), y, method, 0.2, carry="data", **options)
    mine = unstir.sample(post, table, **run)
    torch.testing.assert_close(
        mine, unstir.sample(conditioned(process, cov, "dense", y, 0.2), table, **run), rtol=1e-5, atol=1e-5
    )


def test_samples_have_the_mean_and_the_spread_of_the_posterior() -> None:
    """With enough rows; 2000 samples know a std to 1.6 %, a mean to 0.02 std."""
    process, noise = VP(), 0.3
    model = Gaussian(process, MEAN, STD**2)
    y = measurement("mask", noise)
    post = posterior(model, ops.mask(KEEP), y, "pigdm", noise, carry="data", data_std=STD)
    plan = unstir.plan("dpmpp-2m", process, nfe=25)
    x = unstir.sample(post, plan, shape=(2000, N), dtype=torch.float64)
    exact = conditioned(process, STD**2 * torch.eye(N, dtype=torch.float64), "mask", y, noise)
    std = exact.sample(2).new_tensor([STD * noise / math.hypot(STD, noise) if k else STD for k in KEEP])
    assert float(((x.mean(0) - exact.means[0]) / std).abs().max()) < 0.1
    torch.testing.assert_close(x.std(0), std, rtol=0.07, atol=0)


def test_dps_moves_the_mean_towards_the_data_and_its_spread_is_biased() -> None:
    """A step of fixed length knows neither σ_y nor the spread of the prior. With ζ = 0.5 what it gives where x
    is seen is 1.6 times as wide as the posterior; the unseen stays the prior."""
    process, noise = VP(), 0.1
    y = measurement("mask", noise)
    post = posterior(Gaussian(process, MEAN, STD**2), ops.mask(KEEP), y, "dps", strength=0.5)
    x = unstir.sample(post, unstir.plan("ancestral", process, nfe=100), shape=(500, N), dtype=torch.float64)
    seen = KEEP > 0
    wanted, had = y[0, seen], MEAN[seen]
    moved = (x.mean(0)[seen] - had) / (wanted - had)
    assert ((moved > 0.95) & (moved < 1.05)).all(), moved
    ratio = x.std(0)[seen] / (STD * noise / math.hypot(STD, noise))
    assert ((ratio > 1.4) & (ratio < 1.8)).all(), ratio
    torch.testing.assert_close(x.std(0)[~seen], torch.full((3,), STD).double(), rtol=0.1, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_dps_is_the_published_step_in_vp_units(process) -> None:
    """x' ← x' − ζ ∇_x ‖y − A D‖ on the VP state of equal σ̂, with an operator that is not linear."""
    vp, operator = VP(), ops.Nonlinear(lambda x: (x @ DENSE.T.to(x)).square())
    y = operator.A(randn(3, N, seed=5))
    t, to = (float(process.time(lam)) for lam in (-0.5, 0.4))
    s, s_to = (float(vp.time(lam)) for lam in (-0.5, 0.4))
    x = randn(3, N, seed=6)
    model = Gaussian(vp, MEAN, FULL)
    u = (x * vp.alpha(s)).requires_grad_(True)
    size = (y - operator.A(model(u, s))).norm(dim=1).sum()
    (slope,) = torch.autograd.grad(size, u)
    plain = unstir.sample(model, unstir.plan("ddim", vp, grid=[s, s_to]), x=u.detach())
    published = (plain - 0.4 * slope) / vp.alpha(s_to)
    post = posterior(Gaussian(process, MEAN, FULL), operator, y, "dps", strength=0.4)
    mine = unstir.sample(post, unstir.plan("ddim", process, grid=[t, to]), x=x * process.alpha(t))
    torch.testing.assert_close(mine / process.alpha(to), published, rtol=1e-7, atol=1e-8)


def test_dps_stays_finite_where_the_residual_is_zero() -> None:
    model = Gaussian(VP(), MEAN, FULL)
    x = randn(2, N)
    operator = operator_of("dense", bare=True)
    post = posterior(model, operator, operator.A(model(x, 0.5)), "dps")
    assert torch.equal(post(x, 0.5).data, model(x, 0.5))


# -- what all methods share ------------------------------------------------------------------------------------
ALL = {
    "pigdm": {"noise": 0.1, "data_std": STD},
    "tmpd": {"noise": 0.1},
    "dps": {"strength": 0.3},
    "diffpir": {"noise": 0.1},
    "ddnm": {},
    "ddrm": {"noise": 0.1},
    "ilvr": {},
    "repaint": {},
    "mcg": {"strength": 0.3},
    "daps": {"noise": 0.1, "data_std": STD},
    "steered": {},
    "flowchef": {"inner": 5},
}


class Mixture(GaussianMixture):
    """Two Gaussians in N dimensions: data on which no method is exact."""

    def __init__(self, process) -> None:
        super().__init__(process, [0.4, 0.6], torch.stack([MEAN, -MEAN]), torch.stack([0.3 * FULL, FULL]))


def run(model, plan, method, y, options=None, operator=None, **more):
    settings = ALL[method] if options is None else options
    post = posterior(model, operator or ops.dense(DENSE, (N,)), y, method, **settings)
    plan = repaint_plan(plan, 3, 2) if method == "repaint" and all(set(row.b) == {0} for row in plan.rows) else plan
    return unstir.sample(post, plan, hooks=post.hooks, **{"shape": (4, N), "dtype": torch.float64, **more})


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["ancestral", "dpmpp-2m"])
@pytest.mark.parametrize("method", ALL)
def test_every_method_on_every_process_with_two_plans(process, plan, method) -> None:
    """The result fits the measurement better than a sample of the prior, and strength 0 is the model to the last bit."""
    model, y = Mixture(process), measurement("dense", 0.0, batch=4)
    table = unstir.plan(plan, process, nfe=12)
    x = run(model, table, method, y)
    table = repaint_plan(table, 3, 2) if method == "repaint" and plan == "ancestral" else table
    free = unstir.sample(model, table, shape=(4, N), dtype=torch.float64)
    fit, before = ((v @ DENSE.T - y).norm() for v in (x, free))
    assert fit < 0.5 * before, (fit, before)
    off = posterior(model, ops.dense(DENSE, (N,)), y, method, **{**ALL[method], "strength": 0.0})
    again = unstir.sample(off, table, hooks=off.hooks, shape=(4, N), dtype=torch.float64)
    assert torch.equal(again, free)


@pytest.mark.parametrize("plan", ["ancestral", "ab-2"])
@pytest.mark.parametrize("method", ALL)
def test_the_process_does_not_matter(plan, method) -> None:
    """Equal σ̂ grids give equal results after scaling, 1e-5; FlowChef as published keeps the velocity, which is Flow's."""
    ends = []
    for process in PROCESSES:
        nodes = [float(process.time(lam)) for lam in torch.linspace(-2, 3, 9).tolist()]
        table = unstir.plan(plan, process, grid=nodes)
        options = {"carry": "noise"} if method == "flowchef" else None
        x = randn(4, N) * 8 * process.alpha(nodes[0])
        x = run(Mixture(process), table, method, measurement("dense", 0.0, 4), options, x=x)
        ends.append(x / process.alpha(nodes[-1]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in ALL if m not in ("dps", "pigdm", "flowchef")])
def test_a_mask_of_ones_without_noise_returns_y(method) -> None:
    """ΠGDM does so where J is what it takes it for (a Gaussian, below); DPS and FlowChef, whose last row is free, never."""
    y = randn(4, N, seed=8)
    options = {"steps": N} if method == "tmpd" else {}
    x = run(Mixture(VP()), unstir.plan("ancestral", VP(), nfe=8), method, y, options, ops.mask(torch.ones(N)))
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_pigdm_returns_y_for_a_gaussian() -> None:
    y, model = randn(4, N, seed=8), Gaussian(VP(), MEAN, STD**2)
    x = run(model, unstir.plan("ddim", VP(), nfe=8), "pigdm", y, {"data_std": STD}, ops.mask(torch.ones(N)))
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("method", [m for m in ALL if m != "daps"])
def test_a_mask_of_zeros_gives_unconditional_samples(method) -> None:
    """Of the process's own law; ddrm and daps draw their noise themselves, so daps is compared by moments (below)."""
    model, table = Mixture(VP()), unstir.plan("ancestral", VP(), nfe=8)
    blind, y = ops.mask(torch.zeros(N)), torch.zeros(1, N, dtype=torch.float64)
    if method == "ddrm":
        model = Gaussian(VP(), MEAN, STD**2)
        x = run(model, unstir.plan("ddim", VP(), nfe=20), method, y, {"eta": 0.0}, blind)
        torch.testing.assert_close(
            x, unstir.sample(model, unstir.plan("ddim", VP(), nfe=20), shape=(4, N), dtype=torch.float64)
        )
        return
    x = run(model, table, method, y, None, blind)
    table = repaint_plan(table, 3, 2) if method == "repaint" else table
    torch.testing.assert_close(x, unstir.sample(model, table, shape=(4, N), dtype=torch.float64))


def test_ddnm_is_pigdm_where_the_jacobian_is_isotropic() -> None:
    """J = (r²/σ̂²) I for a Gaussian of covariance σ_d² I."""
    for process in PROCESSES:
        model, y, x = Gaussian(process, MEAN, STD**2), measurement("dense", 0.0), randn(3, N)
        for t in levels(process):
            a = posterior(model, ops.dense(DENSE, (N,)), y, "pigdm", data_std=STD)(x, t)
            b = posterior(model, ops.dense(DENSE, (N,)), y, "ddnm")(x, t)
            torch.testing.assert_close(a.data, b.data)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(("rule", "spread", "narrow"), [("ancestral", 1.0, 0.235), ("level", 0.85, 0.505)])
def test_ddrm_has_the_moments_of_the_posterior(process, rule, spread, narrow) -> None:
    """With σ_y ≪ σ_d: seen coordinates have the posterior's mean, unseen ones the prior's mean and σ_d within 3 %.

    The published noise, a fixed share of σ̂' in every row however short, loses 15 % of σ_d even in 100 rows.
    The published pull towards ȳ below σ_y makes the seen part narrower than the posterior: its bias.
    """
    noise, wide = 0.05, 20_000
    keep = torch.zeros(wide)
    keep[: wide // 2] = 1
    model = Gaussian(process, torch.full((wide,), 0.4), STD**2)
    y = torch.where(keep > 0, 1.1, 0.0)[None].double()
    post = posterior(model, ops.mask(keep), y, "ddrm", noise, rule=rule)
    plan = unstir.plan("ddim", process, nfe=100)
    x = unstir.sample(post, plan, shape=(1, wide), hooks=post.hooks, dtype=torch.float64)[0]
    assert float(x[keep == 0].std()) / STD == pytest.approx(spread, rel=0.03)
    assert float(x[keep == 0].mean()) == pytest.approx(0.4, abs=0.03)
    assert float(x[keep > 0].mean()) == pytest.approx(1.1 - 0.7 * noise**2 / (STD**2 + noise**2), abs=0.01)
    assert float(x[keep > 0].std()) / noise == pytest.approx(narrow, rel=0.1)


def test_ddrm_rows_are_the_published_ones() -> None:
    """One row against the three cases, coordinate by coordinate, with the hook's own noise."""
    process, noise, eta, eta_b = VP(), 0.5, 0.85, 0.9
    keep = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    operator = ops.Spectral(torch.tensor([2.0, 0.25, 0, 0], dtype=torch.float64))
    model = Gaussian(process, MEAN[:4], FULL[:4, :4])
    y = randn(1, 4, seed=3) * keep
    post = posterior(model, operator, y, "ddrm", noise, eta=eta, eta_b=eta_b)
    t, to = (float(process.time(lam)) for lam in (-1.0, 0.0))
    x, plan = randn(1, 4), unstir.plan("ddim", process, grid=[t, to])
    (step,) = unstir.steps(post, plan, x, hooks=post.hooks)
    hat, level, d = step.x / process.alpha(to), float(process.noise_ratio(to)), model(x, t)
    z = ops_noise(step.state.keys, 0)
    eps = (x - process.alpha(t) * d) / process.sigma(t)
    keep_eps = math.sqrt(1 - eta**2)
    bar = y / operator.s.clamp_min(1e-9)
    wanted = d + level * (keep_eps * eps + eta * z)
    wanted[:, 0] = ((1 - eta_b) * d + eta_b * bar + math.sqrt(level**2 - eta_b**2 * (noise / 2) ** 2) * z)[:, 0]
    wanted[:, 1] = (d + level * (keep_eps * (bar - d) * 0.25 / noise + eta * z))[:, 1]
    torch.testing.assert_close(hat, wanted)


def ops_noise(keys, row):
    from unstir._random import draw

    return draw(keys, (4,), (1 << 33) + row, torch.float64)


def test_repaint_plan_goes_up_and_down_as_published() -> None:
    process = VP()
    plan = unstir.plan("ancestral", process, nfe=9)
    assert repaint_plan(plan, 3, 1).rows == plan.rows
    far = repaint_plan(plan, 2, 3)
    nodes = [0, 1, 2, *[0, 1, 2] * 2, 3, 4, *[2, 3, 4] * 2, 5, 6, *[4, 5, 6] * 2, 7, 8, *[6, 7, 8] * 2, 9]
    times = plan.times
    assert far.times == pytest.approx([times[k] for k in nodes])
    assert len(far) == 9 + 4 * 2 * 2
    assert isinstance(far, Plan)
    # With the exact denoiser of a Gaussian the marginals are kept: up-rows stir as the process does.
    up = next(row for row in far if not row.evaluate)
    alpha, sigma = process.alpha(up.t), process.sigma(up.t)
    torch.testing.assert_close(torch.tensor(up.a) * alpha, process.alpha(up.to))
    torch.testing.assert_close((torch.tensor(up.a) * sigma) ** 2 + up.c**2, process.sigma(up.to) ** 2)


def test_repaint_keeps_the_known_and_ilvr_stops_where_told() -> None:
    model, y = Mixture(VP()), measurement("mask", 0.0, 4)
    seen = run(model, repaint_plan(unstir.plan("ancestral", VP(), nfe=12), 3, 3), "repaint", y, None, ops.mask(KEEP))
    torch.testing.assert_close(seen * KEEP, y)
    free = run(model, unstir.plan("ancestral", VP(), nfe=12), "ilvr", y, {"until": 0.5}, ops.mask(KEEP))
    assert 1e-3 < float((free * KEEP - y).norm()) < 10


@pytest.mark.parametrize("method", ALL)
def test_calls_are_what_the_table_of_methods_says(method) -> None:
    """tmpd: up to steps + 1 backward calls a row, fewer where three measurements need no more."""
    process = EDM()
    model = Denoiser(lambda x, t: torch.tanh(x), process, "data", shape=(N,))
    post = posterior(model, ops.dense(DENSE, (N,)), measurement("dense", 0.0), method, **ALL[method])
    table = unstir.plan("ddim", process, nfe=7)
    calls = unstir.sample(post, table, hooks=post.hooks, shape=(2, N), full=True).calls
    assert (calls.forward, calls.rows) == (7 * post.method.forward, 7)
    assert post.method is METHODS[method]
    if method == "tmpd":
        assert 7 * 2 <= calls.backward <= 7 * post.method.backward
    else:
        assert calls.backward == 7 * post.method.backward


def test_tmpd_trusts_the_jacobian_only_below_a_level() -> None:
    """Above it the proxy r² I is used, without backward calls: that is DiffPIR's exact step."""
    model, y, x = Mixture(VP()), measurement("dense", 0.2), randn(2, N)
    operator = operator_of("dense")
    post = posterior(model, operator, y, "tmpd", 0.2, steps=N, data_std=STD, below=1.0)
    high, low = (float(VP().time(lam)) for lam in (-0.5, 0.5))
    torch.testing.assert_close(post(x, high), posterior(model, operator, y, "diffpir", 0.2, data_std=STD)(x, high))
    assert torch.equal(post(x, low), posterior(model, operator, y, "tmpd", 0.2, steps=N)(x, low))
    net = Denoiser(lambda x, t: torch.tanh(x), VP(), "data", shape=(N,))
    post = posterior(net, operator, y, "tmpd", 0.2, below=1e-3)
    assert unstir.sample(post, unstir.plan("ddim", VP(), nfe=4), shape=2, full=True).calls.backward == 0


def test_noise_that_no_data_can_give_is_ignored() -> None:
    """Values under the mask would lengthen DPS's residual and shorten its step."""
    x, y = randn(2, N), randn(2, N, seed=5)
    full, seen = (posterior(Mixture(VP()), ops.mask(KEEP), v, "dps", 0.1)(x, 0.5).data for v in (y, y * KEEP))
    assert torch.equal(full, seen)


def test_conditions_guidance_and_context_reach_the_inner_model() -> None:
    model = Denoiser(lambda x, t, label=0: x * (1 + label), VP(), "data", shape=(N,), meta={"null": {"label": 3}})
    y, x = measurement("dense", 0.0), randn(2, N)
    post = posterior(steer.cfg(model, 3.0), ops.dense(DENSE, (N,)), y, "ddnm")
    guided = -2 * x  # 4 x + 3 (2 x − 4 x)
    torch.testing.assert_close(post(x, 0.4, label=1).data, guided + (y - guided @ DENSE.T) @ torch.linalg.pinv(DENSE).T)
    end = unstir.sample(post, unstir.plan("ddim", VP(), nfe=3), shape=2, label=1, full=True)
    assert end.calls.forward == 6


def test_runs_are_differentiable_where_the_method_does_not_differentiate_itself() -> None:
    """DDNM on a linear model: the end state is M x + …, and the gradient of its sum through the run is that of a difference."""
    model, table = Gaussian(VP(), MEAN, FULL), unstir.plan("ddim", VP(), nfe=3)
    post = posterior(model, operator_of("dense"), measurement("dense", 0.0), "ddnm")
    x, d = randn(1, N).requires_grad_(True), randn(1, N, seed=2)
    unstir.sample(post, table, x=x, grad=True).sum().backward()
    ahead, here = (unstir.sample(post, table, x=v).sum() for v in (x.detach() + d, x.detach()))
    torch.testing.assert_close((x.grad * d).sum(), ahead - here)


def test_every_sample_may_have_a_time_of_its_own() -> None:
    """Stacked plans: each sample is what it is alone."""
    process, y, x = VP(), measurement("dense", 0.1, 2), randn(2, N)
    plans = [unstir.plan("ancestral", process, nfe=5, start=s) for s in (0.9, 0.6)]
    both = steer.stacked(plans, 2)
    for method, options in ALL.items():
        exact_y = y if options.get("noise") else y @ torch.linalg.pinv(DENSE).T @ DENSE.T
        for op in (operator_of("dense"), operator_of("dense", bare=True)):
            if method == "ddrm" and not ops.is_spectral(op):
                continue
            post = posterior(Mixture(process), op, exact_y, method, **options)
            together = unstir.sample(post, both, x=x, hooks=post.hooks, index=[0, 1])
            for i in (0, 1):
                post = posterior(Mixture(process), op, exact_y[i : i + 1], method, **options)
                alone = unstir.sample(post, plans[i], x=x[i : i + 1], hooks=post.hooks, index=[i])
                torch.testing.assert_close(together[i], alone[0], rtol=1e-7, atol=1e-8)


def test_an_operator_that_is_not_linear_with_a_rough_inverse() -> None:
    """Clipping, h(x) = clip(x, ±1) with h⁺ = the identity: ΠGDM's and DDNM's Δ = h⁺(y) − h⁺(h(D))."""
    clip = ops.Nonlinear(lambda x: x.clamp(-1, 1), lambda y: y)
    model, x = Gaussian(VP(), MEAN, STD**2), randn(3, N)
    y = clip.A(MEAN + STD * randn(1, N, seed=2))
    d = model(x, 0.4)
    post = posterior(model, clip, y, "ddnm")(x, 0.4)
    torch.testing.assert_close(post.data, d + y - d.clamp(-1, 1))
    torch.testing.assert_close(posterior(model, clip, y, "pigdm", data_std=STD)(x, 0.4).data, post.data)


def test_operators_of_other_libraries_work_as_they_are() -> None:
    """A, A_adjoint, A_dagger, prox_l2 are the names of deepinv."""

    class Physics(torch.nn.Module):
        def A(self, x):
            return x * KEEP.to(x)

        A_adjoint = A_dagger = A

        def prox_l2(self, z, y, gamma):
            return (z + gamma * KEEP.to(z) * y) / (1 + gamma * KEEP.to(z))

    model, y, table = Mixture(VP()), measurement("mask", 0.1), unstir.plan("ancestral", VP(), nfe=6)
    for method in ("pigdm", "tmpd", "dps", "diffpir"):
        ours, theirs = (run(model, table, method, y, None, op) for op in (ops.mask(KEEP), Physics()))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "pdm"}, ValueError, "method='pdm' is unknown; one of ddnm"),
        ({"method": "ddnm", "noise": 0.1}, ValueError, "noise=0.1; use 'pigdm'"),
        ({"noise": -1.0}, ValueError, "noise=-1"),
        ({"strength": math.nan}, ValueError, "strength=nan"),
        ({"carry": "both"}, ValueError, "carry='both' must be one of data"),
        ({"method": "ddrm", "carry": "data"}, ValueError, "None for a method that is a hook"),
        ({"steps": 3}, ValueError, "'pigdm' has no option 'steps'; it has data_std"),
        ({"data_std": 0.0}, ValueError, "data_std=0.0"),
        ({"method": "tmpd", "steps": 0}, ValueError, "steps=0"),
        ({"method": "tmpd", "below": 0.0}, ValueError, "below=0.0"),
        ({"method": "ddrm", "rule": "up"}, ValueError, "rule='up'"),
        ({"method": "diffpir", "lam": 0.0}, ValueError, "lam=0.0"),
        ({"method": "ddrm", "eta": 2.0}, ValueError, "eta=2.0"),
        ({"method": "ilvr", "until": -1.0}, ValueError, "until=-1.0"),
        ({"y": torch.zeros(1, 5)}, ValueError, r"y has shape \(1, 5\); the operator makes \(B, 6\)"),
        ({"y": [0.0]}, TypeError, "y is list"),
        ({"y": torch.full((1, N), math.nan)}, ValueError, "y contains NaN"),
        ({"y": torch.ones(1, N)}, ValueError, "outside the range"),
        ({"operator": lambda x: x}, TypeError, "method A"),
        ({"method": "flowchef", "step": 0.0}, ValueError, "step=0.0"),
        ({"method": "flowchef", "inner": 0}, ValueError, "inner=0"),
        ({"method": "daps", "ode": 0}, ValueError, "ode=0 must be an integer between 1"),
        ({"method": "daps", "langevin": -1}, ValueError, "langevin=-1"),
        ({"method": "daps", "rate": 2.0}, ValueError, "rate=2.0"),
        ({"method": "mcg", "noise": 0.1}, ValueError, "takes y for exact"),
        ({"operator": ops.mask(torch.ones(5))}, ValueError, r"keep has shape \(5,\), which does not fit"),
        ({"operator": ops.phase_retrieval()}, ValueError, "linear or has A_dagger; use 'dps'"),
        ({"operator": ops.phase_retrieval(), "method": "tmpd"}, ValueError, "is linear; use 'dps'"),
        ({"operator": ops.Linear(lambda x: x, (N,)), "method": "ddrm"}, ValueError, "singular value"),
        ({"model": lambda x, t: x}, TypeError, "knows its process"),
    ],
    ids=lambda v: None,
)
def test_wrong_arguments_are_named(change, error, words) -> None:
    settings = {"model": Mixture(VP()), "operator": ops.mask(KEEP), "y": torch.zeros(1, N), **change}
    with pytest.raises(error, match=words):
        posterior(**settings)


def test_hooks_run_once_by_themselves_and_through_other_transforms() -> None:
    """ILVR draws the seen part from y after every row: with no hooks=, with them given again, and under a threshold."""
    model, y, plan = Mixture(VP()), measurement("mask", 0.0, 3), unstir.plan("ddim", VP(), nfe=4)
    post = posterior(model, ops.mask(KEEP), y, "ilvr")
    alone = unstir.sample(post, plan, shape=(3, N))
    assert not torch.allclose(alone, unstir.sample(model, plan, shape=(3, N)))
    assert torch.equal(alone, unstir.sample(post, plan, shape=(3, N), hooks=post.hooks))
    assert torch.equal(alone, unstir.sample(steer.threshold(post, None, limit=1e9), plan, shape=(3, N)))


def test_mistakes_in_a_run_are_named() -> None:
    model, y, plan = Mixture(VP()), measurement("mask", 0.0, 3), unstir.plan("ddim", VP(), nfe=4)
    with pytest.raises(ValueError, match="y has 3 measurements for a batch of 2"):
        unstir.sample(posterior(model, ops.mask(KEEP), y), plan, shape=(2, N))
    frozen = Denoiser(torch.no_grad()(lambda x, t: 0.5 * x), VP(), "data", shape=(N,))
    with pytest.raises(ValueError, match="no graph"):
        unstir.sample(posterior(frozen, ops.mask(KEEP), y), plan, shape=(3, N))
    post = posterior(model, ops.mask(KEEP), y, "ddrm")
    with pytest.raises(ValueError, match="inner stage"):
        unstir.sample(post, unstir.plan("heun", VP(), nfe=5), shape=(3, N), hooks=post.hooks)
    for wrong, words in (({"jump": 9}, "longer than the grid"), ({"repeats": 0}, "repeats=0")):
        with pytest.raises(ValueError, match=words):
            repaint_plan(plan, **{"jump": 2, **wrong})
    with pytest.raises(ValueError, match="no history"):
        repaint_plan(unstir.plan("dpmpp-2m", VP(), nfe=6), 2, 2)


# -- real digits, the bundled network ---------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_digits_are_restored_better_than_by_the_pseudo_inverse(noise) -> None:
    """40 test digits, 60 rows on the dossier's grid (σ̂ 7 → 0.02, ρ = 5, then the data); PSNR in dB.

    As published, DiffPIR recomputes the noise estimate and gains less (0.6 dB on the box); it is run with carry="noise".
    """
    model, x = unstir.load("digits"), unstir.data.load("digits", split="test").all()[:40]
    process = model.process
    high, low = (float(process.time(-math.log(v))) for v in (7.0, 0.02))
    karras = unstir.plan("ddim", process, nfe=59, grid="karras", start=high, end=low, grid_options={"rho": 5.0})
    plan = unstir.plan("ddim", process, grid=[*karras.times, 0.0])
    keep = torch.ones(8, 8)
    keep[2:6, 2:6] = 0
    methods = {"dps": {}, "pigdm": {"data_std": 0.75}, "ddrm": {}}
    methods |= {"ddnm": {}} if noise == 0 else {"diffpir": {"carry": "noise", "lam": 1.0}}

    def psnr(a):
        return float((10 * (4 / (a - x).square().flatten(1).mean(1)).log10()).mean())

    for name, operator in {"box": ops.mask(keep), "sr2": ops.average_pool(2)}.items():
        y = operator.A(x)
        y = y + noise * randn(*y.shape).float()
        found = {"pinv": psnr(operator.A_dagger(y))}
        for method, options in methods.items():
            post = posterior(model, operator, y, method, noise, **options)
            found[method] = psnr(unstir.sample(post, plan, shape=40, hooks=post.hooks))
        print(noise, name, {k: round(v, 2) for k, v in found.items()})
        assert all(v > found["pinv"] + 1 for k, v in found.items() if k != "pinv"), (name, found)
        if noise == 0:
            assert found["pigdm"] > found["ddnm"] + 1, (name, found)
