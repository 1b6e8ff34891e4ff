"""Particles against tilted mixtures, whose weights and means are known, and against the runs they are made from.

A mixture Σ w_m N(μ_m, s_m²) tilted by exp(b x) is Σ w_m exp(b μ_m + ½ b² s_m²) N(μ_m + b s_m², s_m²), with
log Z = log Σ w_m exp(b μ_m + ½ b² s_m²); tilted by a Gaussian likelihood it is a mixture too.
"""

from __future__ import annotations

import math
import warnings
from functools import cache

import numpy as np
import pytest
import torch

from unstir import steer
from unstir._random import sample_keys
from unstir.denoiser import Denoiser, Gaussian, GaussianMixture
from unstir.plan import sample
from unstir.process import EDM, VP, Flow
from unstir.solvers import compile_plan, plan
from unstir.steer.particles import particles
from unstir.steer.population import POTENTIALS, RESAMPLINGS, Population, ess, resample

PROCESSES = [VP(), EDM(), Flow()]
W, MU, S = ([0.5, 0.3, 0.2], [-1.0, 0.5, 2.0], [0.4, 0.3, 0.5])
TILT = 1.2
ROWS = 30


def mixture(process):
    return GaussianMixture(process, W, MU, torch.tensor(S, dtype=torch.float64) ** 2)


def tilted(b=TILT):
    """(weights, means, log Z) of the tilted mixture."""
    w, mu, s = (torch.tensor(v, dtype=torch.float64) for v in (W, MU, S))
    mass = w * torch.exp(b * mu + 0.5 * b**2 * s**2)
    return mass / mass.sum(), mu + b * s**2, float(mass.sum().log())


def linear(data):
    return data[:, 0]


def shares(x):
    """Posterior shares of the tilted components, averaged: an unbiased reading of the weights from samples."""
    weights, means, _ = tilted()
    each = torch.distributions.Normal(means, torch.tensor(S, dtype=torch.float64)).log_prob(x.reshape(-1, 1)).exp() * weights
    return each / each.sum(1, keepdim=True)


def run(process, rows=ROWS, n=16, k=64, solver="ancestral", **options):
    return particles(mixture(process), plan(solver, process, rows), linear, n, k, TILT, dtype=torch.float64, **options)


@cache
def drawn(process):
    """Values and probabilities of what the ancestral plan draws from the mixture, by quadrature row by row.

    Its steps are finite, so this is not quite the mixture; particles tilt what the plan draws.
    """
    model, z = mixture(process), torch.linspace(-7, 7, 800, dtype=torch.float64)[:, None]
    table = plan("ancestral", process, ROWS)
    x, p = float(process.sigma(1.0)) * z, torch.softmax(-0.5 * z**2, 0)
    for row in table.rows:
        mean = row.a * x + row.b[0] * model(x, row.t)
        if row.c == 0:
            return mean, p
        x = float((2 * process.alpha(row.to) ** 2 + process.sigma(row.to) ** 2).sqrt()) * z
        p = (torch.exp(-0.5 * ((x - mean.T) / row.c) ** 2) / row.c) @ p
        p = p / p.sum()
    raise AssertionError("the last row ends at the data")


# -- the oracle ----------------------------------------------------------------------------------------------------
def check(swarm, process, bias) -> None:
    """Shares of the components, mean and Z within 4 standard errors over the groups.

    bias: of a finite population, whose weights are normalised, and of the steps of a plan other than "ancestral".
    """
    x, p = drawn(process)
    n, w = len(swarm.x), swarm.log_weights.exp()
    tilt = p * torch.exp(TILT * x)
    z = (swarm.log_z - tilt.sum().log()).exp()  # unbiased in Z, not in log Z
    assert abs(float(z.mean()) - 1) < 4 * float(z.std()) / math.sqrt(n) + bias
    tilt = tilt / tilt.sum()
    for function in (lambda x: x, lambda x: shares(x)):
        found = (function(swarm.x.reshape(-1, 1)).reshape(*w.shape, -1) * w[..., None]).sum(1)
        truth = (function(x) * tilt).sum(0)
        error = 4 * found.std(0) / math.sqrt(n) + bias
        assert bool(((found.mean(0) - truth).abs() < error).all()), (found.mean(0), truth, error)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_64_particles_draw_the_tilted_mixture(process) -> None:
    check(run(process), process, bias=0.01)


@pytest.mark.parametrize("options", [
    {"potential": "max", "every": 10}, {"potential": "sum", "every": 10}, {"potential": "none"},
    {"resampling": "multinomial"}, {"resampling": "stratified", "threshold": 1.0},
], ids=["max", "sum", "none", "multinomial", "stratified"])  # fmt: skip
def test_so_they_do_with_every_potential_and_resampling(options) -> None:
    check(run(VP(), **options), VP(), bias=0.03)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", ["ancestral", "dpmpp-2m-sde"])
@pytest.mark.parametrize("proposal", ["plan", "gradient"])
def test_any_process_any_plan_with_and_without_gradient(process, solver, proposal) -> None:
    check(run(process, solver=solver, proposal=proposal, k=16), process, bias=0.04 if solver == "ancestral" else 0.15)


def test_steering_needs_fewer_particles_than_importance_sampling() -> None:
    """A far tilt: with 16 particles the population is near the target, the weighted prior is not."""
    process, b = VP(), 4.0
    table = plan("ancestral", process, ROWS)
    truth = (lambda w, m, _: float(w @ m))(*tilted(b))
    found = {}
    for name, options in {
        "steered": {}, "gradient": {"proposal": "gradient"}, "importance": {"potential": "none"},
    }.items():  # fmt: skip
        swarm = particles(mixture(process), table, linear, 12, 16, b, dtype=torch.float64, **options)
        found[name] = abs(float((swarm.x[..., 0] * swarm.log_weights.exp()).sum(1).mean()) - truth)
    assert found["steered"] < 0.5 * found["importance"]
    assert found["gradient"] < 0.5 * found["importance"]


def test_the_gradient_proposal_of_a_gaussian_has_even_weights() -> None:
    """With many rows the guided rows draw from the tilted Gaussian by themselves: nearly no weights, no resampling."""
    process = VP()
    model, table = Gaussian(process, torch.zeros(2, dtype=torch.float64), std=1.0), plan("ancestral", process, 80)

    def reward(data, t):  # log E[exp(b x0) | x_t] of N(0, 1): b D + ½ b² Var[x0 | x_t]; the optimal twist
        s2 = process.sigma(t) ** 2
        return data.sum(1) + 0.5 * 2 * s2 / (process.alpha(t) ** 2 + s2)

    swarm = particles(model, table, reward, 4, 32, proposal="gradient", dtype=torch.float64, threshold=0.0)
    plain = particles(model, table, reward, 4, 32, dtype=torch.float64, threshold=0.0)
    assert float(ess(swarm.log_weights).min()) > 28
    assert float(ess(plain.log_weights).max()) < 20
    torch.testing.assert_close(swarm.log_z, torch.full((4,), 1.0, dtype=torch.float64), rtol=0, atol=0.15)  # ½ ‖b‖²


def test_a_likelihood_that_knows_the_time_gives_the_gaussian_posterior() -> None:
    """y = x + n with x ~ N(0, 1): twisted with N(y; D, σ_y² + Var[x0 | x_t]), exact mean and standard deviation."""
    process, y, noise = EDM(), 1.0, 0.5
    model, table = Gaussian(process, torch.zeros(1, dtype=torch.float64), std=1.0), plan("ancestral", process, 40)

    def reward(data, t):
        ratio = process.noise_ratio(t) ** 2
        var = noise**2 + ratio / (1 + ratio)
        return -0.5 * (y - data[:, 0]) ** 2 / var - 0.5 * torch.log(var)

    swarm = particles(model, table, reward, 16, 64, proposal="gradient", dtype=torch.float64)
    w = swarm.log_weights.exp() / 16
    mean = float((w * swarm.x[..., 0]).sum())
    std = float((w * (swarm.x[..., 0] - mean) ** 2).sum().sqrt())
    gain = 1 / (1 + noise**2)
    assert mean == pytest.approx(gain * y, abs=0.05)
    assert std == pytest.approx(math.sqrt(1 - gain), abs=0.04)


# -- the population ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("potential", POTENTIALS)
def test_potentials_multiply_to_the_reward_of_the_end(potential) -> None:
    crowd = Population(sample_keys(6, 0), 3, 1.7, potential, threshold=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        crowd.weigh(torch.randn(6, generator=generator, dtype=torch.float64))
    end = torch.randn(6, generator=generator, dtype=torch.float64)
    crowd.finish(end)
    torch.testing.assert_close(crowd.log_weights.flatten(), 1.7 * end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_potentials_follow_the_ancestry(potential) -> None:
    """After resampling, log Π G and the running reward are those of the parents; all weights since then multiply up."""
    crowd = Population(sample_keys(8, 0), 4, 1.0, potential, threshold=1.0)
    rewards = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    history = torch.zeros(8, 0, dtype=torch.float64)
    for i, r in enumerate(rewards):
        history = torch.cat([history, r[:, None]], 1)
        crowd.weigh(r)
        perm = crowd.resample(i)
        history = history if perm is None else history[perm]
    known = {
        "difference": history[:, -1],
        "max": history.cummax(1).values.sum(1),
        "sum": history.cumsum(1).sum(1),
        "none": torch.zeros(8, dtype=torch.float64),
    }[potential]
    torch.testing.assert_close(crowd.log_potential.flatten(), known)


def test_potentials_by_hand() -> None:
    crowd = Population(sample_keys(2, 0), 2, 2.0, "max", threshold=0.0)
    for r in ([-1.0, -3.0], [-2.0, -1.0]):
        crowd.weigh(torch.tensor(r, dtype=torch.float64))
    assert crowd.log_weights.tolist() == [[2 * (-1 - 1), 2 * (-3 - 1)]]


def test_effective_sample_size() -> None:
    assert float(ess(torch.zeros(5))) == pytest.approx(5)
    assert float(ess(torch.tensor([0.0, -1e9, -1e9]))) == pytest.approx(1)
    assert float(ess(torch.tensor([1e4, 1e4, -1e9]))) == pytest.approx(2)  # nothing is exponentiated on the way


@pytest.mark.parametrize("method", RESAMPLINGS)
def test_parents_are_drawn_in_the_shares_of_their_weights(method) -> None:
    n, weights = 4000, torch.tensor([0.5, 0.05, 0.0, 0.15, 0.3], dtype=torch.float64)
    u = torch.rand(n, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parents = resample(weights.expand(n, 5), u, method)
    counts = torch.nn.functional.one_hot(parents, 5).sum(1).double()
    torch.testing.assert_close(counts.mean(0), 5 * weights, rtol=0, atol=0.08)
    assert float(counts[:, 2].max()) == 0
    if method == "systematic":
        assert bool((counts >= (5 * weights).floor()).all() and (counts <= (5 * weights).ceil()).all())
    spread = float(counts[:, 0].var())
    assert spread < 0.3 if method != "multinomial" else spread == pytest.approx(5 * 0.25, rel=0.1)


@pytest.mark.parametrize("method", ["systematic", "stratified"])
def test_even_weights_move_nobody(method) -> None:
    u = torch.rand(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(resample(torch.full((50, 7), 1 / 7, dtype=torch.float64), u, method), torch.arange(7).repeat(50, 1))


def test_groups_do_not_mix_and_only_poor_ones_are_resampled() -> None:
    crowd = Population(sample_keys(12, 0), 4)
    r = torch.zeros(12, dtype=torch.float64)
    r[4] = 50.0
    crowd.weigh(r)
    perm = crowd.resample(0)
    assert perm is not None
    assert perm.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 8, 9, 10, 11]
    assert crowd.resample(1) is None
    assert crowd.log_z.tolist() == pytest.approx([0.0, 50 - math.log(4), 0.0])


# -- runs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("k", "lam"), [(1, 5.0), (4, 0.0)])
@pytest.mark.parametrize("proposal", ["plan", "gradient"])
def test_one_particle_or_no_tilt_is_the_plain_plan(k, lam, proposal) -> None:
    process = VP()
    model, table = mixture(process), plan("ancestral", process, 12)
    swarm = particles(model, table, linear, 3, k, lam, threshold=1.0, dtype=torch.float64, seed=5)
    plain = sample(model, table, shape=(3 * k, 1), seed=5, dtype=torch.float64)
    assert torch.equal(swarm.x.reshape(-1, 1), plain)


def test_anchors_belong_to_groups(anchored) -> None:
    def network(x, t, anchor):
        return 0.5 * x + 0.1 * anchor

    model, y = (
        Denoiser(network, anchored, "data", sees_anchor=True, shape=(2,)),
        torch.tensor([[1.0, -1.0], [3.0, 0.0]]).double(),
    )
    table = plan("ancestral", anchored, 8)
    one = particles(model, table, linear, 2, 1, anchor=y, dtype=torch.float64)
    plain = sample(model, table, shape=(2, 2), anchor=y, dtype=torch.float64)
    torch.testing.assert_close(one.x[:, 0], plain)
    four = particles(model, table, linear, 2, 4, 0.0, anchor=y, dtype=torch.float64)
    assert torch.equal(four.rewards, four.x[..., 0])
    repeated = sample(model, table, shape=(8, 2), anchor=y.repeat_interleave(4, 0), dtype=torch.float64)
    torch.testing.assert_close(four.x.reshape(8, 2), repeated)


def test_a_group_depends_on_its_seed_and_index_only() -> None:
    whole = run(VP(), 12, n=5, k=8)
    part = run(VP(), 12, n=2, k=8, index=[3, 1])
    assert torch.equal(whole.x[[3, 1]], part.x)
    assert torch.equal(whole.log_weights[[3, 1]], part.log_weights)
    assert torch.equal(whole.x, run(VP(), 12, n=5, k=8).x)
    assert not torch.equal(whole.x, run(VP(), 12, n=5, k=8, seed=1).x)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_a_constant_added_to_the_reward_changes_only_log_z(potential) -> None:
    table, model = plan("ancestral", VP(), 12), mixture(VP())
    one = particles(model, table, linear, 3, 8, potential=potential, dtype=torch.float64)
    two = particles(model, table, lambda d: d[:, 0] - 100, 3, 8, potential=potential, dtype=torch.float64)
    torch.testing.assert_close(one.x, two.x)
    torch.testing.assert_close(one.log_z, two.log_z + 100)


@pytest.mark.parametrize("solver", ["ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde"])
def test_resampled_runs_go_on_as_the_permuted_batch(solver) -> None:
    """One resampling at row 5; then the copies, with state and history, run like a batch made by hand."""
    model, table = mixture(VP()), plan(solver, VP(), 12)
    row = next(i for i in range(5, 12) if table.rows[i].boundary)
    seen = {}

    class Watch:
        def on_mean(self, ctx, mean):
            if ctx.index == row:
                seen.update(mean=mean, history=dict(ctx.history))

    swarm = particles(
        model, table, linear, 2, 8, 8.0, start=row, stop=row + 1, threshold=1.0, hooks=[Watch()], dtype=torch.float64
    )
    assert swarm.origin.tolist() != [list(range(8))] * 2
    perm = (torch.arange(2)[:, None] * 8 + swarm.origin).flatten()

    class Force:
        def on_mean(self, ctx, mean):
            if ctx.index == row:
                ctx.permute(perm)
                return mean[perm]
            return None

    again = sample(model, table, shape=(16, 1), hooks=Force(), dtype=torch.float64)
    torch.testing.assert_close(swarm.x.reshape(16, 1), again, rtol=0, atol=0)
    assert seen["mean"].shape == (16, 1)


def test_memory_of_transforms_goes_with_the_particles() -> None:
    """APG keeps a momentum for one run: after a resampling the copies have their parent's."""
    process = VP()
    base = mixture(process)

    def network(x, t, shift):
        return base(x, t) + shift.reshape(-1, 1) * torch.tanh(x)

    model = Denoiser(network, process, "data", shape=(1,), meta={"null": {"shift": torch.zeros(())}})
    guided = steer.apg(model, 3.0, parallel=1.0)
    seen = []

    class Watch:
        def on_row(self, ctx, x):
            ((delta, _),) = ctx.run.memory.values()
            seen.append(delta.reshape(2, 4))

    table = plan("ancestral", process, 6)
    swarm = particles(
        guided, table, linear, 2, 4, 30.0, start=2, stop=3, threshold=1.0, hooks=[Watch()],
        shift=torch.tensor([0.3, 0.6]), dtype=torch.float64,
    )  # fmt: skip
    copies = swarm.origin[:, :, None] == swarm.origin[:, None, :]
    same = seen[2][:, :, None] == seen[2][:, None, :]
    assert torch.equal(copies, same)
    assert int(copies.sum()) > 8


def test_other_hooks_see_what_was_resampled() -> None:
    table, model = plan("ancestral", VP(), 8), mixture(VP())

    class Check:
        def on_row(self, ctx, x):
            torch.testing.assert_close(ctx.data, model(ctx.x, ctx.t))
            torch.testing.assert_close(ctx.mean, ctx.row.a * ctx.x + ctx.row.b[0] * ctx.data)

    particles(model, table, linear, 2, 8, 9.0, threshold=1.0, hooks=[Check()], dtype=torch.float64)


def test_conditions_belong_to_groups() -> None:
    process = VP()

    def network(x, t, mean):
        alpha, s2 = process.alpha(t).reshape(-1, 1), process.sigma(t).reshape(-1, 1) ** 2
        return (alpha * 0.01 * x + s2 * mean) / (alpha**2 * 0.01 + s2)

    model = Denoiser(network, process, "data", shape=(1,))
    means = torch.tensor([[-2.0], [0.0], [3.0]], dtype=torch.float64)
    swarm = particles(model, "ancestral", linear, 3, 4, nfe=20, mean=means, dtype=torch.float64)
    assert bool(((swarm.x - means[:, None]).abs() < 0.6).all())
    assert swarm.best.shape == swarm.draw().shape == (3, 1)
    assert torch.equal(swarm.best[:, 0], swarm.rewards.max(1).values)


@pytest.mark.parametrize(("proposal", "backward"), [("plan", 0), ("gradient", 1)])
@pytest.mark.parametrize(("solver", "rows"), [("ancestral", 10), ("dpmpp-sde", 11)])
def test_calls(proposal, backward, solver, rows) -> None:
    calls = run(VP(), rows, n=2, k=4, solver=solver, proposal=proposal).calls
    assert (calls.forward, calls.backward, calls.rows, calls.nested) == (rows, backward * rows, rows, 0)


@pytest.mark.parametrize(
    "reward",
    [
        lambda d: d[:, 0].tolist(),
        lambda d: d[:, 0].numpy().astype(np.float32),
        lambda d: [float(v) for v in d[:, 0]],
        lambda d, t: d[:, 0].round(decimals=12),
    ],
    ids=["list", "numpy", "floats", "rounded"],
)
def test_any_reward_is_good_for_plain_rows(reward) -> None:
    table, model = plan("ancestral", VP(), 12), mixture(VP())
    found = particles(model, table, reward, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(found.x, particles(model, table, linear, 3, 8, dtype=torch.float64).x)


# -- wrong input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda d: d[:, 0].detach(), "the reward has no gradient"),
        (lambda d: d[:, 0].tolist(), "the reward has no gradient"),
        (lambda d: d[:, 0].numpy(), "the reward leaves torch"),
        (lambda d: (d[:, 0] > 0).double(), "use proposal='plan'"),
    ],
    ids=["detached", "list", "numpy", "comparison"],
)
def test_a_gradient_needs_a_differentiable_reward(reward, message) -> None:
    with pytest.raises(ValueError, match=message):
        particles(mixture(VP()), plan("ancestral", VP(), 5), reward, 2, 4, proposal="gradient")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": lambda d: d}, r"shape \(8, 1\) for 8 predictions"),
        ({"reward": lambda d: d[:, 0] * math.nan}, "row 0: the reward is NaN or infinite for 8 of 8"),
        ({"reward": lambda d: d[:, 0].log().nan_to_num(-math.inf)}, "bound it"),
        ({"potential": "rt"}, "potential='rt' is unknown; one of difference, max"),
        ({"resampling": "residual"}, "resampling='residual'"),
        ({"proposal": "twisted"}, "proposal='twisted'"),
        ({"threshold": 1.5}, r"threshold=1.5 must lie in \[0, 1\]"),
        ({"lam": math.inf}, "lam=inf"),
        ({"k": 0}, "k=0"),
        ({"n": 1.5}, "n=1.5"),
        ({"every": 0}, "every=0"),
        ({"start": 4}, "start=4, stop=4 weigh no row of this plan of 5 rows"),
        ({"start": 3, "stop": 2}, "start=3, stop=2"),
        ({"shape": (2,)}, "sample shape"),
    ],
)
def test_wrong_arguments_are_named(options, message) -> None:
    given = {"reward": linear, "n": 2, "k": 4, **options}
    with pytest.raises(ValueError, match=message):
        particles(mixture(VP()), plan("ancestral", VP(), 5), **given)


def test_hooks_of_unknown_law_are_refused_with_gradients() -> None:
    with pytest.raises(ValueError, match="knows the law of its rows"):
        particles(mixture(VP()), plan("ancestral", VP(), 5), linear, 2, 4, proposal="gradient", hooks=[lambda ctx, x: None])


def test_a_deterministic_plan_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="plan 'ddim' adds no noise"):
        particles(mixture(VP()), plan("ddim", VP(), 5), linear, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles(mixture(VP()), plan("ancestral", VP(), 5), linear, 2, 4)
        particles(mixture(VP()), compile_plan("ddim", VP(), [0.9, 0.4, 0.0]), linear, 2, 1)
