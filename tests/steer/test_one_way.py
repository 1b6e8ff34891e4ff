"""Cyclic one-way diffusion: what is imposed is there, levels stay in their range, limits are what they should be."""

from __future__ import annotations

import warnings

import pytest
import torch

from unstir.denoiser import Denoiser, Gaussian, GaussianMixture
from unstir.plan import sample
from unstir.process import EDM, VP, Flow
from unstir.steer import Impose, one_way, one_way_plan
from unstir.steer.editing import vp_times
from unstir.steer.one_way import climb

PROCESSES = [VP(), EDM(), Flow()]
MASK = torch.tensor([True, True, False, False, False])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(process, rho=0.9):
    """A Gaussian in which every value tells of every other."""
    return Gaussian(process, torch.zeros(5, dtype=torch.float64), (1 - rho) * torch.eye(5) + rho * torch.ones(5, 5))


def test_the_plan_of_the_paper() -> None:
    """N = 10: 5 ↑ 7 ● ↓ 6 ● ↓ 5 ●, ten times; then ↓ 4 ● ↓ 3 ↓ 2 ↓ 1 ↓ 0."""
    table = one_way_plan(VP(), 10)
    assert table.start == 5
    assert len(table.plan) == 10 * 2 + 5
    jumps = [row for row in table.plan.rows if not row.evaluate]
    assert len(jumps) == 10
    levels = [round(float(row.to) * 10) for row in table.plan.rows]
    assert levels == [7, 6, 5] * 10 + [4, 3, 2, 1, 0]
    assert table.imposed == {**{i: (7, 6, 5)[i % 3] for i in range(30)}, 30: 4}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", ["ddim", "sde", "dpmpp-2m-sde"])
@pytest.mark.parametrize("cycles", [0, 1, 3])
def test_levels_and_calls(process, solver, cycles) -> None:
    table = one_way_plan(process, 20, (0.5, 0.7, 0.4), cycles, solver=solver)
    low, high = table.times[10], table.times[14]
    ends = [row.to for row in table.plan.rows]
    assert all(low - 1e-12 <= t <= high + 1e-12 for t in ends[: cycles * 5])
    assert len(table.plan) == cycles * 4 + 10
    assert [table.times[level] for level in table.imposed.values()] == [ends[row] for row in table.imposed]
    state = sample(correlated(process), table.plan, x=randn(3, 5), full=True)
    assert state.calls.forward == len(table.plan)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_jump_keeps_the_law_of_gaussian_data(process) -> None:
    jump = one_way_plan(process, 20, cycles=1).plan.rows[0]
    assert jump.a * float(process.alpha(jump.t)) == pytest.approx(float(process.alpha(jump.to)))
    assert (jump.a * float(process.sigma(jump.t))) ** 2 + jump.c**2 == pytest.approx(float(process.sigma(jump.to)) ** 2)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m-sde"])
def test_the_region_is_imposed_and_the_outside_learns_of_it(process, solver) -> None:
    model, x0 = correlated(process), 1.5 + 0.1 * randn(40, 5)
    seen = {}

    class Watch(Impose):
        def on_row(self, ctx, x):
            out = super().on_row(ctx, x)
            if out is not None:
                seen[ctx.index] = (out, self.references[ctx.index])
            return out

    table = one_way_plan(process, 20, cycles=5, solver=solver)
    known = climb(model, process, table.times, torch.where(MASK, x0, 0.0))
    hook = Watch(MASK, {row: known[level] for row, level in table.imposed.items()})
    sample(model, table.plan, x=known[table.start], hooks=hook)
    assert set(seen) == set(table.imposed)
    assert all(torch.equal(x[:, MASK], reference[:, MASK]) for x, reference in seen.values())

    cycled = [one_way(model, x0, MASK, cycles=n, levels=(0.5, 0.7, 0.1), solver=solver) for n in (0, 10)]
    assert float((cycled[1] - x0)[:, MASK].abs().mean()) < 0.45
    # The region (1.5, 1.5) says 1.42 of the rest; from the grey canvas alone the rest stays grey.
    assert float(cycled[0][:, ~MASK].mean()) < 0.3
    assert 1.1 < float(cycled[1][:, ~MASK].mean()) < 1.8


def test_the_same_on_every_process() -> None:
    x0 = randn(4, 5)
    one = one_way(correlated(VP()), x0, MASK, cycles=2)
    for process in PROCESSES[1:]:
        torch.testing.assert_close(one_way(correlated(process), x0, MASK, cycles=2), one, rtol=0, atol=1e-8)


def test_everything_imposed_is_the_seed_and_nothing_imposed_is_sampling_from_the_canvas() -> None:
    model, x0 = correlated(VP()), randn(6, 5)
    whole = one_way(model, x0, torch.ones(5, dtype=torch.bool), cycles=2, nfe=200, eta=(1.0, 0.0))
    torch.testing.assert_close(whole, x0, rtol=0, atol=0.1)
    none = one_way(model, x0, torch.zeros(5, dtype=torch.bool), canvas=x0, cycles=2)
    table = one_way_plan(VP(), 20, cycles=2)
    start = climb(model, VP(), table.times[:11], x0)[-1]
    plain = sample(model, table.plan, x=start) / float(VP().alpha(table.plan.end))
    torch.testing.assert_close(none, plain)


def test_without_cycles_and_noise_it_is_a_ddim_round_trip() -> None:
    model, x0 = correlated(VP(), 0.5), randn(6, 5)
    errors = []
    for n in (50, 200):
        back = one_way(model, x0, torch.zeros(5, dtype=torch.bool), canvas=x0, cycles=0, nfe=n, eta=(0.0, 0.0))
        errors.append(float((back - x0).abs().max()))
    assert errors[1] < 0.35 * errors[0] < 0.1


def test_climbing_stores_every_level() -> None:
    model, times = correlated(EDM()), vp_times(EDM(), torch.tensor([0.01, 0.1, 0.2], dtype=torch.float64))
    states = climb(model, EDM(), times, randn(2, 5))
    assert len(states) == 3
    x, (t, to) = states[0], times[:2]
    ratio = float(EDM().sigma(to) / EDM().sigma(t))
    torch.testing.assert_close(states[1], ratio * x + (1 - ratio) * model(x, t))


@pytest.mark.parametrize("cycles", [0, 3])
def test_calls_of_the_whole(cycles) -> None:
    counts = {"up": 0, "down": 0}
    base = GaussianMixture(VP(), [1.0, 1.0], randn(2, 5), 0.1)

    def counted(where):
        def network(x, t):
            counts[where] += 1
            return base(x, t)

        return Denoiser(network, VP(), "data", shape=(5,))

    one_way(counted("up"), randn(2, 5), MASK, cycles=cycles, into=counted("down"))
    assert counts == {"up": 14 + 10, "down": cycles * 4 + 10}


def test_references_are_permuted_with_particles() -> None:
    hook = Impose(MASK, {0: randn(3, 5), 1: randn(1, 5)})
    before = dict(hook.references)
    hook.index(torch.tensor([2, 2, 0]))
    assert torch.equal(hook.references[0], before[0][[2, 2, 0]])
    assert torch.equal(hook.references[1], before[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (0.7, 0.5, 0.4)}, "t_1 < t_2"),
        ({"levels": (0.5, 0.7, 0.6)}, "t_f ≤ t_1"),
        ({"levels": (0.5, 0.52, 0.4)}, "are the levels 10, 10, 8 of 20"),
        ({"levels": (0.5, 1.2, 0.4)}, "levels="),
        ({"nfe": 1}, "nfe=1"),
        ({"cycles": -1}, "cycles=-1"),
        ({"solver": "unipc"}, "no option 'eta'"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, "mask has shape"),
        ({"canvas": torch.ones(2, 2, 5)}, "canvas has shape"),
    ],
)
def test_wrong_arguments_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        one_way(correlated(VP()), randn(2, 5), **{"mask": MASK, **options})


def test_masks_are_boolean_and_idle_cycles_are_warned_of() -> None:
    with pytest.raises(TypeError, match="give a boolean tensor"):
        one_way(correlated(VP()), randn(2, 5), MASK.double())
    with pytest.warns(UserWarning, match="every one of the 10 cycles is alike"):
        one_way_plan(VP(), eta=(0.0, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_way_plan(VP())
