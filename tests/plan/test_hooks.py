"""The steering contract (inverse-toolbox, E1–E10): hooks, the row context, what is carried when D changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import unstir
from unstir import process as pr
from unstir.denoiser import Denoiser
from unstir.plan import Plan, Row, Steered

VP, FLOW = pr.VP(), pr.Flow()
F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def model(x: Tensor, t) -> Tensor:
    return torch.tanh(x * (1 + torch.as_tensor(t, dtype=x.dtype)))


class Recorder:
    """Writes down everything it is told, in order."""

    def __init__(self, name: str, log: list, change=lambda ctx, x: None) -> None:
        self.name, self.log, self.change = name, log, change

    def start(self, ctx) -> None:
        self.log.append((self.name, "start", ctx.index))

    def on_mean(self, ctx, mean):
        self.log.append((self.name, "mean", ctx.index))

    def on_row(self, ctx, x):
        self.log.append((self.name, "row", ctx.index))
        return self.change(ctx, x)


def test_order_of_calls() -> None:
    log: list = []
    hooks = [Recorder("A", log), Recorder("B", log), lambda ctx, x: log.append(("f", "row", ctx.index))]
    unstir.sample(model, unstir.plan("ddpm", VP, nfe=2), shape=(1, 2), hooks=hooks)
    start = [("A", "start", 0), ("B", "start", 0)]
    row = [[("A", "mean", i), ("B", "mean", i), ("A", "row", i), ("B", "row", i), ("f", "row", i)] for i in (0, 1)]
    assert log == start + row[0] + row[1]


def test_each_hook_sees_the_last_ones_x_and_none_changes_nothing() -> None:
    seen = []
    hooks = [lambda ctx, x: x + 1, lambda ctx, x: None, lambda ctx, x: seen.append(x.clone())]
    plan = unstir.plan("ddim", VP, nfe=1)
    x = unstir.sample(model, plan, shape=(1, 2), hooks=hooks)
    assert torch.equal(x, unstir.sample(model, plan, shape=(1, 2)) + 1)
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-3m-sde", "dpm-3m", "ddpm"])
def test_a_hook_of_strength_zero_is_the_base_plan_bitwise(name: str) -> None:
    class Nothing:
        def on_mean(self, ctx, mean):
            return mean + 0.0 if ctx.std else None

        def on_row(self, ctx, x):
            return x * 1.0 if ctx.boundary else None

    def steered(x, t, ctx):
        data = model(x, t)
        return Steered(data, data, "data")

    plan = unstir.plan(name, VP, nfe=7)
    base = unstir.sample(model, plan, shape=(3, 2), seed=1)
    assert torch.equal(unstir.sample(model, plan, shape=(3, 2), seed=1, hooks=Nothing()), base)
    assert torch.equal(unstir.sample(steered, plan, shape=(3, 2), seed=1), base)


def test_on_mean_comes_before_the_noise_and_on_row_after() -> None:
    plan, z, x = unstir.plan("ddpm", VP, nfe=3), {i: randn(2, 3, seed=i) for i in range(3)}, randn(2, 3)

    class Look:
        def on_mean(self, ctx, mean):
            row = ctx.row
            torch.testing.assert_close(mean, row.a * ctx.x + row.b[0] * ctx.data)
            assert torch.equal(ctx.mean, mean)
            assert ctx.std == row.c
            self.mean = mean + 0.5
            return self.mean

        def on_row(self, ctx, state):
            torch.testing.assert_close(state, self.mean + ctx.std * z[ctx.index])

    unstir.sample(model, plan, x=x, noise=z, hooks=Look())


def test_the_context_knows_the_row() -> None:
    rows = [
        Row(t=0.9, to=0.4, a=0.5, b={0: 0.5}, boundary=False),
        Row(t=0.4, to=0.4, a=0.5, b={0: 0.5, 1: 0.1}),
        Row(t=0.4, to=0.7, a=0.9, c=0.3, evaluate=False),  # a jump up
        Row(t=0.7, to=0.0, a=0.0, b={0: 1.0}),
    ]
    plan, seen = Plan(rows, VP), []

    def net(x, t, ctx):
        assert ctx.data is None
        assert torch.equal(ctx.x, x)
        return model(x, t)

    def hook(ctx, x):
        assert ctx.plan is plan
        assert ctx.row is plan[ctx.index]
        seen.append((ctx.index, ctx.t, ctx.to, ctx.first, ctx.last, ctx.boundary, ctx.jump, ctx.std, ctx.calls.rows))

    unstir.sample(net, plan, shape=(2, 3), hooks=hook)
    assert seen == [
        (0, 0.9, 0.4, True, False, False, False, 0.0, 1),
        (1, 0.4, 0.4, False, False, True, False, 0.0, 2),
        (2, 0.4, 0.7, False, False, True, True, 0.3, 2),
        (3, 0.7, 0.0, False, True, True, False, 0.0, 3),
    ]


def test_only_those_who_ask_get_the_context() -> None:
    plan = unstir.plan("ddim", VP, nfe=2)

    class Asks(torch.nn.Module):
        def forward(self, x, t, ctx=None):
            assert ctx is not None
            return x

    class Swallows(torch.nn.Module):
        def forward(self, x, t, **cond):
            assert not cond
            return x

    unstir.sample(Asks(), plan, shape=(1, 2))
    unstir.sample(Swallows(), plan, shape=(1, 2))


@pytest.mark.parametrize("name", ["heun", "etd-4", "dpmpp-3s"])
def test_an_inner_stage_may_be_seen_but_not_edited(name: str) -> None:
    if name not in unstir.solvers.SOLVERS:
        pytest.skip(f"no {name} yet")
    plan, inner = unstir.plan(name, VP, nfe=9), []
    unstir.sample(model, plan, shape=(1, 2), hooks=lambda ctx, x: inner.append(ctx.boundary))
    assert inner == [row.boundary for row in plan]
    first = inner.index(False)
    with pytest.raises(ValueError, match=f"row {first} leads to an inner stage"):
        unstir.sample(model, plan, shape=(1, 2), hooks=lambda ctx, x: x + 1)
    unstir.sample(model, plan, shape=(1, 2), hooks=lambda ctx, x: x + 1 if ctx.boundary else None)


def test_an_edit_of_a_mean_at_an_inner_stage_is_refused_too() -> None:
    """on_mean edits the same X: at an inner stage it would move the eliminated base state of the step."""

    class Edit:
        def on_mean(self, ctx, mean):
            return mean + 1

    # FOUND: only on_row is guarded.
    with pytest.raises(ValueError, match="inner stage"):
        unstir.sample(model, unstir.plan("heun", VP, nfe=3), shape=(1, 2), hooks=Edit())


def test_hook_state_lives_for_one_run_and_is_permuted_with_the_particles() -> None:
    """E4: weights and history follow resampled particles; the noise streams stay with the places."""
    plan, perm = unstir.plan("dpmpp-3m", VP, nfe=6), torch.tensor([2, 0, 2, 1])

    class Weights:
        def start(self, ctx):
            self.owner = torch.arange(len(ctx.x))

        def index(self, perm):
            self.owner = self.owner[perm]

        def on_row(self, ctx, x):
            if ctx.index == 2:
                before = {i: f.clone() for i, f in ctx.history.items()}
                ctx.permute(perm)
                assert all(torch.equal(ctx.history[i], f[perm]) for i, f in before.items())
                return x[perm]
            return None

    hook, x = Weights(), randn(4, 3)
    out = unstir.sample(model, plan, x=x, hooks=hook)
    assert torch.equal(hook.owner, perm)
    # A deterministic plan: each particle ends where its ancestor ends. Without permuted history it would not.
    torch.testing.assert_close(out, unstir.sample(model, plan, x=x)[perm], rtol=0, atol=0)
    assert torch.equal(unstir.sample(model, plan, x=x, hooks=hook), out)  # start() made a new state


def test_forgetting_the_history_makes_the_next_row_first_order() -> None:
    plan, x = unstir.plan("dpmpp-2m", VP, nfe=4), randn(2, 3)
    out = [s.x for s in unstir.steps(model, plan, x, hooks=lambda ctx, x: ctx.reset_history() if ctx.index == 1 else None)]
    usual = [s.x for s in unstir.steps(model, plan, x)]
    assert torch.equal(out[1], usual[1])
    # "as if the past had been constant": row 2 then sees F_1 in place of all the past.
    row, f1 = plan[2], model(usual[0], plan[1].t)
    torch.testing.assert_close(out[2], row.a * usual[1] + row.b[0] * model(usual[1], row.t) + row.b[1] * f1, rtol=1e-13, atol=0)


def test_forgetting_reaches_behind_the_newest_prediction() -> None:
    plan, x = unstir.plan("dpmpp-3m", VP, nfe=5), randn(2, 3)
    run = list(unstir.steps(model, plan, x, hooks=lambda ctx, x: ctx.reset_history() if ctx.index == 2 else None))
    row, f = plan[3], run[2].data
    expected = row.a * run[2].x + row.b[0] * run[3].data + (row.b[1] + row.b[2]) * f
    torch.testing.assert_close(run[3].x, expected, rtol=1e-13, atol=1e-13)


# -- carry (E5) -----------------------------------------------------------------------------------------------
def changed(carry: str, delta: Tensor, only: int | None = None):
    def net(x, t, ctx):
        base = model(x, t)
        return Steered(base + delta if only is None or ctx.index == only else base, base, carry)

    return net


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "dpmpp-3m", "dpm-3m", "ddpm", "heun"])
@pytest.mark.parametrize("carry", ["data", "noise", "velocity"])
@pytest.mark.parametrize("process", [VP, FLOW], ids=["VP", "Flow"])
def test_the_shift_of_a_row_is_what_the_carry_says(process: pr.Process, carry: str, name: str) -> None:
    """X' − X'(D) = B (D' − D), α' (D' − D) or D' − D: the noise estimate recomputed, kept, the velocity kept."""
    plan, x, delta = unstir.plan(name, process, nfe=5, start=0.95), randn(2, 3), randn(2, 3, seed=1)
    zs = {i: randn(2, 3, seed=i) for i in range(5)}
    for at in range(4):
        base = [s.x for s in unstir.steps(model, plan, x, noise=zs)]
        moved = [s.x for s in unstir.steps(changed(carry, delta, at), plan, x, noise=zs)]
        shift = {"data": plan[at].gain, "noise": float(process.alpha(plan[at].to)), "velocity": 1.0}[carry]
        torch.testing.assert_close(moved[at] - base[at], shift * delta, rtol=1e-11, atol=1e-12)
        assert all(torch.equal(a, b) for a, b in zip(moved[:at], base[:at], strict=True))


def test_carry_noise_in_a_ddim_row_is_cfg_plus_plus() -> None:
    """X' = α' D' + σ' ε̂ with ε̂ = (X − αD)/σ of the unsteered D: the published update, written out."""
    plan, x, delta = unstir.plan("ddim", VP, nfe=4), randn(2, 3), randn(2, 3, seed=1)
    for step in unstir.steps(changed("noise", delta), plan, x):
        (a, s), (a2, s2) = ((float(VP.alpha(t)), float(VP.sigma(t))) for t in (step.t, step.to))
        data = model(x, step.t)
        torch.testing.assert_close(step.x, a2 * (data + delta) + s2 * (x - a * data) / s, rtol=1e-12, atol=1e-12)
        x = step.x


def test_carry_velocity_in_a_flow_row() -> None:
    """The Euler step with the unsteered velocity, moved by the change of D."""
    plan, x, delta = unstir.plan("euler", FLOW, nfe=4, grid="uniform"), randn(2, 3), randn(2, 3, seed=1)
    for step in unstir.steps(changed("velocity", delta), plan, x):
        velocity = (x - model(x, step.t)) / step.t
        torch.testing.assert_close(step.x, x + (step.to - step.t) * velocity + delta, rtol=1e-12, atol=1e-12)
        x = step.x


@pytest.mark.parametrize(("carry", "kept"), [("data", 1.0), ("noise", 1.0), ("velocity", 0.0)])
@pytest.mark.parametrize("name", ["dpmpp-2m", "dpm-2m"])
def test_what_the_history_remembers(name: str, carry: str, kept: float) -> None:
    """D' for "data" and "noise", D for "velocity"; in noise form F is made from it."""
    plan, x, delta = unstir.plan(name, VP, nfe=5), randn(2, 3), randn(2, 3, seed=1)
    state, row = x, plan[0]
    step = next(unstir.steps(changed(carry, delta), plan, x))
    expected = row.p * state + row.q * (model(state, row.t) + kept * delta)
    torch.testing.assert_close(step.state.history[0], expected, rtol=1e-13, atol=1e-13)


def test_the_prediction_that_a_step_shows_is_the_steered_one() -> None:
    """step.data and ctx.data are for previews and losses: D', not the auxiliary D'' that makes the row come out right."""
    # FOUND: with carry="noise" or "velocity" they are D'' = D + (shift/B)(D' − D).
    delta, x, seen = randn(2, 3, seed=1), randn(2, 3), []
    plan = unstir.plan("ddim", VP, nfe=3)
    step = next(unstir.steps(changed("noise", delta), plan, x, hooks=lambda ctx, x: seen.append(ctx.data)))
    torch.testing.assert_close(step.data, model(x, 1.0) + delta)
    torch.testing.assert_close(seen[0], model(x, 1.0) + delta)


def test_bad_carries_are_named() -> None:
    plan = unstir.plan("ddim", VP, nfe=2)
    with pytest.raises(ValueError, match="carry='magic' is unknown"):
        unstir.sample(changed("magic", torch.zeros(1)), plan, shape=(1, 2))
    blind = Plan([Row(t=1.0, to=0.5, a=0.5, b={0: 0.5}), Row(t=0.5, to=0.1, a=0.5, b={1: 0.5})], VP)
    with pytest.raises(ValueError, match="needs a row that uses its own prediction"):
        unstir.sample(changed("noise", torch.zeros(1)), blind, shape=(1, 2))


def test_carry_with_per_sample_coefficients() -> None:
    """Each sample's shift is its own α'."""
    to = torch.tensor([0.5, 0.2], dtype=F64)
    a, b = torch.tensor([[0.5], [0.3]], dtype=F64), torch.tensor([[0.4], [0.6]], dtype=F64)
    # FOUND: `float(process.alpha(row.to))` of a (B,) tensor: "only one element tensors can be converted".
    plan = Plan([Row(t=torch.ones(2, dtype=F64), to=to, a=a, b={0: b})], VP)
    x, delta = randn(2, 3), randn(2, 3, seed=1)

    def base_model(x, t):
        return torch.tanh(x)

    base = unstir.sample(base_model, plan, x=x)
    moved = unstir.sample(lambda x, t: Steered(base_model(x, t) + delta, base_model(x, t), "noise"), plan, x=x)
    torch.testing.assert_close(moved - base, VP.alpha(to)[:, None] * delta, rtol=1e-12, atol=1e-12)


def test_carry_in_half_precision_is_computed_in_float32() -> None:
    """The shift of the row is exact up to float32, as is everything else in a half-precision run."""
    # FOUND: a Steered result is not cast to float32, so D'' is formed, and rounded, in bfloat16.
    plan, kept = unstir.plan("dpmpp-2m", VP, nfe=5), {}

    def steered(x, t):
        base = torch.tanh(x)
        kept["D"], kept["D'"] = base.float(), (base * 1.25).float()
        return Steered(base * 1.25, base, "noise")

    state = x = randn(4, 8).bfloat16().float()
    for step in unstir.steps(steered, plan, x.bfloat16()):
        now, row = step.state, step.row
        if step.index == 0:
            shift = float(VP.alpha(step.to)) * (kept["D'"] - kept["D"])
            torch.testing.assert_close(now.x, row.a * state + row.b[0] * kept["D"] + shift, rtol=1e-5, atol=1e-6)
        assert all(f.dtype == torch.float32 for f in now.history.values())


@pytest.mark.parametrize("carry", ["data", "noise", "velocity"])
def test_carry_on_dict_states(carry: str) -> None:
    """Every leaf has its own row, gain and α'."""
    # FOUND: AttributeError: with a JointPlan `process` is None; and `carried` does not map over leaves.
    plans = {"a": unstir.plan("ddim", VP, nfe=2), "b": unstir.plan("dpmpp-2m", FLOW, nfe=2, start=0.9)}
    x, delta = {"a": randn(2, 3), "b": randn(2, 4)}, {"a": randn(2, 3, seed=1), "b": randn(2, 4, seed=1)}

    def base(state, t):
        return {k: torch.tanh(v) for k, v in state.items()}

    def net(state, t):
        data = base(state, t)
        return Steered({k: data[k] + delta[k] for k in data}, data, carry)

    plain, moved = (next(unstir.steps(m, plans, x)).x for m in (base, net))
    for k, plan in plans.items():
        shift = {"data": plan[0].gain, "noise": float(plan.process.alpha(plan[0].to)), "velocity": 1.0}[carry]
        torch.testing.assert_close(moved[k] - plain[k], shift * delta[k], rtol=1e-10, atol=1e-11)


# -- E7, E9 ----------------------------------------------------------------------------------------------------
def test_transforms_may_enable_gradients_inside_a_run() -> None:
    """E7: no inference mode, so guidance by gradients works although the run keeps no graph."""

    def guided(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            data = model(x, t)
            (g,) = torch.autograd.grad(data.square().sum(), x)
        return (data - 0.1 * g).detach()

    out = unstir.sample(guided, unstir.plan("ddim", VP, nfe=3), shape=(2, 3))
    assert not out.requires_grad


def test_a_langevin_row_is_static() -> None:
    """E9: ‖s‖ replaced by √n/σ̂ gives X' = (1 − 2r²) X + 2r² D + 2 r σ̂ z; on exact Gaussian data it keeps the law."""
    edm, r, t = pr.EDM(), 0.16, 0.01
    sig, s = 80 * t, 1.3
    gain = s**2 / (s**2 + sig**2)
    plan = Plan([Row(t=t, to=t, a=1 - 2 * r * r, b={0: 2 * r * r}, c=2 * r * sig)] * 800, edm)
    mean, std = plan.propagate(gain, x_mean=3.0, x_std=9.0)[-1]
    assert mean == pytest.approx(0, abs=1e-2)
    assert std == pytest.approx((s**2 + sig**2) ** 0.5, rel=0.05)  # up to the step's own bias O(r²)


def test_replaced_rows_drop_the_recipe() -> None:
    plan = unstir.plan("ddim", VP, nfe=3)
    with pytest.raises(ValueError, match="cannot be compiled again"):
        plan.map_rows(lambda i, r: dataclasses.replace(r, c=0.1)).tail(0.5)


def test_counts_inside_hooks() -> None:
    """Nested calls that a hook makes belong to the run."""
    net = Denoiser(model, VP, "data")
    state = unstir.sample(net, unstir.plan("ddim", VP, nfe=3), shape=(1, 2), hooks=lambda ctx, x: net(x, 0.5), full=True)
    assert (state.calls.rows, state.calls.forward, state.calls.nested) == (3, 6, 3)
