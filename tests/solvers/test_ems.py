"""DPM-Solver-v3: golden values, its two classical limits, orders, the ends, files, bad statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import unstir
from unstir import process as pr
from unstir.denoiser import GaussianMixture
from unstir.denoiser.denoiser import ConvertedDenoiser
from unstir.process import Process
from unstir.solvers.ems import Statistics, ems_multistep, taylor_weights
from unstir.solvers.grids import make_grid
from unstir.solvers.multistep import multistep

VP = pr.VP()


def curves(process: Process, knots: int = 241, end: float = 0.01, start: float = 1.0) -> Statistics:
    """The synthetic curves of the dossier."""
    lam = torch.linspace(float(process.logsnr(start)), float(process.logsnr(end)), knots, dtype=torch.float64)
    return Statistics(process, lam, torch.sigmoid(-2 * lam), -0.5 * lam.tanh(), torch.full_like(lam, 0.1))


def constant(process: Process, value: tuple[float, float, float], knots: int = 20001, end: float = 0.01) -> Statistics:
    lam = curves(process, knots, end).logsnr
    return Statistics(process, lam, *(torch.full_like(lam, v) for v in value))


def nodes(n: int, end: float = 0.01, start: float = 1.0, process: Process = VP) -> list[float]:
    return make_grid("logsnr", process, n, start, end)


PLAIN = {"corrector": False}
GOLDEN = {
    "order 1": ({"order": 1}, (-0.4449389469, 1.2381669199)),
    "order 2": ({"order": 2, **PLAIN}, (-0.4981956271, 1.2429571986)),
    "order 3": ({"order": 3, **PLAIN}, (-0.4970062463, 1.2637991313)),
    "pseudo 3": ({"order": 3, "pseudo_predictor": True, **PLAIN}, (-0.4976395842, 1.2516964077)),
    "3 + corrector": ({"order": 3}, (-0.3339874452, 1.2956448068)),
    "2 + pseudo 3 corrector": ({"order": 2, "pseudo_corrector": True}, (-0.2512806065, 1.3084441537)),
    "3 + pseudo 4, half": (
        {"order": 3, "pseudo_corrector": True, "correct_when": lambda t: t > 0.5},
        (-0.4955773985, 1.2649062447),
    ),
}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_values(mixture, name):
    options, golden = GOLDEN[name]
    plan = ems_multistep(VP, nodes(6), stats=curves(VP), **options)
    x = unstir.sample(mixture.model(VP), plan, x=mixture.start)
    assert len(plan) == 6
    assert torch.allclose(x.flatten(), torch.tensor(golden, dtype=torch.float64), rtol=0, atol=2e-10)


def textbook(model, process: Process, times: list[float], x: Tensor, stats: Statistics, order: int, pseudo: bool) -> Tensor:
    """The paper's loop, term by term: g at the nodes, E_k, C; correct the state, keep f. pseudo: of the corrector."""
    lam = [float(process.logsnr(t)) for t in times]
    axis = torch.cat([stats.logsnr, torch.tensor(lam, dtype=torch.float64)]).unique()
    l, s, b = stats.at(axis)  # noqa: E741
    at = [int((axis - v).abs().argmin()) for v in lam]

    def integral(y: Tensor) -> Tensor:
        steps = axis.diff().reshape(-1, *[1] * (y.ndim - 1))
        return torch.cat([torch.zeros_like(y[:1]), ((y[1:] + y[:-1]) / 2 * steps).cumsum(0)])

    L, S = integral(l), integral(s)
    Bc = integral((-S).exp() * b)
    I, C = integral((L + S).exp()), integral((L + S).exp() * Bc)  # noqa: E741

    def step(x: Tensor, i: int, others: list[int], pseudo: bool = False) -> Tensor:
        s_, t_ = at[i], at[i + 1]
        a_t, a_s = float(process.alpha(times[i + 1])), float(process.alpha(times[i]))
        g = {m: (S[s_] - S[at[m]]).exp() * f[m] - S[s_].exp() * (Bc[at[m]] - Bc[s_]) for m in [i, *others]}
        A, n = (L[s_] - L[t_]).exp(), len(others)
        derivative = [g[i]]
        for k in range(1, n + 1):
            used = others[:k] if pseudo else others
            delta = torch.tensor([lam[m] - lam[i] for m in used], dtype=torch.float64)
            matrix = torch.linalg.inv(torch.stack([delta**j for j in range(1, len(used) + 1)], 1))
            rhs = torch.stack([g[m] - g[i] for m in used])
            derivative.append(math.factorial(k) * torch.einsum("m,m...->...", matrix[k - 1], rhs))
        u = (axis - lam[i]).reshape(-1, *[1] * (L.ndim - 1))
        total = torch.zeros_like(x)
        for k, d in enumerate(derivative):
            e = integral((L + S - L[s_] - S[s_]).exp() * u**k / math.factorial(k))
            total = total + (e[t_] - e[s_]) * d
        drift = (-L[t_]).exp() * (C[t_] - C[s_] - Bc[s_] * (I[t_] - I[s_]))
        return a_t / a_s * A * x - a_t * A * total - a_t * drift

    f: dict[int, Tensor] = {}
    n, before = len(times) - 1, x
    for i in range(n):
        alpha = float(process.alpha(times[i]))
        f[i] = (1 - l[at[i]]) * x / alpha - model(x, times[i])
        if i:
            size = min(order, i, n - i + 1) + pseudo
            if size > 1:
                x = step(before, i - 1, [i, *[i - 2 - j for j in range(size - 2)]], pseudo)
        before = x
        x = step(x, i, [i - 1 - j for j in range(min(order, i + 1, n - i) - 1)])
    return x


@pytest.mark.parametrize(("order", "pseudo"), [(1, True), (2, False), (3, True), (4, False)])
@pytest.mark.parametrize("process", [VP, pr.EDM(), pr.Flow()], ids=["VP", "EDM", "Flow"])
def test_rows_are_the_published_loop(process, order, pseudo):
    """Per-dimension curves, nodes between the knots: the folded table runs like the paper's loop."""
    end, start = (1e-3, 0.5) if process == pr.EDM() else (0.02, 0.95)
    base = curves(process, 181, end, start)
    factor = torch.tensor([0.5, 1.0, 1.3], dtype=torch.float64)
    stats = Statistics(process, base.logsnr, *(c[:, None] * factor for c in (base.l, base.s, base.b)))
    means = torch.tensor([[1.0, -1.0, 0.5], [-0.5, 1.0, 1.0]], dtype=torch.float64)
    model = GaussianMixture(process, [0.4, 0.6], means, [0.2, 0.1])
    x = process.prior((5, 3), t=start, dtype=torch.float64)
    times = make_grid("uniform", process, 7, start, end) if process == VP else nodes(7, end, start, process)
    plan = ems_multistep(process, times, stats=stats, order=order, pseudo_corrector=pseudo)
    expected = textbook(model, process, times, x, stats, order, pseudo)
    assert float((unstir.sample(model, plan, x=x) - expected).abs().max()) < 1e-11 * float(expected.abs().max())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("value", "form"), [((1.0, 0.0, 0.0), "data"), ((0.0, -1.0, 0.0), "noise")], ids=["data", "noise"])
def test_limits_are_adams_bashforth(mixture, order, value, form):
    """l = 1: data form; l = 0, s = −1: noise form. They agree up to the trapezoid rule of 20001 knots."""
    ours = ems_multistep(VP, nodes(8), stats=constant(VP, value), order=order, corrector=False, lower_final=False)
    theirs = multistep(VP, nodes(8), order=order, form=form)
    model = mixture.model(VP)
    x, y = (unstir.sample(model, plan, x=mixture.start) for plan in (ours, theirs))
    assert float((x - y).abs().max()) < 1e-6
    for row, other in zip(ours, theirs, strict=True):
        assert abs(row.a - other.a) < 1e-6
        assert abs(row.gain - other.gain) < 1e-6


ORDERS = [
    ({"order": 1, **PLAIN}, 1),
    ({"order": 2, **PLAIN}, 2),
    ({"order": 3, **PLAIN}, 3),
    ({"order": 2, "pseudo_predictor": True, **PLAIN}, 2),
    ({"order": 3, "pseudo_predictor": True, **PLAIN}, 2),
]


@pytest.mark.parametrize(("options", "order"), ORDERS, ids=str)
def test_order_of_convergence(mixture, options, order):
    """On the 1-D mixture, whose flow is known. Third order reaches its slope slowly: at least 2.85 here."""
    model, stats = mixture.model(VP), curves(VP, 40001)
    exact = mixture.flow(VP, mixture.start, 1.0, 0.01)
    error = []
    for n in (80, 160):
        plan = ems_multistep(VP, nodes(n), stats=stats, lower_final=False, **options)
        error.append(float((unstir.sample(model, plan, x=mixture.start) - exact).abs().max()))
    slope = math.log2(error[0] / error[1])
    assert order - 0.15 < slope < order + 0.5


def test_a_clean_end_returns_the_data_prediction(mixture):
    """end = 0: the last row is order 1 in data form, exactly D at the last noisy node."""
    process = pr.VP()
    plan = ems_multistep(process, make_grid("logsnr", process, 6, 1.0, 0.0), stats=curves(process, end=process.span[0]))
    steps = list(unstir.steps(mixture.model(process), plan, mixture.start))
    assert plan.end == 0
    assert len(plan) == 6
    assert torch.equal(steps[-1].x, steps[-1].data)


def test_a_blank_start_is_a_data_row(mixture):
    """Flow has α = 0 at t = 1: one data row leads to the first node with a finite λ."""
    process = pr.Flow()
    times = make_grid("logsnr", process, 10, 1.0, 0.01)
    times[0:1] = [1.0, 0.999]
    plan = ems_multistep(process, times, stats=curves(process, end=0.01, start=0.999), order=2)
    x = process.prior((2, 1), dtype=torch.float64)
    end = unstir.sample(mixture.model(process), plan, x=x)
    assert (plan[0].a, dict(plan[0].b)) == (0.999, {0: pytest.approx(0.001)})
    assert float((end - mixture.flow(process, x, 1.0, 0.01)).abs().max()) < 0.15


def test_towards_noise(mixture):
    """A grid of falling λ runs the other way along the same flow, with the same order."""
    model, stats = mixture.model(VP), curves(VP, 4001)
    x = mixture.flow(VP, mixture.start, 1.0, 0.01)
    error = []
    for n in (40, 80):
        plan = ems_multistep(VP, nodes(n)[::-1], stats=stats, order=2, ascending=True, lower_final=False)
        error.append(float((unstir.sample(model, plan, x=x) - mixture.start).abs().max()))
    assert error[1] < 1e-3
    assert math.log2(error[0] / error[1]) > 1.8


def test_scalar_curves_make_numbers_and_others_tensors():
    scalar = curves(VP)
    field = Statistics(VP, scalar.logsnr, *(c[:, None, None].expand(-1, 2, 3) for c in (scalar.l, scalar.s, scalar.b)))
    one, many = (ems_multistep(VP, nodes(5), stats=s) for s in (scalar, field))
    for row, other in zip(one, many, strict=True):
        for letter in "ape":
            assert isinstance(getattr(row, letter), float)
            assert torch.allclose(getattr(other, letter), torch.full((1, 2, 3), getattr(row, letter), dtype=torch.float64))


def test_a_plan_of_tensors_survives_its_file(tmp_path):
    scalar = curves(VP)
    field = Statistics(VP, scalar.logsnr, *(c[:, None].expand(-1, 2) for c in (scalar.l, scalar.s, scalar.b)))
    plan = ems_multistep(VP, nodes(5), stats=field)
    plan.save(tmp_path / "plan.json")
    assert unstir.Plan.load(tmp_path / "plan.json") == plan


def test_large_curves_do_not_overflow():
    """Only differences within a step are exponentiated: ∫s of ±2000 over the whole range is no problem."""
    lam = torch.linspace(-5.0, 3.0, 801, dtype=torch.float64)
    for sign in (1, -1):
        stats = Statistics(VP, lam, torch.zeros_like(lam), torch.full_like(lam, sign * 250.0), torch.ones_like(lam))
        plan = ems_multistep(VP, VP.time(torch.linspace(-4.9, 2.9, 40)).tolist(), stats=stats)
        assert all(math.isfinite(row.a) for row in plan)


def test_taylor_weights():
    """Exact on polynomials; the pseudo ones are divided differences of the first nodes."""
    delta = [0.0, -0.4, -0.9, 0.5]
    t = taylor_weights(delta)
    for power in range(4):
        values = torch.tensor(delta, dtype=torch.float64) ** power
        assert torch.allclose(t @ values, torch.eye(4, dtype=torch.float64)[power], atol=1e-12)
    g = torch.tensor([1.0, 3.0, -2.0, 0.7], dtype=torch.float64)
    first = (g[1] - g[0]) / delta[1]
    second = ((g[2] - g[1]) / (delta[2] - delta[1]) - first) / delta[2]
    found = taylor_weights(delta, pseudo=True) @ g
    assert torch.allclose(found[:3], torch.stack([g[0], first, second]), atol=1e-12)


# -- statistics -----------------------------------------------------------------------------------------------
def test_files(tmp_path):
    stats = replace(curves(VP), note={"guidance": "7.5"})
    stats.save(tmp_path / "ems.safetensors")
    read = Statistics.load(tmp_path / "ems.safetensors")
    assert read.process == VP
    assert read.note == {"guidance": "7.5"}
    assert all(torch.equal(getattr(read, n), getattr(stats, n)) for n in ("logsnr", "l", "s", "b"))
    torch.save({"l": stats.l}, tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError, match="pickle"):
        Statistics.load(tmp_path / "pickle.safetensors")
    from safetensors.torch import save_file

    save_file({"l": stats.l}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no model statistics"):
        Statistics.load(tmp_path / "other.safetensors")


def test_interpolation_is_exact_at_knots_and_linear_between():
    stats = curves(VP, 11)
    assert all(torch.equal(a, b) for a, b in zip(stats.at(stats.logsnr), (stats.l, stats.s, stats.b), strict=True))
    middle = (stats.logsnr[1:] + stats.logsnr[:-1]) / 2
    assert torch.allclose(stats.at(middle)[0], (stats.l[1:] + stats.l[:-1]) / 2)


def test_the_same_statistics_serve_a_converted_model(mixture):
    """Path independence: on another process the scaled states x/α are the same at equal λ."""
    model, stats, other = mixture.model(VP), curves(VP), pr.EDM(sigma_max=200.0)
    one = ems_multistep(VP, nodes(6), stats=stats)
    times = other.time(VP.logsnr(torch.tensor(one.times, dtype=torch.float64))).tolist()
    two = ems_multistep(other, times, stats=stats.on(other))
    x = unstir.sample(model, one, x=mixture.start) / VP.alpha(one.end)
    y = unstir.sample(ConvertedDenoiser(model, other), two, x=mixture.start / VP.alpha(1.0))
    assert torch.allclose(x, y, rtol=0, atol=1e-9)


def test_bad_statistics():
    good = curves(VP)
    with pytest.raises(ValueError, match=r"s contains NaN.*var"):
        replace(good, s=good.s * math.nan)
    with pytest.raises(ValueError, match="strictly increasing"):
        replace(good, logsnr=good.logsnr.flip(0))
    with pytest.raises(ValueError, match=r"b has shape \(3,\)"):
        replace(good, b=good.b[:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stats": None}, "stats is NoneType"),
        ({"stats": curves(pr.EDM())}, r"measured on EDM.*stats\.on\(process\)"),
        ({"stats": curves(VP, end=0.1)}, r"node 5 \(t = 0.0497494, λ = 1.7526\) is outside.*λ = -5\.0250 … 1\.0783"),
        ({"stats": curves(VP, start=0.9)}, "node 0 .* is outside the range of stats"),
        ({"stats": curves(VP, 6)}, r"step . .* fewer than 2 of the 6 knots"),
        ({"order": 5}, "order=5"),
        ({"order": True}, "order=True"),
        ({"degree": 2}, "no option 'degree'"),
    ],
    ids=lambda v: "",
)
def test_bad_input(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ems_multistep(VP, nodes(6), **{"stats": curves(VP), **change})
