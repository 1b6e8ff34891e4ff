"""Noise that belongs to samples: what is drawn never changes, and twins mirror each other everywhere."""

from __future__ import annotations

import pytest
import torch

import unstir
from unstir._random import _mixed, child, draw, mix, normal, sample_keys
from unstir.process import VP


def drawn_one_by_one(keys, shape, stream, dtype):
    """The definition: a generator of its own for every sample, seeded by (key, stream)."""
    drawn = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    generators = [torch.Generator().manual_seed(mix(key, stream) >> 1) for key in keys]
    return torch.stack([torch.randn(tuple(shape), generator=g, dtype=drawn) for g in generators]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (17,), (3, 5, 7), (1, 16, 16)], ids=str)
def test_many_draws_at_once_are_the_draws_one_by_one(shape, dtype) -> None:
    for count, stream in ((1, 0), (5, 7), (40, 1 << 35), (40, (1 << 64) + 3)):
        keys = sample_keys(count, 3)
        assert torch.equal(draw(keys, shape, stream, dtype), drawn_one_by_one(keys, shape, stream, dtype))


def test_numbers_that_were_drawn_by_the_first_release() -> None:
    """Written down before `draw` was made faster: seeds that people keep must go on giving their pictures."""
    assert mix(0) == 16294208416658607535
    assert sample_keys(3, 0)[:2] == [mix(0, 0), mix(0, 1)]
    numbers = [[-0.7889859048750885, 0.2986153501639136], [-0.6172389646154437, 0.6488449022443591]]
    expected = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(normal((2, 2), seed=11, stream=4, dtype=torch.float64), expected, rtol=0, atol=1e-12)


def test_keys_are_mixed_at_once_as_one_by_one() -> None:
    keys = [mix(i, 9) for i in range(50)] + [0, (1 << 64) - 1]
    for last in (0, 1, 1 << 35, (1 << 64) - 1, 1 << 70):
        assert _mixed(keys, last) == [mix(key, last) for key in keys]


@pytest.mark.parametrize("seed", [0, -4, [3, 1 << 70, 5, -2]], ids=str)
def test_twins_have_opposite_noise_alone_and_together(seed) -> None:
    index = [0, 5, 2, 9]
    own = normal((4, 3, 3), seed=seed, index=index, stream=6)
    assert torch.equal(normal((4, 3, 3), seed=seed, index=[~i for i in index], stream=6), -own)
    seeds = seed if isinstance(seed, int) else [s for s in seed for _ in (0, 1)]
    both = normal((8, 3, 3), seed=seeds, index=[j for i in index for j in (i, ~i)], stream=6)
    assert torch.equal(both[::2], own)
    assert torch.equal(both[1::2], -own)


def test_parts_of_twins_are_twins() -> None:
    (key,) = sample_keys(1, 4)
    assert child(key, 3, 1) == mix(key, 3, 1)
    assert child(~key, 3, 1) == ~child(key, 3, 1)


@pytest.mark.parametrize("solver", ["ancestral", "dpmpp-2m-sde"])
def test_of_gaussian_data_a_pair_of_twins_has_the_mean_of_the_law(solver) -> None:
    """A run is affine in its noise there, so the noise is gone from their mean, in one row and in another."""
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    model = unstir.denoiser.Gaussian(VP(), mean, std=0.3)
    plan = unstir.plan(solver, VP(), nfe=9)
    x = unstir.sample(model, plan, shape=(4, 3), index=[0, ~0, 1, ~1], dtype=torch.float64)
    still = unstir.sample(model, plan, x=torch.zeros(1, 3, dtype=torch.float64), noise=lambda row: torch.zeros(1, 3).double())
    assert float((x[0] - x[1]).abs().max()) > 0.1
    torch.testing.assert_close((x[::2] + x[1::2]) / 2, still.expand(2, 3), rtol=0, atol=1e-12)


def test_twins_in_dicts_of_leaves_and_on_brownian_paths() -> None:
    plan = unstir.plan("ancestral", VP(), nfe=5)
    start = {"a": (2, 4), "b": (2, 2)}
    zero = unstir.Denoiser(lambda x, t: {k: 0 * v for k, v in x.items()}, VP(), "data")
    x = unstir.sample(zero, {"a": plan, "b": plan}, shape=start, index=[3, ~3])
    assert all(torch.equal(leaf[0], -leaf[1]) for leaf in x.values()) or x["a"].abs().max() == 0
    paths = unstir.brownian(plan, (2, 4), index=[3, ~3])
    z = paths(1)
    assert float(z.abs().max()) > 0.1
    assert torch.equal(z[0], -z[1])
