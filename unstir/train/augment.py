"""Augmentation that does not leak: pictures are moved, and the network is told how; at sampling it is told "not at all".

Each of these is done with the probability `share`, and what was done is the network's condition `augment` (B, 6):

    0, 1   mirrored left to right, upside down (0 or 1, a coin each)
    2, 3   cos θ − 1, sin θ of a rotation by θ = 0°, 90°, 180°, 270° (0°, 180° unless the picture is square)
    4, 5   moved down and right by whole pixels, at most an eighth of the side, reflected at the edges; as parts of that eighth

A picture that was not moved has zeros: the null condition. (Elucidating the Design Space of Diffusion-Based Generative
Models, 2022; there with scales and finer rotations, which would have to interpolate.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KEYWORD = "augment"  # under which the network is told
LABELS = 6
NUMBERS = 10  # uniform numbers a picture: for each of the five, whether and how
REACH = 8  # moves by at most 1/8 of the side


def moved(x: Tensor, numbers: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(x', labels (B, 6)): pictures x (B, C, H, W) moved by uniform numbers (B, 10).

    ValueError unless x is a batch of pictures.
    """
    if not isinstance(x, Tensor) or x.ndim != 4:
        form = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else "named fields"
        raise ValueError(f"augment moves pictures (C, H, W); these samples have {form}")
    height, width = x.shape[2:]
    done, how = numbers[:, :5] < share, numbers[:, 5:]
    mirror, upside = ((done[:, i] & (how[:, i] < 0.5)) for i in (0, 1))
    quarters = torch.where(done[:, 2], (4 * how[:, 2]).long() if height == width else 2 * (2 * how[:, 2]).long(), 0)
    shifts = []
    for i, side in ((3, height), (4, width)):
        reach = side // REACH
        shifts.append(torch.where(done[:, i], (how[:, i] * (2 * reach + 1)).long() - reach, 0))
    angle = quarters * (0.5 * math.pi)
    parts = [s / max(1, side // REACH) for s, side in zip(shifts, (height, width), strict=True)]
    labels = torch.stack([mirror, upside, angle.cos().round() - 1, angle.sin().round(), *parts], 1)
    return move(x, mirror, upside, quarters, *shifts), labels.float()


def move(x: Tensor, mirror: Tensor, upside: Tensor, quarters: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """x mirrored, then turned by `quarters` (counter-clockwise), then moved with reflection; all of shape (B,).

    Mirrors, turns and moves permute rows and columns, after a transposition for odd quarters: turning by 90° is
    transposing and then upside down, by 180° both mirrors, by 270° transposing and then mirroring.
    """
    turned = quarters % 2 == 1
    # Mirrors before a transposition are those of the other axis after it.
    flips = [torch.where(turned, mirror, upside), torch.where(turned, upside, mirror)]
    flips = [flips[0] ^ ((quarters == 1) | (quarters == 2)), flips[1] ^ ((quarters == 2) | (quarters == 3))]
    rows, columns = (_places(n, f, s) for n, f, s in zip(x.shape[2:], flips, (down, right), strict=True))
    if bool(turned.any()):  # only of square pictures
        x = torch.where(turned.reshape(-1, 1, 1, 1), x.transpose(2, 3), x)
    return x[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _places(side: int, flip: Tensor, shift: Tensor) -> Tensor:
    """Where every row (or column) comes from, (B, side): i − shift, reflected at the edges, counted from behind if flipped."""
    place = (torch.arange(side) - shift[:, None]).abs()
    place = side - 1 - (side - 1 - place).abs()
    return torch.where(flip[:, None], side - 1 - place, place)
