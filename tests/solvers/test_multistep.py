"""Exponential Adams–Bashforth: golden values of the dossiers, moments by quadrature, exactness, identities."""

from __future__ import annotations

import math

import numpy as np
import pytest

import unstir
from unstir import process as pr
from unstir.plan import Plan
from unstir.solvers import phi
from unstir.solvers.multistep import moments, weights

VP, EDM = pr.VP(), pr.EDM()

# Mixture, VP(0.1, 20), t from 1 to 0.01, six steps, x_T = (−0.6, 0.9): dpm-solver, dpm-solver-pp, deis, classic-samplers.
GOLDEN = [
    ("ddim", {}, 6, "logsnr", (-0.1192168895, 0.9396970061)),
    ("dpmpp-2m", {}, 6, "logsnr", (-0.2432576533, 1.2909857404)),
    ("dpmpp-2m", {"lower_final": True}, 6, "logsnr", (-0.2470330426, 1.2036835625)),
    ("ab-2", {}, 6, "logsnr", (-0.2996116048, 1.3882203206)),
    ("dpmpp-3m-published", {}, 6, "logsnr", (-0.4109541373, 1.5216521977)),
    ("ddim", {}, 6, "quadratic", (-0.1245866147, 1.0598912482)),
    # Other families, where the register has them.
    ("dpm-2s", {}, 12, "logsnr", (-0.4262987043, 1.5413771444)),
    ("dpm-2s", {"kind": "taylor"}, 12, "logsnr", (-0.2727025161, 1.4123486071)),
    ("dpm-3s", {}, 18, "logsnr", (-0.2124973416, 1.3598570115)),
    ("dpm-3s", {"kind": "taylor"}, 18, "logsnr", (-0.2152712592, 1.3592776223)),
    ("dpm-fast", {}, 6, "logsnr", (-0.7092549050, 1.5425431932)),
    ("dpm-fast", {}, 7, "logsnr", (-0.4651608251, 1.2783668648)),
    ("dpm-fast", {}, 8, "logsnr", (-0.5003963172, 1.6182473934)),  # the dossier prints …3394: two digits exchanged
    ("dpmpp-2s", {}, 12, "logsnr", (-0.1855265414, 1.2444348082)),
    ("dpmpp-2s", {"kind": "taylor"}, 12, "logsnr", (-0.2134368059, 1.3132670357)),
    ("dpmpp-3s", {}, 18, "logsnr", (-0.2186934151, 1.3558529284)),
    ("dpmpp-3s", {"kind": "taylor"}, 18, "logsnr", (-0.2179474009, 1.3565543721)),
    ("unipc-bh1", {}, 6, "logsnr", (-0.4794038524, 1.4410323135)),
    ("unipc-bh2", {}, 6, "logsnr", (-0.2615754675, 1.2444262474)),
    ("unipc", {"kind": "half"}, 6, "logsnr", (-0.5083023987, 1.4585765958)),
    ("unipc", {"kind": "midpoint"}, 6, "logsnr", (-0.3770153948, 1.3446254367)),
    ("unipc", {"kind": "half", "corrector_on": False}, 6, "logsnr", (-0.5066753309, 1.4732208337)),
    ("unipc", {"kind": "midpoint", "corrector_on": False}, 6, "logsnr", (-0.3768015482, 1.3371849849)),
    ("unipc", {}, 6, "logsnr", (-0.4099273191, 1.3749828921)),
    ("etd-4", {}, 24, "logsnr", (-0.2136800670, 1.3610924142)),
    ("etd-4-stiff", {}, 30, "logsnr", (-0.2084806069, 1.3566322039)),
    ("tab-2", {}, 6, "quadratic", (-0.1625948023, 1.2190801494)),
    ("tab-3", {}, 6, "quadratic", (-0.1785145625, 1.2789320329)),
    ("tab-4", {}, 6, "quadratic", (-0.1745580522, 1.2970743744)),
    ("rhoab-2", {}, 6, "karras", (-0.0805004081, 0.9150916281)),
    ("rhoab-4", {}, 6, "karras", (-0.0888257718, 0.9426725111)),
    ("heun", {}, 12, "karras", (-0.2482129918, 1.7143231824)),
    ("rho-kutta-3", {}, 18, "karras", (-0.3544627346, 1.3932360420)),
    ("rho-rk-4", {}, 24, "karras", (-0.1750542738, 1.3810520763)),
    ("ipndm", {}, 6, "uniform", (-0.3655163970, 1.3346930016)),
]


def run(mixture, plan: Plan) -> list[float]:
    return unstir.sample(mixture.model(VP), plan, x=mixture.start).flatten().tolist()


@pytest.mark.parametrize(
    ("name", "options", "nfe", "grid", "expected"), GOLDEN, ids=lambda v: str(v) if isinstance(v, str | int) else ""
)
def test_golden_values(mixture, name: str, options: dict, nfe: int, grid: str, expected: tuple[float, float]) -> None:
    plan = unstir.plan(name, VP, nfe=nfe, grid=grid, end=0.01, **options)
    assert run(mixture, plan) == pytest.approx(expected, abs=1e-9)


def test_golden_value_of_the_exact_third_order_update(mixture) -> None:
    """The dossier's 3M with κ = 2 takes its second step by the midpoint rule; ours takes the exact second-order one."""
    third, second = (unstir.plan(name, VP, nfe=6, grid="logsnr", end=0.01) for name in ("dpmpp-3m", "dpmpp-2m"))
    mixed = Plan([*second.rows[:2], *third.rows[2:]], VP)
    assert run(mixture, mixed) == pytest.approx((-0.4726052941, 1.5685667828), abs=1e-9)


def test_the_exact_answer_of_the_dossier(mixture) -> None:
    exact = mixture.flow(VP, mixture.start, 1.0, 0.01).flatten().tolist()
    assert exact == pytest.approx((-0.20985769, 1.35216005), abs=1e-8)
    assert run(mixture, unstir.plan("dpmpp-3m", VP, nfe=200, grid="logsnr", end=0.01)) == pytest.approx(exact, abs=1e-5)


# -- the weights -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("z", [-30.0, -5.0, -1.0, -0.999, -0.2, -1e-4, 0.0, 1e-9, 0.3, 1.0, 4.0])
def test_phi_by_quadrature(z: float) -> None:
    """φ_k(z) = ∫₀¹ e^{(1−u)z} u^{k−1}/(k−1)! du."""
    u, w = np.polynomial.legendre.leggauss(60)
    u, w = (u + 1) / 2, w / 2
    assert phi(0, z) == pytest.approx(math.exp(z), rel=1e-14)
    for k in range(1, 7):
        integral = float((w * np.exp((1 - u) * z) * u ** (k - 1)).sum() / math.factorial(k - 1))
        assert phi(k, z) == pytest.approx(integral, rel=1e-11)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_rows_are_the_integrals_of_the_interpolating_polynomial(order: int, eta: float, form: str) -> None:
    """b_j = α' ∫ e^{…} ℓ_j(λ) dλ by Gauss's rule with Lagrange polynomials: no moments, no φ."""
    times = [1.0, 0.85, 0.74, 0.55, 0.42]
    plan = unstir.plan("ab-2", VP, grid=times, order=order, eta=eta, form=form)
    lam = [float(VP.logsnr(t)) for t in times]
    u, w = np.polynomial.legendre.leggauss(40)
    for i, row in enumerate(plan):
        o = min(order, i + 1)
        s, t = lam[i], lam[i + 1]
        x, dx = s + (u + 1) / 2 * (t - s), w / 2 * (t - s)
        if form == "data":  # (1 + η) α' ∫ e^{(1+η)(λ − λ')} D dλ
            kernel = (1 + eta) * float(VP.alpha(times[i + 1])) * np.exp((1 + eta) * (x - t))
        else:  # −(1 + η) σ' ∫ e^{λ' − λ} ε̂ dλ
            kernel = -(1 + eta) * float(VP.sigma(times[i + 1])) * np.exp(t - x)
        assert len(row.b) == o
        for j in range(o):
            basis = np.prod([(x - lam[i - k]) / (lam[i - j] - lam[i - k]) for k in range(o) if k != j], axis=0)
            assert row.b[j] == pytest.approx(float((kernel * basis * dx).sum()), rel=1e-9, abs=1e-12), (i, j)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_polynomial_predictions_are_integrated_exactly(order: int) -> None:
    """If D(λ) is a polynomial of degree order − 1, every row is exact once its history is there."""
    times = [0.9, 0.8, 0.65, 0.5, 0.3, 0.2, 0.1]
    lam = [float(EDM.logsnr(t)) for t in times]
    poly = np.polynomial.Polynomial([0.3, -0.5, 0.2, 0.1][:order])
    plan, u, w = unstir.plan("ab-2", EDM, grid=times, order=order), *np.polynomial.legendre.leggauss(30)
    for i in range(order - 1, len(plan)):
        row, s, t = plan[i], lam[i], lam[i + 1]
        x = s + (u + 1) / 2 * (t - s)
        exact = float((w / 2 * (t - s) * np.exp(x - t) * poly(x)).sum())
        assert sum(b * poly(lam[i - j]) for j, b in row.b.items()) == pytest.approx(exact, rel=1e-10)


def test_the_published_moments() -> None:
    assert moments(2, -0.7, "midpoint") == pytest.approx([phi(1, -0.7), phi(1, -0.7) / 2])
    assert moments(2, -0.7, "half") == pytest.approx([phi(1, -0.7), 0.5])
    exact, published = moments(3, -0.7), moments(3, -0.7, "published")
    assert published == pytest.approx([exact[0], exact[1], exact[2] / 2])
    assert weights([0.0, -1.0, -2.5], [1.0, 0.5, 0.25]) == pytest.approx(
        np.linalg.solve([[1, 1, 1], [0, -1, -2.5], [0, 1, 6.25]], [1, 0.5, 0.25])
    )


def test_2m_and_3m_by_their_published_formulas() -> None:
    """DPM-Solver++ 2M and 3M (dossier, items 5 and 6), written out at one uneven step."""
    t = [0.9, 0.7, 0.6, 0.35]
    lam = [float(VP.logsnr(u)) for u in t]
    (a3, s2, s3) = (float(v) for v in (VP.alpha(t[3]), VP.sigma(t[2]), VP.sigma(t[3])))
    h, h0, h1 = lam[3] - lam[2], lam[2] - lam[1], lam[1] - lam[0]
    big = a3 * -math.expm1(-h)
    phi2 = math.expm1(-h) / h + 1
    phi3 = phi2 / h - 0.5
    r, r0, r1 = h0 / h, h0 / h, h1 / h
    d0, d1 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    e1, e2 = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
    formulas = {
        "dpmpp-2m": big * np.array([1 + 1 / (2 * r), -1 / (2 * r)]),
        "ab-2": big * np.array([1.0, 0]) + a3 * phi2 * np.array([1, -1]) / r,
        "dpmpp-3m-published": big * np.array([1.0, 0, 0]) + a3 * phi2 * e1 - a3 * phi3 * e2,
        "dpmpp-3m": big * np.array([1.0, 0, 0]) + a3 * phi2 * e1 - 2 * a3 * phi3 * e2,
    }
    for name, b in formulas.items():
        row = unstir.plan(name, VP, grid=t)[2]
        assert row.a == pytest.approx(s3 / s2, rel=1e-12)
        assert [row.b[j] for j in range(len(b))] == pytest.approx(b.tolist(), rel=1e-9), name


def test_the_sde_has_its_published_coefficients() -> None:
    """H = (1 + η) h in the brackets, a = (σ'/σ) e^{−ηh}, c = σ' √(1 − e^{−2ηh})."""
    t, eta = [0.8, 0.6], 0.7
    (row,) = unstir.plan("dpmpp-2m-sde", VP, grid=t, eta=eta)
    h = float(VP.logsnr(t[1]) - VP.logsnr(t[0]))
    s, s2, a2 = float(VP.sigma(t[0])), float(VP.sigma(t[1])), float(VP.alpha(t[1]))
    expected = (s2 / s * math.exp(-eta * h), -a2 * math.expm1(-(1 + eta) * h), s2 * math.sqrt(-math.expm1(-2 * eta * h)))
    assert (row.a, row.b[0], row.c) == pytest.approx(expected, rel=1e-12)
    (noise,) = unstir.plan("dpm-2m", VP, grid=t, eta=1.0)  # x' = (α'/α) x − 2σ' (e^h − 1) ε̂ + σ' √(e^{2h} − 1) z
    a = float(VP.alpha(t[0]))
    expected = (a2 / a, -2 * s2 * math.expm1(h), s2 * math.sqrt(math.expm1(2 * h)), 1 / s, -a / s)
    assert (noise.a, noise.b[0], noise.c, noise.p, noise.q) == pytest.approx(expected, rel=1e-10)


def test_order_one_is_ddim_in_both_forms() -> None:
    nodes = [0.95, 0.7, 0.4, 0.1, 0.0]
    ddim = unstir.plan("ddim", VP, grid=nodes)
    for form in ("data", "noise"):
        for row, ref in zip(unstir.plan("ab-2", VP, grid=nodes, order=1, form=form), ddim, strict=True):
            b = row.b[0]
            assert (row.a + b * row.p, b * row.q) == pytest.approx((ref.a, ref.b[0]), rel=1e-11, abs=1e-13)


def test_infinite_logsnr_never_enters_a_polynomial() -> None:
    """A start at α = 0 and an end at σ = 0 are first-order data rows; the step after the start sees no node there."""
    plan = unstir.plan("ab-4", pr.Cosine(), nfe=7)
    assert [len(row.b) for row in plan] == [1, 1, 2, 3, 4, 4, 1]
    noise = unstir.plan("ab-4", pr.Cosine(), nfe=7, form="noise")
    assert [row.p == 0 for row in noise] == [True, *[False] * 5, True]


def test_lower_final() -> None:
    assert [len(r.b) for r in unstir.plan("ab-4", VP, nfe=7, end=0.01, lower_final=True)] == [1, 2, 3, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 0}, "order=0"),
        ({"order": 9}, "order=9"),
        ({"order": 2.0}, "order=2.0"),
        ({"order": True}, "order=True"),  # FOUND: True passes as order 1
        ({"form": "score"}, "form='score'"),
        ({"kind": "magic"}, "kind='magic'"),
        ({"eta": -1.0}, "eta=-1.0"),
        ({"eta": math.nan}, "eta=nan"),
        ({"eta": math.inf}, "eta=inf"),  # FOUND: "row 1: b is not finite (nan); the grid or the process does not fit"
    ],
)
def test_bad_options_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unstir.plan("ab-2", VP, nfe=4, **options)
