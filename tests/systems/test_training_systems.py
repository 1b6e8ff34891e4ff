"""Systems of what a network learns beside its data: their parts without training, and the claims (slow)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unstir.systems import conprediff, mt_diffusion, reproduce
from unstir.train.context import fading

torch.set_num_threads(1)


class TestConPreDiff:
    def test_patches_are_of_parts_that_do_not_meet(self):
        pytest.importorskip("skimage")
        found = conprediff.patches(60, 30)
        assert found.train.shape == (60, 1, 16, 16)
        assert found.test.abs().max() <= 1
        assert not any(bool((found.train == one).flatten(1).all(1).any()) for one in found.test)

    def test_the_network_without_the_tap_is_the_same(self):
        data = conprediff.dataset_of(torch.rand(8, 1, 16, 16) - 0.5)
        model, _ = conprediff.untrained(data)
        plain, x = conprediff.untapped(model), torch.randn(2, 1, 16, 16)
        assert plain(x, 0.4).equal(model(x, 0.4))
        model.network.network.load_state_dict(plain.network.state_dict())  # strictly

    def test_a_weight_of_zero_is_the_run_without(self, tmp_path: Path):
        """Bit for bit: the decoder takes nothing from the network's random numbers."""
        from unstir import train

        data = conprediff.dataset_of(torch.rand(32, 1, 16, 16) - 0.5)
        config = train.TrainConfig(
            data="x", split="all", steps=3, batch=4, process="vp", predicts="velocity", levels="uniform", device="cpu",
            checkpoint_every=3,
        )  # fmt: skip
        ends = []
        for name in ("with", "without"):
            model, head = conprediff.untrained(data)
            auxiliary = {"context": (head, fading(0.0))} if name == "with" else None
            run = train.fit(model, data, config, tmp_path / name, auxiliary=auxiliary)
            ends.append(run.model.network.network.state_dict())
        assert all(ends[0][name].equal(value) for name, value in ends[1].items())

    def test_neighbourhoods_forget_the_mean(self):
        x = torch.rand(2, 1, 5, 5)
        assert conprediff.neighbourhoods(x).shape == (2 * 9, 8)
        assert conprediff.neighbourhoods(x + 3).allclose(conprediff.neighbourhoods(x), atol=1e-5)
        centred = torch.nn.functional.unfold(x, 3).movedim(1, 2)
        centred = centred - centred.mean(2, keepdim=True)
        assert conprediff.neighbourhoods(x).square().sum(1).allclose(centred.reshape(-1, 9).square().sum(1), atol=1e-5)

    @pytest.mark.slow
    def test_claims(self, tmp_path: Path):
        assert reproduce("conprediff", tmp_path).claims


class TestMTDiffusion:
    def test_sums_have_unit_variance_and_three_labels_in_ten_are_dropped(self):
        data = mt_diffusion.summed()
        rows = range(0, len(data), 7)
        x, _ = data.batch(rows)
        assert float(x.square().mean()) == pytest.approx(0.5 + 0.5 * (0.7 + 0.3 * 0.1), abs=0.03)  # a null code has 1/10
        again, _ = data.batch(rows)
        assert again.equal(x)
        whole = mt_diffusion.summed(pictures_only=True).batch(range(1400))[0]
        assert float(whole.square().mean()) == pytest.approx(1, abs=1e-3)

    def test_gradients_reach_every_head_and_the_trunk(self):
        from unstir.train import Objective

        torch.manual_seed(0)
        model = mt_diffusion.Joint(mt_diffusion.network(), mt_diffusion.Cosine(), mt_diffusion.aggregate())
        data = mt_diffusion.summed()
        x0, _ = data.batch(range(8))
        targets = {"image": x0, "label": torch.arange(8)}
        objective = Objective(auxiliary=mt_diffusion.AUXILIARY)
        t = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
        loss = objective.loss(model, x0, torch.randn_like(x0), t, {}, targets=targets)[0]
        loss.backward()
        for name, parameter in model.network.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name

    @pytest.mark.slow
    def test_claims(self, tmp_path: Path):
        assert reproduce("mt-diffusion", tmp_path).claims
