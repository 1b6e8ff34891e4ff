"""Value ranges: the same restoration, whether the measurement was made in [0, 1] or in [−1, 1]."""

import pytest
import torch

import unstir
from unstir.denoiser import Gaussian
from unstir.process import VP
from unstir.steer import ValueRange, posterior
from unstir.steer import operators as ops

torch.set_num_threads(1)
SHAPE = (1, 4, 4)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPERATORS = {
    "mask": ops.mask((randn(4, 4) > 0).double()),
    "pool": ops.average_pool(2),
    "dense": ops.dense(randn(5, 16, seed=1), SHAPE),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_measurement_in_pixels_is_one_in_the_models_units(name) -> None:
    """y = A u + n with u = (x + 1)/2 becomes A x + 2 n, so σ_y doubles; the samples are those of the direct problem."""
    operator, span = OPERATORS[name], ValueRange()
    x = randn(2, *SHAPE, seed=2)
    n = operator.A(randn(2, *SHAPE, seed=3)) * 0.1
    problem = span.problem(operator, operator.A(span.user(x)) + n, 0.1, x)
    torch.testing.assert_close(problem.y, operator.A(x) + 2 * n)
    assert problem.noise == 0.2
    assert problem.operator is operator
    model, plan = Gaussian(VP(), torch.zeros(SHAPE), 0.5), unstir.plan("ddim", VP(), nfe=5)
    post = posterior(model, problem.operator, problem.y, "pigdm", problem.noise)
    direct = posterior(model, operator, operator.A(x) + 2 * n, "pigdm", 0.2)
    a, b = (unstir.sample(p, plan, shape=(2, *SHAPE), dtype=torch.float64) for p in (post, direct))
    torch.testing.assert_close(a, b)


def test_an_operator_that_is_not_linear_is_asked_in_its_own_units() -> None:
    operator, span, x = ops.phase_retrieval(2), ValueRange(0, 255), randn(1, *SHAPE)
    u = span.user(x)
    problem = span.problem(operator, operator.A(u), 3.0, x)
    torch.testing.assert_close(problem.operator.A(x), problem.y)
    assert problem.noise == 3.0
    torch.testing.assert_close(span.model(u), x)


def test_ends_of_the_range() -> None:
    span = ValueRange(0, 255, -1, 1)
    torch.testing.assert_close(span.user(torch.tensor([-1.0, 0, 1])), torch.tensor([0.0, 127.5, 255]))
    with pytest.raises(ValueError, match="low < high"):
        ValueRange(1, 0).user(torch.zeros(1))
    with pytest.raises(ValueError, match="low < high"):
        ValueRange(0, float("inf")).model(torch.zeros(1))


def test_units_that_cannot_be_right_are_mentioned() -> None:
    with pytest.warns(UserWarning, match="are the units of y right"):
        ValueRange().problem(OPERATORS["pool"], torch.full((1, 1, 2, 2), 128.0), 0.0, torch.zeros(1, *SHAPE))
