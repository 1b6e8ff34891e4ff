"""The executor: the three lines of a row, streams, split runs, threads, gradients, half types, generators, dict states."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unstir
from unstir import process as pr
from unstir.denoiser import Denoiser, Gaussian
from unstir.plan import JointPlan, NonFiniteError, Plan, Row, State, tree_map
from unstir.solvers import SOLVERS

VP, FLOW = pr.VP(), pr.Flow()
F64 = torch.float64
SAMPLES = ["ddim", "heun", "dpmpp-3m", "dpm-3m", "ddpm", "dpmpp-3m-sde"]  # one- and two-call, history, p and q, noise


FIRST = [  # the first family: these must return D at σ = 0
    *(
        "ddim",
        "euler",
        "ancestral",
        "ddpm",
        "ddpm-large",
        "renoise",
        "sde",
        "heun",
        "dpmpp-2m",
        "dpmpp-3m",
        "dpmpp-3m-published",
    ),
    *("dpmpp-2m-sde", "dpmpp-3m-sde", "dpm-2m", "dpm-3m", *(f"ab-{o}{f}" for o in (1, 2, 3, 4) for f in ("", "-noise"))),
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def model(x: Tensor, t) -> Tensor:
    """Elementwise and bounded; depends on time."""
    return torch.tanh(x * (1 + torch.as_tensor(t, dtype=x.dtype)))


# -- the row --------------------------------------------------------------------------------------------
def by_hand(net, plan: Plan, x: Tensor, noise: dict[int, Tensor]) -> list[Tensor]:
    """The definition of a plan, naively: all F kept, every term written."""
    past, out = [], []
    for i, row in enumerate(plan.rows):
        if row.evaluate:
            f = row.p * x + row.q * net(x, row.t, **row.kwargs)
            past.append(f + row.s * past[-1] if past and past[-1] is not None and i else f)
        else:
            past.append(None)
        x = row.a * x + sum((w * past[i - lag] for lag, w in row.b.items()), torch.zeros_like(x)) + row.e
        x = x + row.c * noise[i] if i in noise else x
        out.append(x)
    return out


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_runs_as_its_table_says(name: str) -> None:
    plan, x = unstir.plan(name, VP, nfe=6), randn(3, 2)
    noise = {i: randn(3, 2, seed=i) for i, row in enumerate(plan) if row.noisy}
    states = [step.x for step in unstir.steps(model, plan, x, noise=noise)]
    torch.testing.assert_close(states, by_hand(model, plan, x, noise), rtol=1e-9, atol=1e-10)


def test_s_is_the_momentum_of_ghvb() -> None:
    """GHVB-1: v_i = (1 − β) v_{i−1} + β ε_i, x̂' = x̂ + h v_i, which is the s column with s = 1 − β."""
    edm, beta, sig = pr.EDM(), 0.7, [80.0, 20.0, 5.0, 1.0, 0.2]
    rows = []
    for i, (s, s2) in enumerate(itertools.pairwise(sig)):
        b = 1.0 if i == 0 else beta
        rows.append(Row(t=s / 80, to=s2 / 80, a=1.0, b={0: s2 - s}, p=b / s, q=-b / s, s=0.0 if i == 0 else 1 - beta))
    x, v = 80 * randn(4, 3), None
    expected = x
    for s, s2 in itertools.pairwise(sig):
        eps = (expected - model(expected, s / 80)) / s
        v = eps if v is None else (1 - beta) * v + beta * eps
        expected = expected + (s2 - s) * v
    run = unstir.sample(model, Plan(rows, edm), x=x)
    torch.testing.assert_close(run, expected, rtol=1e-12, atol=1e-12)
    # A row in whose b nothing reads F_{i−1} still needs it kept for s: also across a split.
    head, tail = Plan(rows, edm).split(2)
    assert torch.equal(unstir.sample(model, tail, x=unstir.sample(model, head, x=x, full=True)), run)


@pytest.mark.parametrize("e", [0.25, randn(3), randn(4, 1, seed=1)], ids=["number", "per entry", "per sample"])
def test_e_is_a_constant_of_the_row(e) -> None:
    plan = Plan([Row(t=1.0, to=0.5, a=2.0, b={0: 1.0}, e=e), Row(t=0.5, to=0.0, a=0.0, b={0: 1.0}, e=e)], VP)
    x = randn(4, 3)
    first = 2 * x + model(x, 1.0) + e
    torch.testing.assert_close(unstir.sample(model, plan, x=x), model(first, 0.5) + e, rtol=1e-14, atol=1e-14)


def test_rows_without_a_call_only_move_the_state() -> None:
    """An initial stir, and one between two calls that reads history."""
    rows = [
        Row(t=0.6, to=0.8, a=0.9, c=0.3, evaluate=False),
        Row(t=0.8, to=0.5, a=0.5, b={0: 0.5}),
        Row(t=0.5, to=0.7, a=1.1, b={1: 0.1}, c=0.2, evaluate=False),
        Row(t=0.7, to=0.0, a=0.0, b={0: 0.8, 2: 0.2}),
    ]
    plan, x = Plan(rows, VP), randn(4, 3)
    noise = {0: randn(4, 3, seed=1), 2: randn(4, 3, seed=2)}
    calls = []

    def net(x, t):
        calls.append(t)
        return model(x, t)

    states = [step.x for step in unstir.steps(net, plan, x, noise=noise)]
    torch.testing.assert_close(states, by_hand(model, plan, x, noise), rtol=1e-13, atol=1e-13)
    assert calls == [0.8, 0.7]


def test_per_sample_coefficients_equal_separate_runs() -> None:
    """A start level per sample: tensor times and entries of shape (B, 1)."""
    starts = [1.0, 0.7, 0.4]
    plans = [unstir.plan("dpmpp-2m", VP, nfe=4, start=s, grid="uniform") for s in starts]

    def column(values) -> Tensor:
        return torch.tensor(values, dtype=F64)[:, None]

    rows = [
        Row(
            t=torch.tensor([r.t for r in each], dtype=F64),
            to=torch.tensor([r.to for r in each], dtype=F64),
            a=column([r.a for r in each]),
            b={lag: column([r.b[lag] for r in each]) for lag in each[0].b},
        )
        for each in zip(*plans, strict=True)
    ]
    joint, net, x = Plan(rows, VP), Denoiser(lambda x, t: torch.tanh(x * t[:, None]), VP, "velocity"), randn(3, 2)
    together = unstir.sample(net, joint, x=x)
    for i, plan in enumerate(plans):
        torch.testing.assert_close(together[i : i + 1], unstir.sample(net, plan, x=x[i : i + 1]), rtol=1e-12, atol=1e-12)
    # Its prior, too, has the level of each sample.
    start = next(unstir.steps(lambda x, t: x, Plan([dataclasses.replace(rows[0], a=1.0, b={})], VP), shape=(3, 2), dtype=F64)).x
    for i, s in enumerate(starts):
        same = next(unstir.steps(lambda x, t: x, Plan([Row(t=s, to=0.0, a=1.0)], VP), shape=(3, 2), dtype=F64)).x
        torch.testing.assert_close(start[i], same[i])


def test_row_keywords_reach_the_network() -> None:
    seen = []

    def net(x, t, skip=0, y=None):
        seen.append((skip, y))
        return x

    rows = [Row(t=1.0, to=0.5, a=0.5, b={0: 0.5}, kwargs={"skip": 3}), Row(t=0.5, to=0.0, a=0.0, b={0: 1.0})]
    unstir.sample(net, Plan(rows, VP), x=randn(2, 2), y="cat")
    assert seen == [(3, "cat"), (0, "cat")]


def test_steps_tell_the_whole_story() -> None:
    plan, x = unstir.plan("dpmpp-2m", VP, nfe=4), randn(2, 3)
    run = list(unstir.steps(model, plan, x))
    assert [(s.index, s.t, s.to) for s in run] == [(i, r.t, r.to) for i, r in enumerate(plan)]
    before = [x, *[s.x for s in run]]
    for s, state in zip(run, before, strict=False):
        torch.testing.assert_close(s.data, model(state, s.t))
    assert torch.equal(run[-1].x, unstir.sample(model, plan, x=x))
    seen = []
    unstir.sample(model, plan, x=x, on_step=lambda s: seen.append(s.index))
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("name", SOLVERS)
def test_only_needed_predictions_are_kept(name: str) -> None:
    """The window never holds more than the largest lag needs, and a finished run holds nothing."""
    plan = unstir.plan(name, VP, nfe=9)
    sizes = [len(step.state.history) for step in unstir.steps(model, plan, shape=(1, 2))]
    assert max(sizes) <= max(plan.history, 1)
    assert sizes[-1] == 0


# -- σ = 0 ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nfe", [1, 4])
def test_the_last_row_at_sigma_zero_returns_the_prediction(process: pr.Process, nfe: int) -> None:
    """Bitwise, in every method but those that extrapolate ε̂ in t or σ̂ up to σ = 0 (DEIS, LMS, PLMS, momentum)."""
    exact = {name: unstir.plan(name, process, nfe=nfe) for name in SOLVERS}
    extrapolates = {name for name, plan in exact.items() if plan[-1].p != 0}
    assert not extrapolates & set(FIRST)
    for name in set(exact) - extrapolates:
        *_, last = unstir.steps(model, exact[name], shape=(2, 3))
        assert torch.equal(last.x, last.data), name


# -- split ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SOLVERS)
def test_a_split_run_is_the_whole_run_bitwise(name: str) -> None:
    plan = unstir.plan(name, VP, nfe=8)
    whole = unstir.sample(model, plan, shape=(3, 2), seed=5)
    for cut in range(1, len(plan.rows)):
        if not plan[cut - 1].boundary:
            continue
        head, tail = plan.split(cut)
        state = unstir.sample(model, head, shape=(3, 2), seed=5, full=True)
        assert torch.equal(unstir.sample(model, tail, x=state), whole), cut
        assert torch.equal(unstir.sample(model, tail, x=state), whole), cut  # the state is not used up


def test_split_twice_and_through_files(tmp_path) -> None:
    plan = unstir.plan("dpmpp-3m-sde", VP, nfe=8)
    whole = unstir.sample(model, plan, shape=(3, 2), seed=5)
    head, rest = plan.split(3)
    middle, tail = rest.split(2)
    state = unstir.sample(model, head, shape=(3, 2), seed=5, full=True)
    state = unstir.sample(model, middle, x=state, full=True)
    assert torch.equal(unstir.sample(model, tail, x=state), whole)
    # The halves may travel as files to another machine.
    # FOUND: `keep` is not saved, so a loaded head throws away the history that the tail reads (KeyError in the tail).
    head, tail = (Plan.load(part.save(tmp_path / f"{i}.json")) for i, part in enumerate(plan.split(4)))
    state = unstir.sample(model, head, shape=(3, 2), seed=5, full=True)
    assert torch.equal(unstir.sample(model, tail, x=state), whole)


def test_a_tail_without_its_history_says_so() -> None:
    # FOUND: a bare KeyError(2).
    _, tail = unstir.plan("dpmpp-3m", VP, nfe=6).split(3)
    with pytest.raises(ValueError, match=r"history|State"):
        unstir.sample(model, tail, x=randn(2, 3))


# -- streams and threads ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    plan = unstir.plan(name, VP, nfe=6)
    eight = unstir.sample(model, plan, shape=(8, 3, 4), seed=11)
    for i in range(8):
        assert torch.equal(unstir.sample(model, plan, shape=(1, 3, 4), seed=11, index=[i])[0], eight[i])
    some = unstir.sample(model, plan, shape=(3, 3, 4), seed=11, index=[6, 1, 4])
    assert torch.equal(some, eight[[6, 1, 4]])
    assert len({tuple(x.flatten().tolist()) for x in eight}) == 8
    assert not torch.equal(unstir.sample(model, plan, shape=(8, 3, 4), seed=12), eight)
    seeds = unstir.sample(model, plan, shape=(2, 3, 4), seed=[11, 99])
    assert torch.equal(seeds[0], eight[0])  # a seed per sample: that sample's own picture number 0
    assert torch.equal(seeds[1], unstir.sample(model, plan, shape=(1, 3, 4), seed=99)[0])


def test_noise_is_white_across_samples_and_rows() -> None:
    """Streams of neighbouring seeds, samples and rows are unrelated (a bad hash would correlate them)."""
    rows = [Row(t=1.0, to=1.0, a=0.0, c=1.0, evaluate=False)] * 8
    z = []
    for seed in range(4):
        z += [s.x.flatten(1) for s in unstir.steps(model, Plan(rows, VP), shape=(8, 2000), seed=seed)]
    z = torch.cat(z)  # 4 seeds × 8 rows × 8 samples = 256 streams
    corr = torch.corrcoef(z)
    off = corr[~torch.eye(len(corr), dtype=torch.bool)]
    assert off.abs().max() < 6 / 2000**0.5
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float(z.std()) == pytest.approx(1, abs=0.01)


def test_eight_threads_share_one_plan_and_one_model() -> None:
    net = Denoiser(nn.Conv1d(3, 3, 3, padding=1).double(), VP, "velocity")
    net.network.forward = lambda x, t: nn.Conv1d.forward(net.network, x)  # Conv1d knows no time
    plan = unstir.plan("dpmpp-3m-sde", VP, nfe=12)

    def run(seed: int) -> Tensor:
        return unstir.sample(net, plan, shape=(4, 3, 8), seed=seed, dtype=F64)

    serial = [run(seed) for seed in range(24)]
    net._decoders.clear()
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(run, range(24)))
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))


def test_counts_of_threads_do_not_mix() -> None:
    net, plan = Denoiser(lambda x, t: x, VP, "data"), unstir.plan("heun", VP, nfe=9)
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda s: unstir.sample(net, plan, shape=(2, 2), seed=s, full=True), range(16)))
    assert {(s.calls.forward, s.calls.rows, s.calls.nested, s.calls.backward) for s in states} == {(9, 9, 0, 0)}


def test_work_between_steps_is_not_counted() -> None:
    net = Denoiser(lambda x, t: x, VP, "data")
    for step in unstir.steps(net, unstir.plan("ddim", VP, nfe=3), shape=(1, 2)):
        net(step.x, 0.5)
        assert step.state.calls.forward == step.index + 1


# -- supplied noise ------------------------------------------------------------------------------------
def test_noise_can_be_supplied() -> None:
    plan, x = unstir.plan("ddpm", VP, nfe=4), randn(3, 2)
    zs = {i: randn(3, 2, seed=i) for i in range(4)}
    mine = unstir.sample(model, plan, x=x, noise=zs)
    assert torch.equal(mine, unstir.sample(model, plan, x=x, noise=lambda i: zs[i]))
    assert not torch.equal(mine, unstir.sample(model, plan, x=x))
    # Encode and decode: z_i recovered from a run reproduces it (CycleDiffusion).
    z, state = {}, x
    for step in unstir.steps(model, plan, x, seed=4):
        if step.row.noisy:
            z[step.index] = (step.x - step.row.a * state - step.row.b[0] * step.data) / step.row.c
        state = step.x
    torch.testing.assert_close(unstir.sample(model, plan, x=x, noise=z), state, rtol=1e-10, atol=1e-10)


# -- gradients ------------------------------------------------------------------------------------------
def test_gradients_by_finite_differences() -> None:
    """With respect to the start state and to a coefficient of the table."""
    base, x0 = unstir.plan("dpmpp-2m", VP, nfe=4), randn(2, 3)

    def loss(x: Tensor, w, grad: bool = True) -> Tensor:
        plan = base.map_rows(lambda i, r: dataclasses.replace(r, b={**r.b, 1: w}) if i == 2 else r)
        return unstir.sample(model, plan, x=x, grad=grad).square().sum()

    x, w = x0.clone().requires_grad_(True), torch.tensor(base[2].b[1], dtype=F64, requires_grad=True)
    gx, gw = torch.autograd.grad(loss(x, w), (x, w))
    h = 1e-6
    slope_w = (loss(x0, w.item() + h, False) - loss(x0, w.item() - h, False)) / (2 * h)
    torch.testing.assert_close(gw, slope_w, rtol=1e-6, atol=1e-8)
    for i in range(x0.numel()):
        d = torch.zeros(6, dtype=F64)
        d[i] = h
        d = d.reshape(2, 3)
        slope = (loss(x0 + d, w.item(), False) - loss(x0 - d, w.item(), False)) / (2 * h)
        assert float(gx.flatten()[i]) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


def test_no_graph_unless_asked_and_the_callers_mode_is_his() -> None:
    x = randn(2, 3).requires_grad_(True)
    plan = unstir.plan("ddim", VP, nfe=3)
    assert not unstir.sample(model, plan, x=x).requires_grad
    for step in unstir.steps(model, plan, x):
        assert not step.x.requires_grad
        assert torch.is_grad_enabled()  # between the rows the caller's autograd is on


def test_the_start_is_not_written_to() -> None:
    for name in SAMPLES:
        x = randn(2, 3)
        unstir.sample(model, unstir.plan(name, VP, nfe=4), x=x)
        assert torch.equal(x, randn(2, 3))


# -- half precision -------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SAMPLES)
def test_half_precision_states_accumulate_in_float32(name: str, dtype: torch.dtype) -> None:
    plan, seen = unstir.plan(name, VP, nfe=20), set()

    def net(x, t):
        seen.add(x.dtype)
        return torch.tanh(x)

    half = unstir.sample(net, plan, shape=(16, 8), dtype=dtype)
    assert half.dtype == dtype
    assert seen == {dtype}  # the network is in half precision, only the state is not
    full = unstir.sample(net, plan, shape=(16, 8))
    eps = torch.finfo(dtype).eps
    assert float((half.float() - full).abs().max()) < 12 * eps  # 20 naive bf16 updates would lose more
    assert all(
        s.x.dtype == dtype and s.state.x.dtype == torch.float32 for s in unstir.steps(net, plan, shape=(2, 2), dtype=dtype)
    )


@pytest.mark.parametrize("name", ["dpmpp-3m", "dpmpp-2m-sde"])
def test_a_split_half_precision_run_is_the_whole_run(name: str) -> None:
    # FOUND: the tail takes the float32 state of the head for a float32 run: its network then sees float32.
    plan = unstir.plan(name, VP, nfe=6)
    whole = unstir.sample(model, plan, shape=(2, 3), dtype=torch.bfloat16)
    head, tail = plan.split(3)
    out = unstir.sample(model, tail, x=unstir.sample(model, head, shape=(2, 3), dtype=torch.bfloat16, full=True))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, whole)


# -- trouble ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bad", [0, 3, 5])
def test_a_non_finite_state_names_its_row(bad: int, value: float) -> None:
    plan = unstir.plan("dpmpp-2m", VP, nfe=6)

    def net(x, t):
        out = model(x, t)
        return out.masked_fill(torch.eye(*out.shape, dtype=torch.bool), value) if t == plan[bad].t else out

    with pytest.raises(NonFiniteError, match=f"row {bad} ") as caught:
        unstir.sample(net, plan, shape=(2, 3))
    assert caught.value.row == bad
    assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteError, match=f"row {bad} "):
        list(unstir.steps(net, plan, shape=(2, 3)))


def test_huge_but_finite_states_are_no_trouble() -> None:
    """A float32 sum of large finite entries may overflow; the state itself is fine."""
    # FOUND: the check looks at x.sum(), which overflows although every entry is finite.
    plan = Plan([Row(t=1.0, to=0.0, a=1.0)], VP)
    x = torch.full((4, 3), 3e38)
    assert torch.equal(unstir.sample(model, plan, x=x), x)


def test_inverse_infinities_do_not_hide() -> None:
    plan = unstir.plan("ddim", VP, nfe=2)
    with pytest.raises(NonFiniteError):
        unstir.sample(lambda x, t: torch.tensor([[float("inf"), -float("inf")]]), plan, shape=(1, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: unstir.sample(model, p), ValueError, "give shape="),
        (lambda p: unstir.sample(model, p, shape=()), ValueError, r"shape=\(\)"),
        (lambda p: unstir.sample(model, p, shape=(0, 2)), ValueError, "at least 1"),
        (lambda p: unstir.sample(model, p, shape=4), ValueError, "does not know its sample shape"),
        (lambda p: unstir.sample(model, p, shape="big"), TypeError, "shape='big'"),
        (lambda p: unstir.sample(model, p, x=[1, 2]), TypeError, "x is list"),
        (lambda p: unstir.sample(model, p, x=torch.zeros(2, 2, dtype=torch.int64)), TypeError, "floating point"),
        (lambda p: unstir.sample(model, p, x=torch.zeros(0, 2)), ValueError, "x has shape"),
        (lambda p: unstir.sample(model, p, x=torch.tensor(1.0)), ValueError, "x has shape"),
        (lambda p: unstir.sample(model, p, x=torch.tensor([float("nan")])), ValueError, "x contains NaN"),
        (lambda p: unstir.sample(model, p, shape=(2, 2), seed=[1]), ValueError, "seed has 1 entries for a batch of 2"),
        (lambda p: unstir.sample(model, p, shape=(2, 2), index=[1]), ValueError, "index has 1 entries"),
        (lambda p: unstir.sample(model, p, shape=(2, 2), executor="magic"), ValueError, "executor='magic'"),
        (lambda p: unstir.sample(model, p, shape=(2, 2), executor="compile"), TypeError, "torch.nn.Module"),
        (lambda p: unstir.sample(model, p, shape=(2, 2), nfe=5), ValueError, "nfe=5 has no effect"),
        (lambda p: unstir.sample(model, [p], shape=(2, 2)), TypeError, "plan is list"),
        (lambda p: unstir.sample(model, "ddim", shape=(2, 2)), TypeError, "has no process"),
        (lambda p: unstir.sample(model, shape=(2, 2), nfe=0), ValueError, "nfe=0"),
        (lambda p: unstir.sample(Gaussian(VP, 0.0, std=1.0), "ddim", shape=2, nfe=True), ValueError, "nfe=True"),
        (lambda p: unstir.sample(model, JointPlan({}), shape=(2, 2)), ValueError, "plans is empty"),
        (lambda p: unstir.steps(model, 7, shape=(2, 2)), TypeError, "plan is int"),  # at once, not at the first row
    ],
)
def test_bad_arguments_are_named(call, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call(unstir.plan("ddim", VP, nfe=2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [{"shape": (2, 3)}, {"x": torch.zeros(2, 3)}])
def test_the_graph_executor_needs_cuda(start: dict) -> None:
    net = Denoiser(nn.Identity(), VP)
    with pytest.raises(ValueError, match="executor='graph' needs a CUDA state") as caught:
        unstir.sample(net, unstir.plan("ddim", VP, nfe=2), executor="graph", **start)
    assert "\n" not in str(caught.value)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x) + t[:, None]))


@pytest.mark.slow
def test_the_compiled_executor_equals_the_eager_one() -> None:
    net, plan = Denoiser(Net(), VP, "velocity"), unstir.plan("dpmpp-2m-sde", VP, nfe=8)
    eager, compiled = (unstir.sample(net, plan, shape=(3, 4), executor=e) for e in ("eager", "compile"))
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)
    assert set(net.state_dict()) == {"network.a.weight", "network.a.bias", "network.b.weight", "network.b.bias"}


# -- plans by name ----------------------------------------------------------------------------------------
def test_a_model_brings_its_plans() -> None:
    net = Denoiser(Net(), VP, "velocity", shape=(4,))
    auto = unstir.sample(net, shape=2, nfe=6)
    assert torch.equal(auto, unstir.sample(net, unstir.plan("auto", VP, nfe=6), shape=(2, 4)))
    assert torch.equal(unstir.sample(net, "heun", shape=2, nfe=5), unstir.sample(net, unstir.plan("heun", net, nfe=5), shape=2))
    net.plans[6] = unstir.plan("ddim", VP, nfe=6)
    assert torch.equal(unstir.sample(net, shape=2, nfe=6), unstir.sample(net, net.plans[6], shape=2))


# -- row generators -----------------------------------------------------------------------------------------
class Generated:
    """DDIM as a generator of rows: it may look at the state before it decides on the next row."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.process, self.start, self.seen = plan, plan.process, plan.start, []

    def generate(self, state: State):
        for row in self.plan.rows:
            self.seen.append(state.x.clone())
            yield row


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "dpmpp-2m-sde", "heun"])
def test_a_row_generator_reproduces_a_plan_bitwise(name: str) -> None:
    plan = unstir.plan(name, VP, nfe=7)
    generator = Generated(plan)
    assert torch.equal(unstir.sample(model, generator, shape=(3, 2), seed=2), unstir.sample(model, plan, shape=(3, 2), seed=2))
    states = [s.x for s in unstir.steps(model, plan, shape=(3, 2), seed=2)]
    assert all(torch.equal(a, b) for a, b in zip(generator.seen[1:], states, strict=False))


def test_a_generator_decides_by_the_state() -> None:
    """Adaptive: halve the level until the state is small; an empty generator is refused."""

    class Until:
        process, start = VP, 1.0

        def generate(self, state: State):
            t = 1.0
            while float(state.x.abs().max()) > 1e-2:
                yield Row(t=t, to=t / 2, a=0.5)
                t /= 2

    run = list(unstir.steps(model, Until(), x=torch.ones(1, 1)))
    assert len(run) == 7
    assert float(run[-1].x) == 2**-7
    with pytest.raises(ValueError, match="no rows"):
        unstir.sample(model, Until(), x=torch.zeros(1, 1))


# -- dict states ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("names", [("dpmpp-2m", "ddim"), ("dpmpp-2m-sde", "ddpm"), ("heun", "heun")])
def test_dict_states_equal_separate_runs(names: tuple[str, str]) -> None:
    """Leaves with their own process, solver and shape; the model sees both but here does not mix them."""
    plans = {"image": unstir.plan(names[0], VP, nfe=5), "action": unstir.plan(names[1], FLOW, nfe=5)}
    x = {"image": randn(2, 3, 4), "action": randn(2, 5)}
    noise = {k: {i: randn(*v.shape, seed=10 * i + 1) for i in range(9)} for k, v in x.items()}
    times = []

    def joint(state, t):
        times.append(t)
        t = t if isinstance(t, dict) else dict.fromkeys(state, t)
        return {k: model(v, t[k]) for k, v in state.items()}

    out = unstir.sample(joint, plans, x=x, noise=lambda i: {k: v[i] for k, v in noise.items()})
    for k, plan in plans.items():
        assert torch.equal(out[k], unstir.sample(model, plan, x=x[k], noise=noise[k])), k
    assert times[0] == 1.0
    assert times[1]["image"] == plans["image"][1].t


def test_dict_states_have_streams_of_their_own() -> None:
    plans = {"a": unstir.plan("ddpm", VP, nfe=3), "b": unstir.plan("ddpm", VP, nfe=3)}
    shape = {"a": (3, 4), "b": (3, 4)}

    def net(state, t):
        return tree_map(torch.tanh, state)

    out = unstir.sample(net, plans, shape=shape, seed=3)
    assert not torch.equal(out["a"], out["b"])
    alone = unstir.sample(net, plans, shape={"a": (1, 4), "b": (1, 4)}, seed=3, index=[2])
    assert all(torch.equal(alone[k][0], out[k][2]) for k in out)
    one = unstir.sample(net, plans["a"], shape=shape, seed=3)  # one plan for all leaves
    assert all(torch.equal(one[k], out[k]) for k in out)


def test_joint_plans_must_fit() -> None:
    with pytest.raises(ValueError, match="must call the network in the same rows"):
        JointPlan({"a": unstir.plan("ddim", VP, nfe=3), "b": unstir.plan("ddim", VP, nfe=4)})
    plan = JointPlan({"a": unstir.plan("ddim", VP, nfe=3)})
    assert len(plan) == 3
    with pytest.raises(ValueError, match="leaves b; the plans are for a"):
        unstir.sample(lambda s, t: s, plan, x={"b": torch.zeros(1, 2)})


def test_non_finite_leaves_name_the_row() -> None:
    plans = {"a": unstir.plan("ddim", VP, nfe=3), "b": unstir.plan("ddim", VP, nfe=3)}
    with pytest.raises(NonFiniteError, match="row 1 "):
        unstir.sample(
            lambda s, t: {"a": s["a"], "b": s["b"] * (float("nan") if t < 0.99 else 1)}, plans, shape={"a": (1, 2), "b": (1, 2)}
        )


# -- anchored ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SAMPLES)
def test_anchored_processes_need_no_solver_of_their_own(anchored: pr.Process, name: str) -> None:
    """x − βy runs through the plain process; the user sees x, the network sees x and the anchor."""
    y, x = randn(3, 2, seed=9), randn(3, 2)
    plan, plain = unstir.plan(name, anchored, nfe=6), unstir.plan(name, VP, nfe=6)
    law = Gaussian(anchored, torch.zeros(2), std=0.5)

    class Sees(nn.Module):
        sees_anchor = True

        def forward(self, x, t, anchor):
            return law(x, t, anchor=anchor)

    run = list(unstir.steps(Sees(), plan, x, anchor=y, seed=1))
    u = x - float(anchored.beta(1.0)) * y
    base = list(unstir.steps(Gaussian(VP, torch.zeros(2), std=0.5), plain, u, seed=1))
    for a, b in zip(run, base, strict=True):
        torch.testing.assert_close(a.x, b.x + float(anchored.beta(a.to)) * y, rtol=1e-12, atol=1e-12)
    drawn = unstir.sample(Sees(), plan, shape=(3, 2), anchor=y, dtype=F64, seed=1)
    torch.testing.assert_close(drawn, unstir.sample(law_of(VP), plain, shape=(3, 2), dtype=F64, seed=1), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="pass anchor="):
        unstir.sample(Sees(), plan, shape=(3, 2))


def law_of(process: pr.Process) -> Gaussian:
    return Gaussian(process, torch.zeros(2), std=0.5)


# -- contracts that a plain callable or a caller can break ---------------------------------------------------
@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda x, t: None, "NoneType"),
        (lambda x, t: x[:, :1], r"\(2, 1\)"),
        (lambda x, t: x[0], r"\(3,\)"),
        (lambda x, t: (x, 1), "tuple"),
    ],
    ids=["nothing", "one column", "one sample", "tuple"],
)
def test_a_plain_callable_that_returns_something_else_is_named(net, words: str) -> None:
    # FOUND: None is silently taken for zeros (a weight of 1.0 makes `combine` start from None), a narrower tensor
    # broadcasts, and at σ = 0 the run returns the wrong shape. A `Denoiser` checks its network; the executor does not.
    with pytest.raises((TypeError, ValueError), match=words):
        unstir.sample(net, unstir.plan("ddim", VP, nfe=2), shape=(2, 3))


def test_a_state_can_be_used_twice() -> None:
    """The counter of the head goes on in the tail, in a copy: two tails from one state do not add up."""
    # FOUND: all three share one `Calls` (12, 12, 12).
    head, tail = unstir.plan("dpmpp-2m", VP, nfe=8).split(4)
    state = unstir.sample(model, head, shape=(1, 2), full=True)
    ends = [unstir.sample(model, tail, x=state, full=True) for _ in range(2)]
    assert [s.calls.rows for s in (state, *ends)] == [4, 8, 8]


@pytest.mark.parametrize("seed", [2.5, None, "ab", True])
def test_bad_seeds_are_named(seed) -> None:
    # FOUND: "'float' object is not iterable".
    with pytest.raises((TypeError, ValueError), match="seed"):
        unstir.sample(model, unstir.plan("ddim", VP, nfe=2), shape=(2, 3), seed=seed)


def test_numpy_integers_are_seeds() -> None:
    # FOUND: TypeError: 'numpy.int64' object is not iterable.
    plan = unstir.plan("ddim", VP, nfe=2)
    assert torch.equal(
        unstir.sample(model, plan, shape=(2, 3), seed=np.int64(3)), unstir.sample(model, plan, shape=(2, 3), seed=3)
    )


def test_a_plan_for_another_process_than_the_models() -> None:
    """Numbers of EDM on a VP network give rubbish (here 1e5); `model.on(process)` is what the user needs to hear of."""
    # FOUND: runs silently.
    net = Denoiser(lambda x, t: x, pr.EDM(), "noise")
    with pytest.raises(ValueError, match="process"):
        unstir.sample(net, unstir.plan("ddim", VP, nfe=3), shape=(1, 2))


@pytest.mark.parametrize(
    ("x", "plans", "words"),
    [
        ({"a": torch.zeros(2, 2)}, "ab", "leaf|leaves"),
        (torch.zeros(2, 2), "ab", "dict"),
        ({}, "ab", "empty|leaf|leaves"),
        ({"a": torch.zeros(2, 2), "b": torch.zeros(3, 2)}, "ab", "batch"),
    ],
    ids=["a leaf is missing", "no dict", "no leaves", "unequal batches"],
)
def test_dict_states_that_do_not_fit_are_named(x, plans: str, words: str) -> None:
    # FOUND: a missing leaf and unequal batches run silently; AttributeError and StopIteration for the others.
    with pytest.raises((TypeError, ValueError), match=words):
        unstir.sample(lambda s, t: s, {k: unstir.plan("ddim", VP, nfe=2) for k in plans}, x=x)


@pytest.mark.parametrize(
    "noise", [{0: torch.zeros(4, 2)}, {i: torch.zeros(4, 3) for i in range(3)}], ids=["row missing", "shape"]
)
def test_supplied_noise_that_does_not_fit_is_named(noise) -> None:
    # FOUND: KeyError(1), and torch's RuntimeError about broadcasting.
    with pytest.raises((TypeError, ValueError), match=r"noise.*row 1|noise.*shape"):
        unstir.sample(model, unstir.plan("ddpm", VP, nfe=3), shape=(4, 2), noise=noise)
