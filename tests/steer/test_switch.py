"""Models for parts of the noise levels."""

import math

import pytest
import torch

import unstir
from unstir import process, steer
from unstir.denoiser import Gaussian

VP = process.VP()
LOW, HIGH = (unstir.Denoiser(lambda x, t, v=v: torch.full_like(x, v), VP, "data", shape=(2,)) for v in (1.0, 2.0))
AT = float(VP.logsnr(0.4))


def test_each_level_asks_its_own_model():
    both, x = steer.switch({AT: HIGH, -math.inf: LOW}), torch.zeros(3, 2)
    assert [float(both(x, t)[0, 0]) for t in (1.0, 0.41, 0.39, 0.01)] == [1, 1, 2, 2]
    assert both(x, torch.tensor([0.9, 0.1, 0.5]))[:, 0].tolist() == [1, 2, 1]
    assert float(both(x, VP.time(AT) - 1e-9)[0, 0]) == 2


def test_a_run_is_the_head_with_one_model_and_the_tail_with_the_other():
    first, second = (Gaussian(VP, torch.tensor([m, -m]).double(), torch.ones(2).double() * 0.2) for m in (0.5, 1.5))
    plan = unstir.plan("ddim", VP, grid=[1.0, 0.7, 0.4, 0.2, 0.0])
    x = VP.prior((4, 2), dtype=torch.float64)
    head, tail = plan.split(2)
    want = unstir.sample(second, tail, x=unstir.sample(first, head, x=x, full=True))
    assert torch.equal(unstir.sample(steer.switch({-math.inf: first, AT: second}), plan, x=x), want)


def test_it_composes_with_guidance_and_models_that_bind_their_own_conditions():
    def refiner(x, t):
        return torch.full_like(x, 3.0)

    both = steer.switch({-math.inf: steer.cfg(LOW, 2.0, base=HIGH), AT: refiner})
    assert float(both(torch.zeros(1, 2), 0.9)[0, 0]) == 0.0
    assert float(both(torch.zeros(1, 2), 0.1)[0, 0]) == 3.0


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({}, "models is empty"),
        ({math.nan: LOW}, "NaN"),
        ({-1.0: LOW, 1.0: unstir.Denoiser(lambda x, t: x, process.Flow(), "flow")}, "pass it as model.on"),
    ],
    ids=["none", "nan", "process"],
)
def test_wrong_models_are_named(models, told):
    with pytest.raises(ValueError, match=told):
        steer.switch(models)
    with pytest.raises(TypeError, match="knows its process"):
        steer.switch({0.0: lambda x, t: x})
