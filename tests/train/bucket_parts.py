"""Pictures of three shapes in buckets, and a small network that takes pictures of any size."""

import torch
from torch import nn

from unstir import Denoiser, data, process

SHAPES = ((1, 10, 6), (1, 8, 8), (1, 6, 10))


class Net(nn.Module):
    """raw = convolutions of (x, t, class); any sides."""

    def __init__(self, classes=2):
        super().__init__()
        self.embed = nn.Embedding(classes + 1, 8)
        self.layers = nn.Sequential(nn.Conv2d(11, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, x, t, class_labels):
        about = torch.cat([torch.sin(3 * t)[:, None], torch.cos(3 * t)[:, None], self.embed(class_labels)], 1)
        return self.layers(torch.cat([x, about[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1))


def make_buckets(counts=(12, 18, 6)):
    generator = torch.Generator().manual_seed(5)
    parts = []
    for count, shape in zip(counts, SHAPES, strict=True):
        labels = torch.arange(count) % 2
        x = 0.2 * torch.randn(count, *shape, generator=generator) + labels[:, None, None, None] - 0.5
        parts.append(data.load(x, labels=labels, layout="raw"))
    return data.Buckets(parts)


def make_model(shape=None):
    torch.manual_seed(3)
    meta = {"null": {"class_labels": 2}, "classes": ["0", "1"]}
    return Denoiser(Net(), process.VP(), "velocity", shape=shape, meta=meta)
