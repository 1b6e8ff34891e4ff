"""Built-in networks: shapes, classes, refusals."""

import pytest
import torch

from unstir import data
from unstir.nets import default_condition
from unstir.train import PRESETS, build_model, build_network

pytest.importorskip("diffusers")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24), (3, 32, 32), (1, 28, 28), (2, 4, 4)])
def test_shapes(shape):
    network = build_network(shape, preset="tiny")
    x = torch.randn(2, *shape)
    assert network(x, torch.tensor([1.0, 500.0])).sample.shape == x.shape


def test_same_seed_same_weights_and_the_global_stream_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, two, three = (build_network((1, 8, 8), preset="tiny", seed=s).conv_in.weight for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_presets_grow_and_tiny_fits_the_package():
    sizes = [sum(p.numel() for p in build_network((1, 8, 8), 10, preset).parameters()) for preset in PRESETS]
    assert sizes == sorted(sizes)
    assert 0.4e6 < sizes[0] < 0.9e6


def test_classes_have_a_null():
    network = build_network((1, 8, 8), 10, "tiny").eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 100.0])
    with torch.no_grad():
        free = network(x, t).sample
        assert torch.equal(free, network(x, t, class_labels=torch.tensor([10, 10])).sample)
        assert not torch.equal(free, network(x, t, class_labels=torch.tensor([3, 10])).sample)


def test_default_condition_is_a_hook_without_weights():
    layer = torch.nn.Linear(2, 2)
    names = list(layer.state_dict())
    assert default_condition(layer, {}) is layer
    assert list(layer.state_dict()) == names
    assert layer(torch.zeros(1, 2)).shape == (1, 2)


def test_default_condition_gives_one_value_per_sample():
    class Echo(torch.nn.Module):
        def forward(self, x, t, label, text):
            return label, text

    echo, x = default_condition(Echo(), {"label": 7, "text": torch.zeros(5, 2)}), torch.zeros(5, 1)
    label, text = echo(x, 0.0)
    assert label.tolist() == [7] * 5
    assert text.shape == (5, 2)
    assert echo(x, 0.0, label=2)[0].tolist() == [2] * 5
    assert echo(x, 0.0, label=torch.arange(5))[0].tolist() == list(range(5))


def test_model_for_a_data_set():
    digits = data.load("digits", split="train")
    model = build_model(digits, process="cosine", predicts="velocity", preset="tiny")
    assert model.meta["null"] == {"class_labels": 10}
    assert model.meta["classes"] == list("0123456789")
    assert (model.shape, model.time) == ((1, 8, 8), "thousand")
    assert build_model(digits, process="edm", preset="tiny").time == "logsnr"
    assert "null" not in build_model(digits, conditional=False, preset="tiny").meta
    assert abs(build_model(digits, preset="tiny").prediction.sigma_data - 0.75) < 0.01


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_network((5,)), r"shape=\(5,\) is no picture"),
        (lambda: build_network((1, 9, 9)), "multiples of 2; load the data with size="),
        (lambda: build_network((1, 8, 8), preset="huge"), "preset='huge' is unknown; one of tiny"),
        (lambda: build_model(data.load("digits"), process="ddpm"), "process='ddpm' is unknown; one of vp"),
        (lambda: build_model(data.load("digits"), predicts="x0", preset="tiny"), "predicts='x0' is unknown"),
        (lambda: build_model(data.load(torch.ones(3, 1, 8, 8))), "every value is the same"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
