"""Volumes: slices as a batch, ADMM against its optimality conditions, and the same run on every process."""

import math
import warnings

import pytest
import torch

import unstir
from unstir._random import draw
from unstir.denoiser import Denoiser, Gaussian, chunked
from unstir.process import EDM, VP, Flow, MeanReverting
from unstir.solvers import compile_plan
from unstir.steer import (
    TV,
    SliceWise,
    admm,
    admm_consistency,
    apg,
    cfg,
    finite_difference,
    finite_difference_adjoint,
    posterior,
    sliced,
)
from unstir.steer import operators as ops
from unstir.steer.admm import measured_norm, shrink
from unstir.steer.volumes import fold, unfold

torch.set_num_threads(1)
SHAPE = (1, 4, 5, 5)  # (C, Z, H, W)
PICTURE = (1, 5, 5)
PROCESSES = [VP(), EDM(), Flow()]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX = randn(12, 25, seed=9)
DENSE = ops.dense(MATRIX, PICTURE)
BARE = ops.Linear(lambda x: x.flatten(1) @ MATRIX.T.to(x), PICTURE)
FULL = (lambda r: r @ r.T / 25 + 0.05 * torch.eye(25, dtype=torch.float64))(randn(25, 25, seed=8))


def prior(process):
    return Gaussian(process, randn(*PICTURE, seed=7), FULL)


def truth():
    """A volume that changes slowly along z, and its scan."""
    x = randn(1, *PICTURE, seed=5)[:, :, None] + 0.1 * torch.linspace(-1, 1, 4).double()[:, None, None]
    return x, sliced(DENSE).A(x)


def descent(process, solver="ddim", rows=12):
    levels = torch.logspace(1, -2, rows, dtype=torch.float64)
    return compile_plan(solver, process, [*process.time(-levels.log()).tolist(), 0.0])


def start(plan, batch=1):
    """The same scaled state x̂ on every process."""
    t = plan.start
    return float(plan.process.alpha(t)) * 10 * randn(batch, *SHAPE, seed=3)


# -- differences and thresholds ------------------------------------------------------------------------------
@pytest.mark.parametrize("boundary", ["reflect", "circular"])
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_differences_have_an_exact_adjoint(axis, boundary) -> None:
    x = torch.randint(-9, 9, (2, 1, 4, 5, 6), generator=torch.Generator().manual_seed(1)).double()
    u = torch.randint(-9, 9, (2, 1, 4, 5, 6), generator=torch.Generator().manual_seed(2)).double()
    d = finite_difference(x, axis, boundary)
    assert float((d * u).sum() - (x * finite_difference_adjoint(u, axis, boundary)).sum()) == 0
    n = x.shape[axis]
    torch.testing.assert_close(d.narrow(axis, 0, n - 1), x.diff(dim=axis))
    last = torch.zeros_like(x.select(axis, 0)) if boundary == "reflect" else x.select(axis, 0) - x.select(axis, n - 1)
    assert torch.equal(d.select(axis, n - 1), last)


@pytest.mark.parametrize("count", [1, 3])
def test_shrinking_satisfies_the_conditions_of_its_minimum(count) -> None:
    v, threshold = randn(2, count, 3, 4), 0.9
    s = shrink(v, threshold)
    size, zero = s.norm(dim=1, keepdim=True), (s == 0).all(1, keepdim=True)
    assert 0 < int(zero.sum()) < zero.numel()
    slope = s - v + threshold * s / size.clamp_min(1e-300)
    assert float(torch.where(zero, 0.0, slope).abs().max()) < 1e-14
    assert float(torch.where(zero, v.norm(dim=1, keepdim=True), 0.0).max()) <= threshold
    assert torch.equal(shrink(v, 0.0), v)


# -- the iteration -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("boundary", ["reflect", "circular"])
@pytest.mark.parametrize(("axes", "rho", "steps"), [(2, 0.5, 80), ((2, 3, 4), 2.0, 200)], ids=["one axis", "isotropic"])
def test_many_iterations_solve_the_problem(axes, rho, steps, boundary) -> None:
    """The dual −½‖A⁻ᵀ(Aᵀy − Dᵀv)‖² + ½‖y‖² at a feasible v bounds the minimum from below: no gap, no better x."""
    operator = ops.dense(torch.eye(216).double() + 0.02 * randn(216, 216), (1, 6, 6, 6))
    box = torch.zeros(1, 1, 6, 6, 6).double()
    box[:, :, 1:4, :3] = 2
    y, size, term = operator.A(box + 0.1 * randn(*box.shape)), measured_norm(operator, box), TV(axes, 0.2, rho, boundary)
    x, ((_, w),) = admm(operator, y, [term], torch.zeros_like(box), admm_steps=steps, cg_steps=12)

    v = term.rho * w
    assert float(v.norm(dim=1).max()) <= term.weight * (1 + 1e-12)
    primal = 0.5 * (operator.A(x) - y).square().sum() / size**2 + term.weight * term.D(x).norm(dim=1).sum()
    back = (operator.A_adjoint(y) / size**2 - term.D_adjoint(v)).flatten(1)
    a = operator.A(torch.eye(216).double().reshape(216, 1, 6, 6, 6)).T / size
    dual = 0.5 * y.square().sum() / size**2 - 0.5 * torch.linalg.solve(a.T, back[0]).square().sum()
    assert 0 <= float(primal - dual) + 1e-10 < 1e-6
    assert float((term.D(x).norm(dim=1) < 1e-6).double().mean()) > 0.1  # the ‖·‖₁ is at work


def test_a_very_large_weight_makes_the_volume_constant_across_slices() -> None:
    """min ½‖A x − y‖² over volumes of equal slices: least squares on the mean of what the slices measured."""
    operator = ops.dense(randn(100, 25, seed=2), PICTURE)
    y = sliced(operator).A(randn(1, *SHAPE))
    x, _ = admm(sliced(operator), y, [TV(2, 1e3, 0.2)], torch.zeros(1, *SHAPE).double(), admm_steps=150, cg_steps=12)
    torch.testing.assert_close(x, operator.A_dagger(y.mean(1))[:, :, None].expand_as(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("terms", [[], [TV(2, 0.0, 0.0)]], ids=["none", "zero"])
def test_without_ties_a_row_is_one_step_of_conjugate_gradients(terms) -> None:
    x, y = randn(2, *SHAPE), sliced(DENSE).A(randn(2, *SHAPE, seed=1))
    out, _ = admm(sliced(DENSE), y, terms, x, size=1.0)
    r = sliced(DENSE).A_adjoint(y - sliced(DENSE).A(x))
    rr, hh = r.flatten(1).square().sum(1), sliced(DENSE).A(r).flatten(1).square().sum(1)
    torch.testing.assert_close(out, x + (rr / hh).reshape(-1, 1, 1, 1, 1) * r)
    process = EDM()
    post = admm_consistency(SliceWise(prior(process)), sliced(DENSE), y, terms, carry="data")
    data = SliceWise(prior(process))(x, 0.01)
    torch.testing.assert_close(post(x, 0.01), admm(sliced(DENSE), y, terms, data)[0])


def test_weights_mean_the_same_for_an_operator_of_any_norm() -> None:
    y, x = sliced(DENSE).A(randn(1, *SHAPE, seed=1)), randn(1, *SHAPE)
    large = ops.Linear(lambda x: 7e3 * BARE.A(x), PICTURE)
    small, _ = admm(sliced(DENSE), y, [TV(2, 0.01, 0.1)], x, admm_steps=3, cg_steps=2)
    other, _ = admm(sliced(large), 7e3 * y, [TV(2, 0.01, 0.1)], x, admm_steps=3, cg_steps=2)
    torch.testing.assert_close(other, small, rtol=1e-4, atol=1e-4)  # the norm by the power method
    assert measured_norm(sliced(BARE), x) == pytest.approx(float(torch.linalg.matrix_norm(MATRIX, 2)), rel=1e-4)


# -- slices --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operator", [DENSE, BARE], ids=["spectral", "bare"])
def test_an_operator_of_slices_measures_every_slice(operator) -> None:
    x = randn(2, *SHAPE)
    whole = sliced(operator)
    torch.testing.assert_close(whole.A(x), torch.stack([operator.A(x[:, :, k]) for k in range(4)], 1))
    found = ops.check_operator(whole, x, 1e-6)
    assert found["norm"] == pytest.approx(float(torch.linalg.matrix_norm(MATRIX, 2)), rel=1e-4)
    assert ops.is_spectral(whole) == ops.is_spectral(operator)


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_slices_go_through_the_model_one_by_one(axis, chunk) -> None:
    x, t = randn(2, 1, 5, 5, 5), torch.tensor([0.2, 0.7], dtype=torch.float64)
    kind, shade = torch.tensor([1.0, 2.0]).double(), randn(2, 1, 5, 5, 5, seed=1)
    net = prior(VP())
    seen = []

    def network(x, t, kind, shade, shared):
        seen.append((len(x), len(shared)))
        return net(x, t) * kind[:, None, None, None] + shade * shared.sum()

    model = Denoiser(network, VP(), "data")
    out = SliceWise(model, axis, chunk)(x, t, kind=kind, shade=shade, shared=torch.ones(3).double())
    for b in range(2):
        for k in range(5):
            one = net(x[b : b + 1].select(axis, k), t[b]) * kind[b] + 3 * shade[b : b + 1].select(axis, k)
            torch.testing.assert_close(out[b : b + 1].select(axis, k), one)
    assert max(n for n, _ in seen) == min(chunk or 10, 10)
    assert {m for _, m in seen} == {3}
    assert torch.equal(unfold(fold(x, axis), 2, axis), x)


class Dice(torch.nn.Module):
    """A model that draws from the samples' own streams."""

    process, shape = VP(), PICTURE

    def forward(self, x, t, ctx=None):
        return draw(ctx.run.keys, x.shape[1:], 77, x.dtype)


def test_slices_have_random_numbers_of_their_own_in_any_chunk() -> None:
    plan = unstir.plan("ddim", VP(), nfe=2)
    ends = [unstir.sample(SliceWise(Dice(), 2, chunk), plan, shape=(2, *SHAPE)) for chunk in (None, 1, 3)]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert len({float(v) for v in ends[0][:, 0, :, 0, 0].flatten()}) == 8
    whole = unstir.sample(Dice(), plan, shape=4)
    assert torch.equal(unstir.sample(chunked(Dice(), 3), plan, shape=4), whole)


# -- runs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("on", ["clean", "state"])
def test_the_run_is_the_same_on_every_process(on, solver) -> None:
    _, y = truth()
    ends = []
    for process in PROCESSES:
        plan = descent(process, solver)
        post = admm_consistency(SliceWise(prior(process)), sliced(DENSE), y, [TV(2, 0.01, 0.05)], on=on)
        if on == "clean" and solver == "dpmpp-2m":  # a kept noise estimate is defined for the row's own prediction
            post = admm_consistency(SliceWise(prior(process)), sliced(DENSE), y, [TV(2, 0.01, 0.05)], carry="data")
        ends.append(unstir.sample(post, plan, x=start(plan)))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-2m", "ancestral"])
@pytest.mark.parametrize("carry", ["data", "noise"])
def test_it_measures_right_and_is_smoother_than_its_slices(process, solver, carry) -> None:
    x, y = truth()
    plan = descent(process, solver)
    model, operator = SliceWise(prior(process), chunk=3), sliced(DENSE)
    run = {}
    for name, terms in {"apart": [], "tied": [TV(2, 0.01, 0.05)]}.items():
        post = admm_consistency(model, operator, y, terms, cg_steps=12, carry=carry)
        run[name] = unstir.sample(post, plan, x=start(plan), seed=1)
    assert float((operator.A(run["apart"]) - y).norm() / y.norm()) < 1e-6
    assert float(run["tied"].diff(dim=2).norm()) < 0.8 * float(run["apart"].diff(dim=2).norm())
    assert float((run["tied"] - x).norm()) < float((run["apart"] - x).norm())


@pytest.mark.parametrize("on", ["clean", "state"])
def test_duals_live_for_one_run_and_go_on_with_its_state(on) -> None:
    _, y = truth()
    process = VP()
    plan = descent(process, "ancestral")
    head, tail = plan.split(5)

    def run(plan, x, **options):
        return unstir.sample(post, plan, x=x, seed=2, **options)

    post = admm_consistency(SliceWise(prior(process)), sliced(DENSE), y, [TV(2, 0.05, 0.05)], on=on)
    whole = run(plan, start(plan))
    assert torch.equal(run(plan, start(plan)), whole)
    half = run(head, start(plan), full=True)
    assert torch.equal(run(tail, half), whole)
    assert torch.equal(run(tail, half), whole)  # which leaves the state as it was
    half.memory.clear()
    assert float((run(tail, half) - whole).abs().max()) > 1e-3
    post = admm_consistency(SliceWise(prior(process)), sliced(DENSE), y, [TV(2, 0.05, 0.05)], on=on, warm=False)
    cold = run(plan, start(plan))
    assert torch.equal(run(tail, run(head, start(plan), full=True)), cold)
    assert float((cold - whole).abs().max()) > 1e-3


def test_the_memory_of_other_transforms_goes_on_too() -> None:
    net = prior(VP())
    model = Denoiser(lambda x, t, label: net(x, t) * label[:, None, None, None], VP(), "data")
    post = apg(chunked(model, 1), 3.0, null={"label": torch.full((2,), 0.5).double()})
    plan, x, label = descent(VP()), randn(2, *PICTURE), torch.tensor([1.0, 1.2]).double()
    head, tail = plan.split(4)
    whole = unstir.sample(post, plan, x=x, label=label)
    assert torch.equal(unstir.sample(post, tail, x=unstir.sample(post, head, x=x, label=label, full=True), label=label), whole)


@pytest.mark.parametrize("on", ["clean", "state"])
def test_duals_go_with_their_volumes(on) -> None:
    _, y = truth()
    process = EDM()
    plan, perm = descent(process), torch.tensor([2, 0, 1])
    post = admm_consistency(SliceWise(prior(process)), sliced(DENSE), y, [TV(2, 0.05, 0.05)], on=on)

    def shuffle(ctx, x):
        if ctx.index == 5:
            ctx.permute(perm)
            return x[perm]
        return None

    plain = unstir.sample(post, plan, x=start(plan, 3))
    torch.testing.assert_close(unstir.sample(post, plan, x=start(plan, 3), hooks=shuffle), plain[perm])


def test_half_precision_runs_keep_their_dtype() -> None:
    _, y = truth()
    plan = descent(VP())
    post = admm_consistency(SliceWise(prior(VP())), sliced(DENSE), y, [TV(2, 0.05, 0.05)])
    assert unstir.sample(post, plan, shape=(1, *SHAPE), dtype=torch.bfloat16).dtype == torch.bfloat16


# -- wrong input ---------------------------------------------------------------------------------------------
class Skewed:
    """An operator whose back-projection is off by a share of its size."""

    linear = True

    def __init__(self, off):
        self.off = off

    def A(self, x):
        return DENSE.A(x)

    def A_adjoint(self, y):
        return (1 + self.off) * DENSE.A_adjoint(y)


def test_a_back_projection_that_is_no_adjoint_is_found() -> None:
    x = randn(1, *PICTURE)
    with pytest.raises(ValueError, match=r"no exact adjoint: .* differ by 0\.\d+"):
        measured_norm(Skewed(0.5), x)
    with pytest.warns(UserWarning, match="differ by 0.0"):
        measured_norm(Skewed(0.02), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured_norm(Skewed(1e-5), x)
    with pytest.raises(ValueError, match="measures nothing"):
        measured_norm(ops.mask(torch.zeros(5, 5)), x)


def test_degrees_in_the_place_of_radians_are_noticed() -> None:
    degrees = torch.arange(8) * 22.5
    with pytest.warns(UserWarning, match=r"angles reach 157\.5: they are in radians"):
        ops.radon(degrees, PICTURE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.radon(torch.deg2rad(degrees), PICTURE)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (TV(2, 0.1, 0.0), "rho must be > 0"),
        (TV(2, -0.1, 1.0), "at least 0"),
        (TV(2, math.nan, 1.0), "finite"),
        (TV(2, 0.1, 0.1, "mirror"), "boundary must be one of"),
        (TV((), 0.1, 0.1), "axis must be"),
        (TV((2, 2), 0.1, 0.1), "axis must be"),
        (TV(0, 0.1, 0.1), "axis must be"),
    ],
    ids=str,
)
def test_terms_that_mean_nothing_are_refused(term, message) -> None:
    _, y = truth()
    with pytest.raises(ValueError, match=message):
        admm_consistency(SliceWise(prior(VP())), sliced(DENSE), y, [term])


def test_wrong_arguments_are_named() -> None:
    _, y = truth()
    process = VP()
    model, operator, plan = SliceWise(prior(process)), sliced(DENSE), descent(process)
    flat = sliced(DENSE).A(randn(1, 1, 1, 5, 5))
    with pytest.raises(ValueError, match="no two neighbours along axis 2"):
        unstir.sample(admm_consistency(model, operator, flat, [TV(2, 0.1, 0.1)]), plan, shape=(1, 1, 1, 5, 5))
    with pytest.raises(ValueError, match="no two neighbours along axis 5"):
        unstir.sample(admm_consistency(model, operator, y, [TV(5, 0.1, 0.1)]), plan, shape=(1, *SHAPE))
    with pytest.raises(ValueError, match=r"y has shape \(1, 4, 11\); the operator makes \(B, 4, 12\)"):
        unstir.sample(admm_consistency(model, operator, y[..., :11]), plan, shape=(1, *SHAPE))
    with pytest.raises(ValueError, match="y has 2 measurements for a batch of 3"):
        unstir.sample(admm_consistency(model, operator, y.expand(2, 4, 12)), plan, shape=(3, *SHAPE))
    for options, message in (
        ({"on": "noisy"}, "on='noisy'"),
        ({"carry": "mean"}, "carry='mean'"),
        ({"cg_steps": 0}, "cg_steps=0"),
        ({"admm_steps": 1.5}, r"admm_steps=1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            admm_consistency(model, operator, y, **options)
    with pytest.raises(ValueError, match="it must be linear"):
        admm_consistency(model, ops.phase_retrieval(), y)
    with pytest.raises(ValueError, match="finite numbers"):
        admm_consistency(model, operator, y * math.inf)
    with pytest.raises(TypeError, match="knows no process"):
        admm_consistency(lambda x, t: x, operator, y)
    anchored = Denoiser(lambda x, t: x, MeanReverting(), "data")
    with pytest.raises(ValueError, match="without an anchor"):
        admm_consistency(SliceWise(anchored), operator, y, on="state")
    with pytest.raises(ValueError, match="axis=0"):
        SliceWise(prior(process), 0)
    with pytest.raises(ValueError, match="size=0"):
        SliceWise(prior(process), chunk=0)
    with pytest.raises(ValueError, match="need volumes"):
        SliceWise(prior(process), 4)(randn(2, *PICTURE), 0.5)
    with pytest.raises(ValueError, match="steer SliceWise"):
        SliceWise(posterior(prior(process), DENSE, DENSE.A(randn(1, *PICTURE)), "ddrm"))


class Recalls(torch.nn.Module):
    """D = ½ x + ⅓ previous."""

    def forward(self, x, t, previous):
        return 0.5 * x + previous / 3


@pytest.mark.parametrize("chunk", [None, 3])
def test_what_slices_remember_follows_permuted_volumes(chunk) -> None:
    model = Denoiser(Recalls(), VP(), "data", sees_previous=True)
    plan, x, perm = unstir.plan("ddim", VP(), nfe=4), randn(3, *SHAPE), torch.tensor([2, 0, 1])

    def swap(ctx, x):
        ctx.permute(perm)
        return x[perm]

    whole = unstir.sample(model, plan, x=x, hooks=swap)  # which acts on every number for itself
    torch.testing.assert_close(unstir.sample(SliceWise(model, 2, chunk), plan, x=x, hooks=swap), whole)


def test_guidance_around_it_has_duals_for_each_branch() -> None:
    """With scale 0 the guided run is the unconditional one, whatever the conditional branch does beside it."""
    _, y = truth()
    net = prior(VP())
    model = Denoiser(lambda x, t, label: net(x, t) * label, VP(), "data")
    post = admm_consistency(SliceWise(model), sliced(DENSE), y, [TV(2, 0.05, 0.05)], carry="data")
    plan = descent(VP())
    guided = unstir.sample(cfg(post, 0.0, null={"label": 1.0}), plan, x=start(plan), label=1.5)
    torch.testing.assert_close(guided, unstir.sample(post, plan, x=start(plan), label=1.0))
