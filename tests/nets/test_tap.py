import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from unstir.nets import Tapped


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.spare = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1), nn.Linear(1, 1)

    def forward(self, x, time):
        return self.last(self.first(x))


def test_returns_the_part_and_changes_nothing():
    net, x, t = Net(), torch.randn(2, 1, 5, 5), torch.rand(2)
    raw, extras = Tapped(net, "first")(x, t)
    assert raw.equal(net(x, t))
    assert extras["features"].equal(net.first(x))
    assert not net.first._forward_hooks  # nothing stays
    Net().load_state_dict(Tapped(net, "first").network.state_dict())


def test_bad_input():
    with pytest.raises(ValueError, match=r"where='mid' is no part of Net; its children are: first, last, spare"):
        Tapped(Net(), "mid")
    with pytest.raises(ValueError, match="'spare' did not run"):
        Tapped(Net(), "spare")(torch.randn(2, 1, 5, 5), torch.rand(2))


def test_calls_at_once_keep_their_own():
    """Two threads in the part at the same time: each gets what its own call computed."""
    both = threading.Barrier(2, timeout=20)

    class Meets(Net):
        def forward(self, x, time):
            h = self.first(x)
            both.wait()
            return self.last(h)

    net, x = Meets(), torch.randn(2, 1, 1, 5, 5)
    tapped = Tapped(net, "first")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: tapped(one, torch.rand(1))[1]["features"], x))
    assert all(torch.equal(h, net.first(one)) for h, one in zip(found, x, strict=True))
