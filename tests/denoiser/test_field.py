"""Vector fields: weights from the span of the outputs, exact Gaussian fields, and the plans that integrate them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import unstir
from unstir import process as pr
from unstir.denoiser import FIELDS, Field, Gaussian
from unstir.denoiser.field import target
from unstir.process import Interpolant, Marginal, Mirror, OneSided, Process
from unstir.solvers import FIELD_SOLVERS, compile_plan, field_plan

# x0 ~ N(1, 0.5²) and y ~ N(−0.7, 1.2²), correlated: 0.4.
M0, S0, M1, S1, RHO = 1.0, 0.5, -0.7, 1.2, 0.4
STARTS = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]


def moments(p: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t."""
    a, b, s = p.alpha(t), p.beta(t), p.sigma(t)
    return a * M0 + b * M1, (a * S0) ** 2 + (b * S1) ** 2 + 2 * a * b * RHO * S0 * S1 + s**2


def velocity_and_score(p: Process) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """v = m' + ½ (log V)' (x − m), s = −(x − m)/V: from the moments alone, by autograd, none of the formulas checked."""

    def network(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        inner = t[:, None].double().clamp(1e-12, 1 - 1e-12).requires_grad_(True)
        with torch.enable_grad():
            m, v = moments(p, inner)
            (dm,) = torch.autograd.grad(m.sum(), inner, retain_graph=True)
            (dv,) = torch.autograd.grad(v.sum(), inner)
        return (dm + 0.5 * dv / v * (x - m)).detach(), (-(x - m) / v).detach()

    return network


def conditional(p: Process, want: tuple[str, ...]) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """E[target | x] by the Gaussian rule: mean + Cov(target, x)/Var(x) (x − m), from the table of fields."""

    def network(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        t = t[:, None]
        m, v = moments(p, t)
        state = (p.alpha(t), p.beta(t), p.sigma(t))
        out = []
        for name in want:
            cx, cy, cz = FIELDS[name](p, t)
            mean = cx * M0 + cy * M1
            cross = cx * state[0] * S0**2 + cy * state[1] * S1**2 + cz * state[2]
            cross = cross + (cx * state[1] + cy * state[0]) * RHO * S0 * S1
            out.append(mean + cross / v * (x - m))
        return tuple(out) if len(out) > 1 else out[0]

    return network


INTERPOLANTS = {
    "linear-brownian": Interpolant(),
    "linear-quadratic": Interpolant(gamma="quadratic"),
    "trigonometric-sine": Interpolant("trigonometric", "sine", 0.9),
    "linear-sigmoid": Interpolant(gamma="sigmoid", scale=2.0),
}


@pytest.mark.parametrize("process", INTERPOLANTS.values(), ids=INTERPOLANTS)
@pytest.mark.parametrize(
    "outputs", [("path", "noise"), ("data", "source"), ("velocity", "score"), ("data", "noise")], ids="-".join
)
def test_every_field_follows_from_two_outputs(process: Process, outputs: tuple[str, str]) -> None:
    """Velocity and score from any two outputs are those of the moments; so are x0 and y from the Gaussian rule."""
    field = Field(conditional(process, outputs), process, outputs)
    for t in (0.03, 0.4, 0.9, torch.linspace(0.1, 0.9, 7, dtype=torch.float64)):
        at = torch.as_tensor(t, dtype=torch.float64).expand(7)
        v, s = velocity_and_score(process)(STARTS, at)
        torch.testing.assert_close(field(STARTS, t), v, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(field.field("score", STARTS, t), s, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(field(STARTS, t, diffusion=0.3), v - 0.3 * s, rtol=1e-7, atol=1e-8)
        for name in ("data", "source"):
            exact = conditional(process, (name,))(STARTS, at)
            torch.testing.assert_close(field.field(name, STARTS, t), exact, rtol=1e-7, atol=1e-8)


def test_targets_are_the_derivative_of_the_path_and_its_parts() -> None:
    p, h = Interpolant("trigonometric", "brownian"), 1e-6
    x0, y, z = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    t = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    slope = (p.stir(x0, t + h, z, y) - p.stir(x0, t - h, z, y)) / (2 * h)
    torch.testing.assert_close(target(p, "velocity", x0, y, z, t), slope, rtol=1e-6, atol=1e-6)
    without = (p.stir(x0, t + h, 0 * z, y) - p.stir(x0, t - h, 0 * z, y)) / (2 * h)
    torch.testing.assert_close(target(p, "path", x0, y, z, t), without, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target(p, "score", x0, y, z, t), -z / p.sigma(t)[:, None])


def test_one_output_is_enough_without_a_source_and_not_with_one() -> None:
    with pytest.raises(ValueError, match="train a second output"):
        Field(conditional(Interpolant(), ("velocity",)), Interpolant(), "velocity")(STARTS, 0.5, diffusion=0.1)
    one = Field(lambda x, t: x, OneSided(), "velocity")
    # x = (1 − t) x0 + t z and v = z − x0:  z = x + (1 − t) v,  s = −z/t
    torch.testing.assert_close(one.field("score", STARTS, 0.25), -(STARTS + 0.75 * STARTS) / 0.25)


@pytest.mark.parametrize("process", [pr.VP(), pr.Flow(), OneSided("trigonometric")], ids=["VP", "Flow", "circle"])
def test_the_field_of_an_ordinary_denoiser_is_its_ode(process: Process) -> None:
    """It carries N(m, V) along itself; and ε = ½ g² is the reverse SDE: v − ½ g² s = f x − g² s."""
    field = Field.of(Gaussian(process, 0.4, std=0.6))
    ends = torch.tensor([0.99, 0.02], dtype=torch.float64)
    m, v = process.alpha(ends) * 0.4, (process.alpha(ends) * 0.6) ** 2 + process.sigma(ends) ** 2
    end = unstir.sample(field, unstir.plan("field-rk-4", process, 400, start=0.99, end=0.02), x=STARTS)
    torch.testing.assert_close(end, m[1] + (v[1] / v[0]).sqrt() * (STARTS - m[0]), rtol=0, atol=1e-6)
    t = 0.4
    g2, f = float(process.g(t)) ** 2, float(process.f(t))
    score = field.field("score", STARTS, t)
    torch.testing.assert_close(field(STARTS, t, diffusion=0.5 * g2), f * STARTS - g2 * score, rtol=1e-6, atol=1e-6)


# -- plans ---------------------------------------------------------------------------------------------------
ORDERS = {
    "field-em": 1,
    "field-heun": 2,
    "field-midpoint": 2,
    "field-kutta-3": 3,
    "field-rk-4": 4,
    "field-ab-2": 2,
}


def test_the_list_of_solvers_is_complete() -> None:
    assert set(ORDERS) == set(FIELD_SOLVERS)


@pytest.mark.parametrize("name", ORDERS)
def test_solvers_converge_at_their_order_to_the_exact_map(name: str) -> None:
    """In one dimension the flow keeps quantiles: x(0) = m_0 + √(V_0/V_1) (x(1) − m_1). "quadratic" is smooth at both ends."""
    p = Interpolant(gamma="quadratic", scale=2.0)
    field = Field(velocity_and_score(p), p, ("velocity", "score"))
    exact = M0 + S0 * (STARTS - M1) / S1
    errors = []
    for calls in (24, 48, 96):
        run = unstir.plan(name, p, calls)
        assert len(run) == calls
        errors.append(float((unstir.sample(field, run, x=STARTS) - exact).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(ORDERS[name], abs=0.3)


@pytest.mark.parametrize("name", ["field-em", "field-heun"])
@pytest.mark.parametrize(
    "epsilon", [0.5, "sigma", "linear", "hump", lambda t: 0.2 + t], ids=["half", "sigma", "linear", "hump", "own"]
)
def test_every_diffusion_keeps_the_marginals(name: str, epsilon: object) -> None:
    """Exact moments: the rows are linear in the state, so mean and variance follow without sampling."""
    p = Interpolant()
    field = Field(velocity_and_score(p), p, ("velocity", "score"))
    nodes = torch.linspace(0.98, 0.02, 301, dtype=torch.float64).tolist()
    m, v = moments(p, torch.tensor([nodes[0], nodes[-1]], dtype=torch.float64))
    run = compile_plan(name, p, nodes, diffusion=epsilon)
    assert run.stochastic
    mean, variance, probe = float(m[0]), float(v[0]), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    # (1, x) of every remembered F, by two evaluations of a linear field
    state, history = {"1": mean, "z": math.sqrt(variance)}, {}
    noises: list[float] = []
    for i, row in enumerate(run.rows):
        if row.evaluate:
            at0, at1 = field(probe, row.t, **row.kwargs)[:, 0].tolist()
            history[i] = {k: (at1 - at0) * value + (at0 if k == "1" else 0.0) for k, value in state.items()}
        new = {k: float(row.a) * value for k, value in state.items()}
        for lag, weight in row.b.items():
            for k, value in history[i - lag].items():
                new[k] = new.get(k, 0.0) + weight * value
        if row.noisy:
            new[f"z{i}"] = float(row.c)
            noises.append(float(row.c))
        state = new
    assert len(noises) >= 299
    assert state["1"] == pytest.approx(float(m[1]), abs=0.01)
    assert math.sqrt(sum(c**2 for k, c in state.items() if k != "1")) == pytest.approx(float(v[1].sqrt()), rel=0.015)


def test_a_drift_without_its_score_leaves_the_marginals() -> None:
    """The check above can fail: noise alone, without −ε s, makes the end too wide."""
    p = Interpolant()
    field = Field(velocity_and_score(p), p, ("velocity", "score"))
    nodes = torch.linspace(0.98, 0.02, 41, dtype=torch.float64).tolist()
    noisy = compile_plan("field-em", p, nodes, diffusion=0.5)
    blind = noisy.map_rows(lambda i, row: unstir.Row(t=row.t, to=row.to, a=row.a, b=row.b, c=row.c))
    x = torch.zeros(200, 1, dtype=torch.float64)
    assert float(unstir.sample(field, blind, x=x).std()) > 1.2 * float(unstir.sample(field, noisy, x=x).std())


def test_the_last_step_may_return_the_data() -> None:
    p = Interpolant()
    field = Field(conditional(p, ("path", "noise")), p, ("path", "noise"))
    run = unstir.plan("field-em", p, 12, start=0.99, diffusion="linear", denoise=True)
    steps = list(unstir.steps(field, run, x=STARTS))
    assert len(run) == 12
    torch.testing.assert_close(steps[-1].x, field.field("data", steps[-2].x, run.rows[-1].t))


def test_a_mirror_moves_only_with_noise() -> None:
    """The ODE from end to end is the identity, by symmetry; the SDE resamples, within the same law N(1, 0.5²)."""
    p = Mirror("quadratic", 2.0)

    def noise(x: Tensor, t: Tensor) -> Tensor:  # E[z | x] of x = x0 + σ z
        s = p.sigma(t)[:, None]
        return s / (S0**2 + s**2) * (x - M0)

    field = Field(noise, p, "noise")
    torch.testing.assert_close(unstir.sample(field, unstir.plan("field-rk-4", p, 80), x=STARTS), STARTS, rtol=0, atol=1e-5)
    x = M0 + S0 * torch.randn(600, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = unstir.sample(field, unstir.plan("field-em", p, 60, start=0.99, end=0.01, diffusion="sigma"), x=x)
    assert float(torch.corrcoef(torch.cat([x, y], 1).T)[0, 1]) < 0.7
    assert float(y.mean()) == pytest.approx(M0, abs=0.1)
    assert float(y.std()) == pytest.approx(S0, rel=0.12)


def test_plans_are_data_tails_included() -> None:
    p = Interpolant()
    run = unstir.plan("field-heun", p, 12, start=0.99, end=0.01, diffusion="hump")
    assert run.process == Marginal(p)
    assert "λ" in str(run)
    assert run.tail(0.5).start == 0.5
    from unstir.plan.text import from_dict, to_dict

    assert from_dict(to_dict(run)) == run


def test_a_field_and_a_denoiser_do_not_take_each_others_plans() -> None:
    model = Gaussian(pr.Flow(), 0.0, std=1.0)
    with pytest.raises(ValueError, match="the plan was made for the process Marginal"):
        unstir.sample(model, unstir.plan("field-heun", pr.Flow(), 4), shape=(2, 1))
    with pytest.raises(ValueError, match="the model for Marginal"):
        unstir.sample(Field.of(model), unstir.plan("ddim", pr.Flow(), 4), shape=(2, 1))
    with pytest.raises(ValueError, match="'field-heun'"):
        unstir.plan("ddim", Field.of(model), 4, "uniform")


SILENT = Field(lambda x, t: 0 * x, Interpolant())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: field_plan(Interpolant(), [0.9, 0.95, 0.1]), "strictly one way"),
        (lambda: field_plan(Interpolant(), [1.2, 0.1]), r"inside \[0, 1\]"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], tableau="rk"), "tableau='rk'"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], order=7), "order=7"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], diffusion=-1), "is -1 at t = 0.9"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], diffusion="much"), "diffusion='much'"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], diffusion="sbdm"), "without a source"),
        (lambda: field_plan(Interpolant(), [0.1, 0.9], diffusion=0.1), "need times that fall|needs times that fall"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], order=2, diffusion=0.1), "are for the ODE"),
        (lambda: field_plan(Interpolant(), [0.9, 0.1], denoise=True), "must end at t = 0"),
        (lambda: field_plan(pr.Poisson(8.0, pr.VP()), [0.9, 0.1], diffusion=0.1), "heavy-tailed"),
        (lambda: Field(lambda x, t: x, Interpolant(), "drift"), "predicts='drift'"),
        (lambda: Field(lambda x, t: x, Interpolant(), ()), "predicts="),
        (lambda: Field(lambda x, t: x, Interpolant(), ("path", "noise"))(STARTS, 0.5), "a tuple of 2 tensors"),
        (lambda: Field(lambda x, t: x[:, :0], Interpolant())(STARTS, 0.5), "of the state's shape"),
        (lambda: Field(lambda x, t: x, Interpolant()).field("flow", STARTS, 0.5), "'flow' is unknown"),
        (lambda: Field(lambda x, t: x, pr.Flow())(STARTS, 0.0, diffusion=1.0), "infinite where σ = 0"),
        (lambda: unstir.sample(SILENT, unstir.plan("field-em", Interpolant(), 3), shape=(2, 1)), "pass x="),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_field_needs_a_process_of_its_own() -> None:
    with pytest.raises(TypeError, match="without an anchor"):
        Field.of(lambda x, t: x)
    with pytest.raises(TypeError, match="process is str"):
        Field(lambda x, t: x, "linear")  # type: ignore[arg-type]
