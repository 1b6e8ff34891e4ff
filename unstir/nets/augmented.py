"""A picture network that is told how its pictures were augmented, so that the augmentation does not leak."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AugmentedUNet(nn.Module):
    """raw = UNet(x, time, e),    e = table[class] + W augment

    A `diffusers` UNet2DModel whose class embedding is e, of shape (B, 4 · first width): `class_labels` (B,) as in that
    network, `augment` (B, labels) as in `train.augment`, zeros (not moved) by default. W is 0 in a fresh network.
    (Elucidating the Design Space of Diffusion-Based Generative Models, 2022.)

    num_class_embeds: rows of the table, None without classes; labels: numbers that say what was done; options: of the
    UNet2DModel.
    """

    def __init__(self, num_class_embeds: int | None = None, labels: int = 6, **options: Any) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel  # type: ignore[attr-defined]
        except ImportError:
            raise ImportError('this network is built on diffusers: pip install "unstir[diffusers]"') from None
        self.config = {"num_class_embeds": num_class_embeds, "labels": labels, **options}
        self.unet = UNet2DModel(class_embed_type="identity", **options)
        self.labels, width = labels, 4 * self.unet.config["block_out_channels"][0]
        self.table = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        self.told = nn.Linear(labels, width, bias=False)
        nn.init.zeros_(self.told.weight)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        if (class_labels is None) != (self.table is None):
            raise ValueError("class_labels must be given to a network with classes, and to no other")
        given = torch.as_tensor(0.0 if augment is None else augment, dtype=sample.dtype, device=sample.device)
        embedding = self.told(given.expand(len(sample), self.labels))
        if self.table is not None and class_labels is not None:
            embedding = embedding + self.table(class_labels)
        return self.unet(sample, timestep, class_labels=embedding, return_dict=False)[0]
