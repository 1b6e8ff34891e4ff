"""Small data and a small network with classes, fast enough to train in milliseconds."""

import torch
from torch import nn

from unstir import Denoiser, data, process


class Net(nn.Module):
    """raw = MLP(x, sin and cos of t, class); with dropout, so that the network's own randomness is tested, too."""

    def __init__(self, dim=4, classes=3, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(classes + 1, 8)
        self.layers = nn.Sequential(nn.Linear(dim + 10, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, dim))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, t, class_labels):
        if self.training:
            self.calls += 1
        time = torch.stack([torch.sin(3 * t), torch.cos(3 * t)], 1)
        return self.layers(torch.cat([x, time, self.embed(class_labels)], 1))


def make_data(count=50):
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 3
    return data.load(torch.randn(count, 4, generator=generator) * 0.3 + labels[:, None], labels=labels)


def make_model(predicts="velocity", p=None, **options):
    torch.manual_seed(3)
    meta = {"null": {"class_labels": 3}, "classes": ["0", "1", "2"]}
    return Denoiser(Net(**options), p or process.VP(), predicts, shape=(4,), meta=meta)
