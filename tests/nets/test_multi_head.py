import pytest
import torch
from torch import nn

from unstir.nets import MultiHead


class Trunk(nn.Module):
    def forward(self, x, time):
        return x * time[:, None]


def test_a_tensor_has_one_prediction_and_what_is_beside_it():
    net = MultiHead(Trunk(), {"data": nn.Linear(4, 4), "label": nn.Linear(4, 3)})
    x, t = torch.randn(2, 4), torch.rand(2)
    raw, extras = net(x, t)
    assert raw.equal(net.heads["data"](x * t[:, None]))
    assert list(extras) == ["label"]
    raw.sum().backward()
    assert net.heads["label"].weight.grad is None  # a head without a loss learns nothing


def test_a_dict_state_has_a_prediction_for_every_field():
    heads = {"image": nn.Linear(4, 6), "vector": nn.Linear(4, 2), "label": nn.Linear(4, 3)}
    net = MultiHead(Trunk(), heads, encoders={"image": nn.Linear(6, 4), "vector": nn.Linear(2, 4)})
    x = {"image": torch.randn(2, 6), "vector": torch.randn(2, 2)}
    raw, extras = net(x, torch.rand(2))
    assert {name: tuple(v.shape) for name, v in raw.items()} == {"image": (2, 6), "vector": (2, 2)}
    assert list(extras) == ["label"]
    sum(v.sum() for v in (*raw.values(), *extras.values())).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_bad_input():
    with pytest.raises(ValueError, match="main='data' is none of the heads: label"):
        MultiHead(Trunk(), {"label": nn.Linear(4, 3)})
    with pytest.raises(ValueError, match="no head for image"):
        MultiHead(Trunk(), {}, encoders={"image": nn.Linear(6, 4)})
    net = MultiHead(Trunk(), {"data": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match="no encoder for image"):
        net({"image": torch.randn(2, 6)}, torch.rand(2))
