"""Operators: adjoints, pseudo-inverses and proximal maps against dense matrices; what is missing is derived."""

import math

import pytest
import torch

from unstir.steer import operators as ops

torch.set_num_threads(1)
SHAPE = (2, 6, 6)


def picture(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def holes(*shape):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(3)) > 0.4).double()


class Bare:
    """A user's operator: A and nothing else of use; rank 2 of 4."""

    linear = True
    matrix = torch.tensor([[1.0, 2, 0, 0], [2, 4, 0, 0], [0, 0, 1, -1]], dtype=torch.float64)

    def A(self, x):
        return x @ self.matrix.T


KERNEL = torch.tensor([[0.0, 1, 0], [2, 5, 1], [0, 1, 1]])
OPERATORS = {
    "mask": (ops.mask(holes(6, 6)), SHAPE),
    "nothing": (ops.mask(torch.zeros(6, 6)), SHAPE),
    "pool-2": (ops.average_pool(2), SHAPE),
    "pool-3": (ops.average_pool(3), SHAPE),
    "blur": (ops.blur(KERNEL / KERNEL.sum(), SHAPE, 0.0), SHAPE),
    "blur-cut": (ops.blur(torch.ones(3, 3) / 9, SHAPE, 0.1), SHAPE),
    "separable": (ops.separable(picture(3, 6, seed=1), picture(5, 6, seed=2)), SHAPE),
    "separable-blur": (ops.separable_blur(torch.tensor([1.0, 2, 4]), SHAPE), SHAPE),
    "dense": (ops.dense(picture(7, 72, seed=4), SHAPE), SHAPE),
    "mri": (ops.mri(holes(6, 6)), SHAPE),
    "mri-real": (ops.mri(holes(6, 6), real=True), (1, 6, 6)),
    "explicit": (ops.explicit(ops.radon(torch.linspace(0, math.pi, 5), (1, 6, 6)), (1, 6, 6)), (1, 6, 6)),
    "radon": (ops.radon(torch.linspace(0, math.pi, 5), SHAPE), SHAPE),
    "bare": (Bare(), (4,)),
}


def matrix(operator, shape):
    """The operator as a dense matrix, column by column."""
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return operator.A(eye).flatten(1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_pinv_prox_and_norm_are_those_of_the_matrix(name) -> None:
    operator, shape = OPERATORS[name]
    m = matrix(operator, shape)
    x = picture(3, *shape, seed=5)
    y = picture(*operator.A(x).shape, seed=6)
    near = {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(ops.adjoint(operator, y, x).flatten(1), y.flatten(1) @ m)
    pinv = torch.linalg.pinv(m, rtol=1e-9)
    if name != "radon":  # conjugate gradients on a badly conditioned matrix; its identities are checked below
        torch.testing.assert_close(ops.pinv(operator, y, x).flatten(1), y.flatten(1) @ pinv.T, **near)
    for gamma in (0.0, 0.7, torch.tensor([0.1, 1.0, 30.0])):
        g = torch.as_tensor(gamma, dtype=torch.float64).expand(3)
        exact = torch.stack([
            torch.linalg.solve(torch.eye(m.shape[1]) + g[i] * m.T @ m, x[i].flatten() + g[i] * m.T @ y[i].flatten())
            for i in range(3)
        ])  # fmt: skip
        torch.testing.assert_close(ops.prox(operator, x, y, gamma).flatten(1), exact, **near)
    torch.testing.assert_close(ops.prox(operator, x, operator.A(x), math.inf), x)
    assert ops.norm(operator, x) == pytest.approx(float(torch.linalg.matrix_norm(m, 2)), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_check_operator_passes_what_is_right(name) -> None:
    operator, shape = OPERATORS[name]
    found = ops.check_operator(operator, torch.zeros(2, *shape, dtype=torch.float64), tolerance=1e-6)
    assert found["adjoint"] < 1e-10
    assert set(found) == {"adjoint", "pinv", "symmetric", "prox", "norm"}


@pytest.mark.parametrize("name", ["mask", "pool-2", "blur", "separable", "dense", "mri", "mri-real", "explicit", "radon"])
def test_float32_in_float32_out(name) -> None:
    operator, shape = OPERATORS[name]
    x = picture(2, *shape, dtype=torch.float32)
    y = operator.A(x)
    assert y.dtype == operator.A_adjoint(y).dtype == ops.prox(operator, x, y, 0.5).dtype == torch.float32
    torch.testing.assert_close(y.double(), operator.A(x.double()), atol=1e-5, rtol=1e-5)


def test_check_operator_finds_the_mistake() -> None:
    class Wrong(Bare):
        def __init__(self, **methods) -> None:
            vars(self).update(methods)

    x, m = torch.zeros(2, 4, dtype=torch.float64), Bare.matrix
    mistakes = {
        "adjoint": {"A_adjoint": lambda y: 1.01 * y @ m},
        "pinv": {"A_dagger": lambda y: 0.5 * y @ torch.linalg.pinv(m).T},
        "symmetric": {"A_dagger": lambda y: y @ torch.linalg.pinv(m).T + (y[:, :1] @ torch.tensor([[-2.0, 1, 0, 0]]).double())},
        "prox": {"prox_l2": lambda z, y, gamma: z},
    }
    for name, methods in mistakes.items():
        with pytest.raises(ValueError, match=f"Wrong fails the check '{name}'"):
            ops.check_operator(Wrong(**methods), x)
    assert ops.check_operator(Wrong(**mistakes["pinv"]), x, tolerance=math.inf)["pinv"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="not linear"):
        ops.check_operator(ops.phase_retrieval(), torch.zeros(1, 1, 4, 4))


def test_each_measures_what_its_name_says() -> None:
    x = picture(1, 2, 6, 6)
    torch.testing.assert_close(ops.average_pool(2).A(x), torch.nn.functional.avg_pool2d(x, 2))
    small = ops.average_pool(3).A(x)
    torch.testing.assert_close(ops.average_pool(3).A_dagger(small), small.repeat_interleave(3, 2).repeat_interleave(3, 3))
    # Circular convolution, (k ∗ x)[i] = Σ k[c + j] x[i − j].
    shifted = torch.zeros(3, 3)
    shifted[2, 1] = 1
    torch.testing.assert_close(ops.blur(shifted, SHAPE).A(x), x.roll(1, 2))
    k = torch.tensor([1.0, 2, 4], dtype=torch.float64)
    flat = x.reshape(2, 1, 6, 6)
    conv = torch.nn.functional.conv2d(flat, (k.flip(0)[:, None] * k.flip(0))[None, None], padding=1).reshape(x.shape)
    torch.testing.assert_close(ops.separable_blur(k, SHAPE, 0.0).A(x), conv)
    k_space = torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho")
    torch.testing.assert_close(ops.mri(torch.ones(6, 6)).A(x), torch.stack((k_space.real, k_space.imag), 1))
    z = torch.fft.fft2(x[:, :1], norm="ortho")[:, 0] * holes(6, 6)
    torch.testing.assert_close(ops.mri(holes(6, 6), real=True).A(x[:, :1]), torch.stack((z.real, z.imag), 1))
    radon = ops.radon(torch.tensor([0.0, math.pi / 2]), SHAPE)
    y = radon.A(x)
    torch.testing.assert_close(y[:, :, 0] / y[0, 0, 0, 0], x.sum(2) / x.sum(2)[0, 0, 0])
    assert (y[:, :, 1] / x.sum(3)).std() < 1e-6 or (y[:, :, 1] / x.sum(3).flip(2)).std() < 1e-6
    assert ops.norm(radon, x) == pytest.approx(1, rel=1e-3)


def test_explicit_is_the_operator_and_forgets_only_what_is_hardly_seen() -> None:
    operator, x = ops.radon(torch.linspace(0, math.pi, 4), SHAPE), picture(2, *SHAPE)
    matrix_ = ops.explicit(operator, SHAPE, 0.0)
    torch.testing.assert_close(matrix_.A(x), operator.A(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(matrix_.A_adjoint(operator.A(x)), operator.A_adjoint(operator.A(x)), rtol=1e-9, atol=1e-9)
    rough = ops.explicit(operator, SHAPE, 0.1)
    assert 0 < int((rough.s > 0).sum()) < int((matrix_.s > 0).sum())


def test_lines_of_k_space() -> None:
    keep = ops.lines((8, 16), 4, center=0.1, seed=1)
    assert int(keep[0].sum()) == 4
    assert torch.equal(keep, keep[:1].expand(8, 16))
    assert keep[0, 0] == 1
    assert not torch.equal(keep, ops.lines((8, 16), 4, center=0.1, seed=2))
    assert torch.equal(ops.lines((8, 16), 1), torch.ones(8, 16))


def test_phase_retrieval_cannot_see_the_sign() -> None:
    operator, x = ops.phase_retrieval(2), picture(2, 1, 5, 5)
    y = operator.A(x)
    assert y.shape == (2, 1, 10, 10)
    assert torch.equal(operator.A(-x), y)
    torch.testing.assert_close((y**2).sum(), (x**2).sum())  # the transform is orthonormal
    assert not ops.is_linear(operator)


def test_conjugate_gradients_stop_where_the_curvature_is_not_positive() -> None:
    b = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    d = torch.tensor([[2.0, 4.0], [-1.0, 1.0]], dtype=torch.float64)
    u = ops.conjugate_gradients(lambda v: d * v, b)
    torch.testing.assert_close(u, torch.tensor([[0.5, 0.25], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ops.mask(torch.full((2, 2), 0.5)), "other than 0 and 1"),
        (lambda: ops.mask(torch.ones(3, 3)).A(torch.zeros(1, 1, 4, 4)), r"keep has shape \(3, 3\)"),
        (lambda: ops.average_pool(0), "factor=0"),
        (lambda: ops.average_pool(4).A(torch.zeros(1, 1, 6, 6)), "factor=4 does not divide"),
        (lambda: ops.blur(torch.ones(9, 9), SHAPE), "kernel has shape"),
        (lambda: ops.separable_blur(torch.ones(4), SHAPE), "odd length"),
        (lambda: ops.dense(torch.ones(3, 5), (4,)), "need 4 columns"),
        (lambda: ops.mri(torch.ones(4, 4)).A(torch.zeros(1, 1, 4, 4)), "complex picture"),
        (lambda: ops.mri(torch.ones(4, 4), real=True).A(torch.zeros(1, 2, 4, 4)), "a real picture"),
        (lambda: ops.mri(torch.ones(4, 4), real=True).A_adjoint(torch.zeros(1, 1, 4, 4)), "measured k-space"),
        (lambda: ops.lines((8, 8), 0.5), "acceleration=0.5"),
        (lambda: ops.explicit(ops.mask(torch.ones(1)), (1, 128, 128)), "at most 4096"),
        (lambda: ops.radon(torch.zeros(2), (1, 4, 5)), "angles"),
        (lambda: ops.phase_retrieval(0), "oversample=0"),
    ],
    ids=[
        "values",
        "mask",
        "factor",
        "divide",
        "kernel",
        "odd",
        "dense",
        "mri",
        "real",
        "k",
        "lines",
        "large",
        "radon",
        "oversample",
    ],
)
def test_wrong_settings_are_named(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()
