"""Parts of the restoring systems: what their baselines and compositions do, on data whose answer is known."""

import pytest
import torch

import unstir
from unstir.denoiser import Denoiser, Gaussian
from unstir.process import VP, Flow
from unstir.steer import operators, repaint_plan
from unstir.systems import _restore, flowchef, optimal_bc_sr, steered_diffusion

torch.set_num_threads(1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tasks_measure_held_out_digits() -> None:
    made = _restore.tasks(5, (0.0, 0.1))
    assert [(t.name, t.noise) for t in made] == [("box", 0.0), ("sr", 0.0), ("box", 0.1), ("sr", 0.1)]
    for task in made[:2]:
        torch.testing.assert_close(task.operator.A(task.pinv), task.y, rtol=1e-5, atol=1e-5)
    assert int((_restore.box() == 0).sum()) == 16
    assert _restore.psnr(torch.zeros(1, 4), torch.full((1, 4), 0.2)) == pytest.approx(20.0)
    levels = [float(VP().noise_ratio(t)) for t in _restore.steep(VP(), 10).times]
    assert levels[0] == pytest.approx(7.0)
    assert levels[-2:] == [pytest.approx(0.02), 0.0]
    assert len(_restore.steep(VP(), 10)) == 10


def test_the_true_gradient_of_a_gaussian_is_the_skipped_one_times_its_jacobian() -> None:
    flow, shape = Flow(), (1, 4, 4)
    model, operator = Gaussian(flow, torch.zeros(shape), 0.5), operators.average_pool(2)
    x, y, t = randn(2, *shape), randn(2, 1, 2, 2, seed=1), 0.4
    out = flowchef.through(model, operator, y, 0.1)(x, t)
    wanted = operator.A_adjoint(operator.A(model(x, t)) - y)
    jacobian = (1 - t) * 0.5 / ((1 - t) ** 2 * 0.5 + t**2)
    torch.testing.assert_close(out.base - out.data, 0.1 * jacobian * wanted)


def test_edit_keeps_what_it_is_told_and_guides_the_rest() -> None:
    """Two classes that are two points: the region becomes the wanted one, the rest stays the reference."""
    points = torch.stack([torch.full((1, 4, 4), v) for v in (-0.5, 0.5)]).double()
    model = Denoiser(lambda x, t, label: points[label], Flow(), "data", shape=(1, 4, 4))
    region = torch.zeros(4, 4).double()
    region[:, 2:] = 1
    reference = 0.3 * randn(3, 1, 4, 4)
    zero, one = ({"label": torch.full((3,), k)} for k in (0, 1))
    # The last row is free; with so strong a pull the one before it has reached the reference.
    post = flowchef.edit(model, reference, region, zero, one, scale=0.0, step=0.5, inner=6)
    states = [s.x for s in unstir.steps(post, flowchef.euler(8), randn(3, 1, 4, 4, seed=2))]
    torch.testing.assert_close(states[-1], points[1].expand(3, 1, 4, 4))
    strong = flowchef.edit(model, reference, region, zero, one, scale=2.0)(randn(3, 1, 4, 4), 0.5, ctx=_first())
    torch.testing.assert_close(strong.base[..., 2:], torch.full((3, 1, 4, 2), 0.5 + 2.0).double())
    torch.testing.assert_close(strong.base[..., :2], torch.full((3, 1, 4, 2), 0.5).double())
    moved = strong.base + 0.055 * (reference - strong.base)
    torch.testing.assert_close(strong.data[..., :2], moved[..., :2])
    torch.testing.assert_close(strong.data[..., 2:], strong.base[..., 2:])
    with pytest.raises(ValueError, match="region has values"):
        flowchef.edit(model, reference, region * 0.5, zero, one)
    with pytest.raises(ValueError, match=r"step=2\.0"):
        flowchef.edit(model, reference, region, zero, one, step=2.0)


def _first():
    plan = flowchef.euler(8)
    from unstir.plan import Context

    return Context(plan, plan.rows[0], 0, True, False, None)


def test_explicit_guidance_moves_the_mean_by_the_rows_variance() -> None:
    process, shape = VP(), (3,)
    model = Gaussian(process, torch.zeros(shape), 0.5)
    energy = lambda d: d.square().sum(1)  # noqa: E731
    plan, x = unstir.plan("ancestral", process, grid=[0.6, 0.4]), randn(2, 3)
    noise = {0: randn(2, 3, seed=3)}
    moved = unstir.sample(steered_diffusion.explicit(model, energy, 0.7), plan, x=x, noise=noise)
    u = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(energy(model(u, 0.6)).sum(), u)
    torch.testing.assert_close(moved, unstir.sample(model, plan, x=x, noise=noise) - 0.7 * plan.rows[0].c ** 2 * slope)
    assert len(repaint_plan(unstir.plan("ancestral", process, nfe=5), 1, 3)) == 13


def test_pairs_and_their_distance() -> None:
    x = randn(2, 1, 8, 8).float()
    low = optimal_bc_sr.low_resolution(x)
    assert low.shape == x.shape
    torch.testing.assert_close(low[..., 0, 0], x[..., :2, :2].mean((-1, -2)))
    torch.testing.assert_close(low[..., 0, 0], low[..., 1, 1])
    features = optimal_bc_sr.Features()
    assert float(features.distance(x, x).abs().max()) == 0
    assert features.distance(x, low).shape == (2,)
    assert not optimal_bc_sr.ddim(4).stochastic
