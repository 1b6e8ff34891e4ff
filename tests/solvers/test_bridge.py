"""Solvers on anchored processes: exact Gaussian checks, the bridge step against published forms, Euler in x."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import unstir
from unstir import process as pr
from unstir.plan.frames import blind
from unstir.solvers import SOLVERS, refined, reverse_diffusion
from unstir.systems.mrs import mean_reverting_plan

F64 = torch.float64
PROCESSES = {
    "mean-reverting": pr.MeanReverting(),
    "resshift": pr.ResShift(),
    "rddm": pr.RDDM(),
    "bridge": pr.BrownianBridge(0.5),
    "ouve": pr.OUVE(),
}
ALL = [name for name, solver in SOLVERS.items() if solver.order > 0]
STOCHASTIC = [name for name in ALL if unstir.plan(name, pr.VP(), nfe=5).stochastic]
OF_THE_PATH = ("ddpm-large", "bridge", "sa-solver", "bdia")  # whose noise or momentum is not a function of λ alone
SPREADS = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2], dtype=F64)  # the errors of one alone may change sign
# These extrapolate in t: a clock with kinks (tables) or an infinite slope (the first level of ResShift) costs their order.
IN_TIME = ("tab-2", "tab-3", "tab-4", "ipndm", "pndm", "plms", "ghvb", "ghvb-4", "heavy-ball")


def given(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Posterior(nn.Module):
    """E[x0 | x_t, y] for x0 | y ~ N(0.6 y + 0.1, s²), s a number or one per value: what a network that sees y learns."""

    sees_anchor = True

    def __init__(self, process: pr.Process, s: float | torch.Tensor = 0.3) -> None:
        super().__init__()
        self.process, self.s = process, torch.as_tensor(s, dtype=F64)

    def mean(self, y: torch.Tensor) -> torch.Tensor:
        return 0.6 * y + 0.1

    def forward(self, x, t, anchor):
        a, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        total = a * a * self.s**2 + sigma**2
        u, m = self.process.centre(x, t, anchor), self.mean(anchor)
        return m + (a * self.s**2 / total if float(total.min()) else 0.0) * (u - a * m)

    def flow(self, x, t, to, anchor):
        """The exact probability-flow map on the centred state: (u − αm)/std is kept."""
        p = self.process
        a, a2, sd, sd2 = p.alpha(t), p.alpha(to), self._std(t), self._std(to)
        m = self.mean(anchor)
        return p.uncentre(a2 * m + sd2 / sd * (p.centre(x, t, anchor) - a * m), to, anchor)

    def _std(self, t: float) -> torch.Tensor:
        return (self.process.alpha(t) ** 2 * self.s**2 + self.process.sigma(t) ** 2).sqrt()


def _ends(process: pr.Process, lam: float) -> tuple[float, float]:
    """Times of λ = lam and 3.5, inside the span on which a grid regular in λ shrinks all its steps alike."""
    low, high = process.span
    return min(high, float(process.time(lam))), max(low, float(process.time(3.5)))


def _slope(name: str, process: pr.Process) -> tuple[float, float]:
    """(measured order, error) from N and 2N calls, λ from −4 or less (speech: −0.56) to 3.5.

    Multistep methods begin with steps of low order, which do no harm only where D hardly depends on the state yet.
    """
    start, end = _ends(process, -7.0 if SOLVERS[name].order > 3 else -4.0)
    model, y = Posterior(process, SPREADS), given(1, 2, 7)
    x = process.stir(model.mean(y), start, given(2, 2, 7), y)
    exact = model.flow(x, start, end, y)
    nfe = 120
    errors = []
    for n in (nfe, 2 * nfe):
        plan = unstir.plan(name, process, nfe=n, start=start, end=end, grid="logsnr")
        errors.append(float((unstir.sample(model, plan, x=x, anchor=y) - exact).square().mean().sqrt()))
    return math.log2(errors[0] / errors[1]) if errors[1] > 1e-13 else math.inf, errors[1]


def _weak_slope(name: str, process: pr.Process) -> float:
    start, end = _ends(process, -0.5)
    m, plans = 0.8, [unstir.plan(name, process, nfe=n, start=start, end=end, grid="logsnr") for n in (80, 160)]

    def error(plan: unstir.Plan, s: float) -> float:
        def law(t: float) -> tuple[float, float]:
            a, sigma = float(process.alpha(t)), float(process.sigma(t))
            return a * m, a * a * s * s + sigma * sigma

        def gain(t: float) -> float:
            return float(process.alpha(t)) * s * s / law(t)[1]

        def offset(t: float) -> float:
            return m * (1 - gain(t) * float(process.alpha(t)))

        mean, std = plan.propagate(gain, offset, law(start)[0], math.sqrt(law(start)[1]))[-1]
        assert mean == pytest.approx(law(end)[0], abs=1e-12)
        return abs(std**2 - law(end)[1])

    coarse, fine = (sum(error(plan, s) for s in (0.1, 0.3, 0.8)) for plan in plans)
    return math.log2(coarse / fine)


def _cases() -> list[tuple[str, str]]:
    """Every solver on one process. The higher orders need a start where D hardly depends on the state, which rddm reaches."""
    cases = []
    for i, name in enumerate(ALL):
        kinds = [k for k in PROCESSES if name not in IN_TIME or k not in ("mean-reverting", "resshift")]
        cases.append((name, "rddm" if SOLVERS[name].order > 2 or name == "bdia" else kinds[i % len(kinds)]))
    return [case for case in cases if case[0] != "tab-4"]  # of order 3 like tab-3, but only far from t = 1


@pytest.mark.parametrize(("name", "kind"), _cases())
def test_every_plan_converges_at_its_order_to_the_exact_posterior_map(name: str, kind: str) -> None:
    if name in STOCHASTIC:
        assert _weak_slope(name, PROCESSES[kind]) > SOLVERS[name].order - 0.2
    else:
        slope, error = _slope(name, PROCESSES[kind])
        assert slope > SOLVERS[name].order - (0.5 if SOLVERS[name].order > 3 else 0.35)
        assert error < 0.01


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*IN_TIME, *OF_THE_PATH)])
def test_every_plan_does_on_every_process_what_it_does_on_vp(name: str) -> None:
    """On the same λ the states divided by α are the same, so the orders measured on VP hold here: two routes to one result."""
    lam = torch.linspace(-0.5, 3.0, 10, dtype=F64)
    y, noises = given(3, 2, 7), {i: given(40 + i, 2, 7) for i in range(40)}
    found = {}
    for kind, process in {"vp": pr.VP(), **PROCESSES}.items():
        plan = unstir.plan(name, process, grid=process.time(lam).tolist())
        model = Posterior(process, SPREADS)
        if kind == "vp":
            law = Posterior(process, SPREADS)
            model = lambda x, t, law=law: law(x, t, y)  # noqa: E731
            x = float(process.alpha(plan.start)) * (model_mean(y) + given(4, 2, 7))
            found[kind] = unstir.sample(model, plan, x=x, noise=noises) / float(process.alpha(plan.end))
        else:
            x = process.uncentre(float(process.alpha(plan.start)) * (model_mean(y) + given(4, 2, 7)), plan.start, y)
            end = unstir.sample(model, plan, x=x, anchor=y, noise=noises)
            found[kind] = process.centre(end, plan.end, y) / float(process.alpha(plan.end))
    for kind in PROCESSES:
        torch.testing.assert_close(found[kind], found["vp"], rtol=1e-8, atol=1e-8, msg=lambda m, kind=kind: f"{kind}: {m}")


def model_mean(y: torch.Tensor) -> torch.Tensor:
    return 0.6 * y + 0.1


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_run_draws_the_conditional_law(kind: str) -> None:
    """From the start that the process draws to clean data: mean and spread given y, for the default plan and the bridge."""
    process = PROCESSES[kind]
    model, y = Posterior(process), given(3, 8, 1000)
    for name, low in (("auto", 0.97), ("bridge", 0.88)):
        plan = unstir.plan(name, process, nfe=40)
        x = unstir.sample(model, plan, anchor=y, dtype=F64, seed=1)  # the shape is the anchor's
        left = x - model.mean(y)
        # N(y, σ²) is off by α(1) (x0 − y) at the start, of which some is left at the end.
        assert abs(float((left * y).mean())) < 0.02 + 0.2 * process.mismatch
        assert low < float(left.std()) / 0.3 < 1.04 + 0.1 * process.mismatch


def test_a_refined_start_mends_the_mismatch_of_speech() -> None:
    process = pr.OUVE()
    model, y = Posterior(process, s=0.05), torch.full((2000, 1), 2.0, dtype=F64)
    plan = unstir.plan("auto", process, nfe=20)
    plain, better = (unstir.sample(model, p, anchor=y, dtype=F64) for p in (plan, refined(plan)))
    off = [abs(float((x - model.mean(y)).mean())) for x in (plain, better)]
    assert len(refined(plan)) == 21
    assert off[1] < 0.3 * off[0]
    with pytest.raises(ValueError, match="nothing to refine"):
        refined(unstir.plan("auto", pr.RDDM(), nfe=5))


# -- the bridge step ---------------------------------------------------------------------------------------------
def _condition(process: pr.Process, t: float, to: float, forward: tuple[float, float]) -> tuple[float, float, float]:
    """x_to | x_t, x0, y by conditioning: x_t = k x_to + (rest), Var[x_t | x_to] = v. (weight of x_t, of x0, std)"""
    k, v = forward
    s2 = float(process.sigma(to)) ** 2
    gain = s2 * k / (k * k * s2 + v)
    return gain, 0.0, math.sqrt(s2 - gain * k * s2)


def test_resshift_posterior_by_conditioning() -> None:
    """Chain x_t = x_{t−1} + a_t e0 + κ√a_t z, a_t = η_t − η_{t−1}: the published posterior, and y cancels."""
    p = pr.ResShift()
    plan = unstir.plan("bridge", p, grid=p.nodes)
    assert len(plan) == 15
    for row in plan.rows[:-1]:
        eta, eta2 = float(p.beta(row.t)), float(p.beta(row.to))
        a, _, c = _condition(p, row.t, row.to, (1.0, p.kappa**2 * (eta - eta2)))
        assert row.a == pytest.approx(eta2 / eta, rel=1e-12) == pytest.approx(a, rel=1e-12)
        assert row.b[0] == pytest.approx(1 - row.a, rel=1e-12)
        assert row.c == pytest.approx(c, rel=1e-9) == pytest.approx(p.kappa * math.sqrt(eta2 * (eta - eta2) / eta), rel=1e-9)
    assert (plan.rows[-1].a, dict(plan.rows[-1].b), plan.rows[-1].c) == (0, {0: 1}, 0)
    assert blind(plan)


def test_the_published_step_of_brownian_bridges() -> None:
    """x' = (1−m')D + m'y + √((δ'−s̃²)/δ)(x − (1−m)D − m y) + s̃ z, s̃² = (δ − δ'(1−m)²/(1−m')²) δ'/δ."""
    p = pr.BrownianBridge(0.8)
    plan = unstir.plan("bridge", p, nfe=12, grid="uniform", start=0.999)
    assert blind(plan)
    for row in plan.rows[:-1]:
        m, m2 = row.t, row.to
        delta, delta2 = 1.6 * (m - m * m), 1.6 * (m2 - m2 * m2)
        s2 = (delta - delta2 * (1 - m) ** 2 / (1 - m2) ** 2) * delta2 / delta
        keep = math.sqrt((delta2 - s2) / delta)
        assert row.c == pytest.approx(math.sqrt(s2), rel=1e-9)
        assert row.a == pytest.approx(keep, rel=1e-9) == pytest.approx(m2 / m, rel=1e-9)
        assert row.b[0] == pytest.approx((1 - m2) - keep * (1 - m), rel=1e-9)
        assert m2 - keep * m == pytest.approx(0, abs=1e-12)  # the weight of y


def test_ancestral_steps_of_ve_are_the_same_under_both_rules() -> None:
    ve = pr.VE()
    nodes = [1.0, 0.7, 0.4, 0.1]
    one, two, three = (unstir.plan(n, ve, grid=nodes, **o) for n, o in
                       (("bridge", {"rule": "ve"}), ("bridge", {"rule": "vp"}), ("ancestral", {})))  # fmt: skip
    for rows in zip(one, two, three, strict=True):
        assert len({round(row.a, 13) for row in rows}) == len({round(row.c, 13) for row in rows}) == 1


@pytest.mark.parametrize("rule", ["ve", "vp"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_bridge_step_keeps_the_marginals(rule: str, eta: float) -> None:
    """Var[x' | x0, y] = σ'² for every η (published code scales the noise alone, and is under-dispersed)."""
    for kind, process in PROCESSES.items():
        if rule == "ve" and kind == "bridge":
            continue  # σ is not monotone: σ'/σ > 1
        plan = unstir.plan(
            "bridge", process, nfe=9, start=float(process.time(-0.5)), end=float(process.time(4.0)), rule=rule, eta=eta
        )
        one, two = plan.invariants()
        assert max(one) < 1e-13
        assert max(two) < 1e-13
        assert plan.stochastic is (eta > 0)


def test_rddm_step_in_its_published_form() -> None:
    """x' = x − (ᾱ−ᾱ')R̂ − (β̄−√(β̄'²−s²))ẑ + sζ, s² = η(β̄²−β̄'²)β̄'²/β̄², with R and z consistent."""
    p, eta = pr.RDDM(scale=0.2), 0.6
    plan = unstir.plan("bridge", p, nfe=6, grid="uniform", start=0.95, rule="ve", eta=math.sqrt(eta))
    x0, y, z = given(5, 3)
    for row in plan.rows[:-1]:
        bar, bar2, noise, noise2 = (float(f(t)) for f in (p.beta, p.sigma) for t in (row.t, row.to))
        x = x0 + bar * (y - x0) + noise * z
        s2 = eta * (noise**2 - noise2**2) * noise2**2 / noise**2
        published = x - (bar - bar2) * (y - x0) - (noise - math.sqrt(noise2**2 - s2)) * z
        ours = row.a * (x - bar * y) + row.b[0] * x0 + bar2 * y
        assert float(ours) == pytest.approx(float(published), abs=1e-12)
        assert row.c == pytest.approx(math.sqrt(s2), rel=1e-10)


# -- networks that do not see y -------------------------------------------------------------------------------------
def _unseeing(process: pr.Process, predicts: str = "data") -> unstir.Denoiser:
    return unstir.Denoiser(lambda x, t: 0.5 * x, process, predicts)


def test_a_network_without_the_anchor_is_refused_all_plans_but_the_bridge() -> None:
    for kind, process in PROCESSES.items():
        y, model = torch.randn(4, 3), _unseeing(process)
        with pytest.raises(ValueError, match="does not see the anchor"):
            unstir.sample(model, unstir.plan("ddim", process, nfe=4), anchor=y)
        default = unstir.plan("auto", model, nfe=4)
        if kind in ("resshift", "bridge"):  # y cancels
            assert default.name == "bridge"
            assert unstir.sample(model, nfe=4, anchor=y).shape == y.shape
        else:
            with pytest.raises(ValueError, match="does not see the anchor"):
                unstir.sample(model, default, anchor=y)
    with pytest.raises(ValueError, match="takes the anchor off the state"):
        _unseeing(pr.BrownianBridge(), "noise")


def test_its_marginals_are_right_and_those_of_ddim_would_not_be() -> None:
    """(x0, y) correlated Gaussians, D = E[x0 | x_t] exactly: the dossier's table, from the rows alone."""
    p, vx, vy, corr = pr.BrownianBridge(1.0), 0.61, 1.0, 0.6
    cross = corr * math.sqrt(vx * vy)

    def gain(t: float) -> float:
        a, b, s2 = 1 - t, t, float(p.sigma(t)) ** 2
        total = a * a * vx + b * b * vy + 2 * a * b * cross + s2
        return (a * vx + b * cross) / total

    def end(name: str) -> float:
        plan = unstir.plan(name, p, nfe=400, start=0.9999, grid="logsnr")
        rows = [unstir.Row(t=r.t, to=r.to, a=r.a, b=r.b, c=r.c) for r in plan]
        raw = unstir.Plan(rows, pr.Flow())  # rows on x itself
        return raw.propagate(gain, x_mean=0.0, x_std=math.sqrt(vy))[-1][1]

    assert end("bridge") == pytest.approx(math.sqrt(vx), rel=0.02)
    assert abs(end("ddim") / math.sqrt(vx) - 1) > 0.05


def test_pinned_starts_draw_their_noise_in_the_first_row() -> None:
    p, y = pr.BrownianBridge(), given(0, 500, 2)
    for name in ("dpmpp-2m", "heun", "bridge", "unipc", "flow-adams"):
        plan = unstir.plan(name, p, nfe=8)
        first = plan[0]
        assert len(plan) == 8
        assert (first.t, first.b[0], first.c) == (1.0, float(p.alpha(first.to)), float(p.sigma(first.to)))
        assert not unstir.plan(name, p, nfe=1).stochastic  # one call: D(y, 1) itself
    drawn = unstir.sample(Posterior(p), plan, anchor=y, dtype=F64, seed=3)
    same = unstir.sample(Posterior(p), plan, x=y, anchor=y, seed=3)
    torch.testing.assert_close(drawn, same, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="λ stays finite"):
        unstir.plan("ddim", pr.Interpolant("linear", "quadratic"), grid=[1.0, 0.5, 0.0])


# -- Euler, and what is published as MR Sampler ------------------------------------------------------------------------
class Nonlinear(nn.Module):
    sees_anchor = True

    def forward(self, x, t, anchor):
        return torch.tanh(1.3 * x - 0.4 * anchor + float(t)) + 0.1 * anchor


@pytest.mark.parametrize("ode", [False, True])
def test_euler_in_the_residual_frame_is_euler_in_x(ode: bool) -> None:
    """x' = x − (θ(y − x) − g² s)Δ + g√Δ z, the published predictor of speech, has a y-term; the table has none."""
    p, model, x, y = pr.OUVE(), Nonlinear(), given(1, 5, 2), given(2, 5, 2)
    times = torch.linspace(1, 0.03, 11, dtype=F64).tolist()
    plan = reverse_diffusion(p, times, ode=ode)
    assert plan.frame == "residual"
    noises = {i: given(10 + i, 5, 2) for i in range(10)}
    v = x
    for i, (t, to) in enumerate(pairwise(times)):
        a, b, s, g = (float(f(t)) for f in (p.alpha, p.beta, p.sigma, p.g))
        score = -(v - a * model(v, t, y) - b * y) / s**2
        v = v - (p.theta * (y - v) - (0.5 if ode else 1.0) * g**2 * score) * (t - to)
        v = v if ode else v + g * math.sqrt(t - to) * noises[i]
    torch.testing.assert_close(unstir.sample(model, plan, x=x, anchor=y, noise=noises), v, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="β ≠ 1 − α"):
        reverse_diffusion(pr.Interpolant("trigonometric"), [0.9, 0.5])


def _published(kind: str, form: str, order: int, p: pr.MeanReverting, times, model, x, y, noises):
    """MR Sampler as printed, in x, with its terms in μ = y; parametrisations in x, too."""
    a, s, lam = ([float(f(t)) for t in times] for f in (p.alpha, p.sigma, p.logsnr))
    old: list[torch.Tensor] = []
    for i in range(1, len(times)):
        t, h = times[i - 1], lam[i] - lam[i - 1]
        q = model(x, t, y)
        if form == "noise":
            q = (x - (1 - a[i - 1]) * y - a[i - 1] * q) / s[i - 1]
        old.insert(0, q)
        o = min(order, i)
        d1 = d2 = torch.zeros_like(x)
        if o >= 2:
            r0 = (lam[i - 1] - lam[i - 2]) / h
            d1 = (old[0] - old[1]) / r0
        if o == 3:
            r1 = (lam[i - 2] - lam[i - 3]) / h
            first, second = d1, (old[1] - old[2]) / r1
            d1, d2 = first + (first - second) * r0 / (r0 + r1), (first - second) / (r0 + r1)
        if kind == "ode" and form == "data":
            ratio = s[i] / s[i - 1]
            phi = math.expm1(-h) / h + 1
            x = ratio * x + a[i] * -math.expm1(-h) * q + a[i] * phi * d1 - a[i] * (phi / h - 0.5) * d2
            x = x + y * (1 - ratio + ratio * a[i - 1] - a[i])
        elif kind == "ode":
            ratio, e = a[i] / a[i - 1], math.expm1(h)
            phi = e / h - 1
            x = ratio * x - s[i] * (e * q + phi * d1 + (phi / h - 0.5) * d2) + y * (1 - ratio)
        elif form == "data":
            ratio, e = s[i] / s[i - 1] * math.exp(-h), -math.expm1(-2 * h)
            x = ratio * x + a[i] * e * q + a[i] * (1 - e / (2 * h)) * d1 + s[i] * math.sqrt(e) * noises[i - 1]
            x = x + y * (1 - ratio + ratio * a[i - 1] - a[i] * e - a[i] + a[i] * e - a[i - 1] * ratio + a[i - 1] * ratio)
        else:
            ratio, e = a[i] / a[i - 1], math.expm1(h)
            x = ratio * x - 2 * s[i] * (e * q + (e / h - 1) * d1) + s[i] * math.sqrt(math.expm1(2 * h)) * noises[i - 1]
            x = x + y * (1 - ratio)
    return x


@pytest.mark.parametrize("spacing", ["log-SNR", "time"])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize(("kind", "order"), [("ode", 1), ("ode", 2), ("ode", 3), ("sde", 1), ("sde", 2)])
def test_mr_sampler_as_published_is_our_plan(kind: str, order: int, form: str, spacing: str) -> None:
    p = pr.MeanReverting(sigma_inf=50 / 255, first="keep")
    plan = mean_reverting_plan(p, 12, order=order, kind=kind, form=form)
    if spacing == "time":
        nodes = torch.linspace(1, 1 / 101, 13, dtype=F64).tolist()
        plan = unstir.solvers.multistep(p, nodes, order=order, form=form, kind="taylor", eta=float(kind == "sde"))
    x, y, noises = given(1, 4, 3), given(2, 4, 3), {i: given(20 + i, 4, 3) for i in range(12)}
    published = _published(kind, form, order, p, plan.times, Nonlinear(), x, y, noises)
    ours = unstir.sample(Nonlinear(), plan, x=x, anchor=y, noise=noises)
    scale = float(published.abs().max())
    assert float((ours - published).abs().max()) < 1e-12 * max(1.0, scale)
