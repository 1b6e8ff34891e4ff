"""The network sees its own last estimate: what it is given in training and by the sampler."""

import pytest
import torch
from auxiliary_parts import make_two_heads
from test_auxiliary import options, same_bits, tensors
from torch import nn
from training_parts import make_data

import unstir
from unstir import Denoiser, data, process, steer
from unstir.interop import load_model, save_model
from unstir.train import Objective, TrainConfig, build_model, fit, order
from unstir.train.batch import drawer
from unstir.train.objective import evaluate
from unstir.train.parallel import World


class Echo(nn.Module):
    """raw = ½ x + ⅓ previous, remembering every `previous`."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t, previous, label=0.0):
        self.seen.append(previous)
        return self.scale * (0.5 * x + previous / 3) + label


def make_echo(**options):
    return Denoiser(Echo(), process.VP(), "data", sees_previous=True, **options)


def test_the_sampler_hands_on_the_last_estimate():
    """Row i is given D_{i−1}, the first row zeros; against the loop written out."""
    model = make_echo()
    plan = unstir.plan("ddim", model.process, nfe=4)
    steps = list(unstir.steps(model, plan, torch.randn(2, 3)))
    assert len(model.network.seen) == 4
    assert float(model.network.seen[0].abs().max()) == 0
    for given, step in zip(model.network.seen[1:], steps, strict=False):
        assert torch.equal(given, step.data)
    model.network.seen.clear()
    unstir.sample(model, plan, x=torch.randn(2, 3))  # a second run begins anew
    assert float(model.network.seen[0].abs().max()) == 0


def test_guidance_has_an_estimate_for_each_branch():
    model = make_echo(meta={"null": {"label": 0.0}})
    plan = unstir.plan("ddim", model.process, nfe=3)
    unstir.sample(steer.cfg(model, 2.0), plan, x=torch.randn(2, 3), label=1.0)
    seen = model.network.seen  # conditional, unconditional, conditional, …
    assert len(seen) == 6
    assert float(torch.stack(seen[:2]).abs().max()) == 0
    gap = seen[2] - seen[3]  # the branches differ by the label
    torch.testing.assert_close(gap, torch.ones(2, 3))


def test_estimates_follow_their_particles():
    """Permuting the samples of a run permutes what the network remembers of them."""
    model = make_echo()
    plan = unstir.plan("ddim", model.process, nfe=3)
    perm = torch.tensor([1, 0])
    given = []

    def swap(ctx, x):
        given.append(ctx.data)
        ctx.permute(perm)
        return x[perm]

    unstir.sample(model, plan, x=torch.randn(2, 3), hooks=swap)
    assert torch.equal(model.network.seen[1], given[0][perm])


def test_a_call_by_hand_sees_zeros_or_what_it_is_given():
    model, x = make_echo(), torch.randn(2, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x, 0.5), 0.5 * x)
        torch.testing.assert_close(model(x, 0.5, previous=torch.ones(2, 3)), 0.5 * x + 1 / 3)


def test_a_network_without_the_keyword_gets_channels():
    inputs = []

    class Wide(nn.Module):
        def forward(self, x, t):
            inputs.append(x)
            return x[:, :1]

    model = Denoiser(Wide(), process.VP(), "data", sees_previous=True)
    x, previous = torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    model(x, 0.5, previous=previous)
    assert torch.equal(inputs[0], torch.cat([x, previous], 1))


def test_training_sees_a_first_estimate_of_the_chosen_and_no_gradient_through_it():
    model = make_echo()
    x0, z = torch.randn(6, 3), torch.randn(6, 3)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    chosen = torch.tensor([True, False, True, True, False, False])
    found = evaluate(model, x0, z, t, {}, chosen)
    first, second = model.network.seen
    assert len(first) == 3  # the first pass is of the chosen alone
    x = model.process.stir(x0, t, z)
    expected = torch.where(chosen[:, None], 0.5 * x, 0.0)
    torch.testing.assert_close(second, expected)
    assert not second.requires_grad
    (slope,) = torch.autograd.grad(found.error.sum(), model.network.scale)
    torch.testing.assert_close(slope, (0.5 * x + expected / 3).sum())
    model.network.seen.clear()
    evaluate(model, x0, z, t, {}, torch.zeros(6, dtype=torch.bool))
    assert float(model.network.seen[-1].abs().max()) == 0


def test_a_first_pass_without_gradients_leaves_those_of_autocast_alone():
    """Autocast keeps its casts of the weights; those made without gradients must not be used with them."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, t, previous):
            return self.layer(torch.cat([x, previous], 1))

    model = Denoiser(Net(), process.VP(), "data", sees_previous=True)
    t = torch.full((4,), 0.5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = Objective().loss(model, torch.randn(4, 3), torch.randn(4, 3), t, twice=torch.ones(4, dtype=torch.bool))
    loss.backward()
    assert float(model.network.layer.weight.grad.abs().max()) > 0


def test_the_chosen_are_a_share_of_the_images():
    whole = order.twice(3, range(4000), 0.5)
    assert torch.equal(whole[1000:], order.twice(3, range(1000, 4000), 0.5))
    assert abs(int(whole.sum()) - 2000) < 4 * 1000**0.5
    assert not torch.equal(whole, order.flipped(3, range(4000)))


def test_runs_resume_bit_for_bit(tmp_path):
    def run(folder, steps, **more):
        config = options(schedule="constant", steps=steps, self_conditioning=0.5)
        return fit(make_two_heads(sees_previous=True), make_data(), config, folder, **more)

    run(tmp_path / "whole", 12)
    run(tmp_path / "half", 6)
    run(tmp_path / "half", 12, resume=True, override=True)
    same_bits(tensors(tmp_path / "whole"), tensors(tmp_path / "half"))
    fit(make_two_heads(sees_previous=True), make_data(), options(schedule="constant"), tmp_path / "without")
    assert not torch.equal(
        tensors(tmp_path / "whole")["model/layers.0.weight"], tensors(tmp_path / "without")["model/layers.0.weight"]
    )


def test_the_model_folder_keeps_it(tmp_path):
    pytest.importorskip("diffusers")
    digits = data.load("digits", split="test")
    model = build_model(digits, preset="tiny", self_conditioning=True)
    assert model.network.config["in_channels"] == 2
    again = load_model(save_model(model, tmp_path / "model"))
    assert again.sees_previous
    plan = unstir.plan("ddim", again.process, nfe=2)
    assert unstir.sample(again, plan, shape=(2, 1, 8, 8)).shape == (2, 1, 8, 8)


def test_a_model_that_does_not_look_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"self_conditioning=0.5 needs a model that sees its estimate"):
        fit(make_two_heads(), make_data(), options(self_conditioning=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"self_conditioning=1.5 must be a share"):
        TrainConfig("x", self_conditioning=1.5).check()


def test_without_a_share_there_is_no_first_pass():
    model = make_two_heads(sees_previous=True)
    for share, drawn in ((0.0, False), (0.5, True)):
        config = options(self_conditioning=share)
        assert (drawer(model, make_data(), config.objective(), config, World())(0).twice is not None) == drawn


def test_a_folder_says_what_the_model_does():
    model = make_echo(meta={"sees_previous": True})
    assert not Denoiser(Echo(), process.VP(), "data", sees_previous=False, meta=model.meta).meta["sees_previous"]
