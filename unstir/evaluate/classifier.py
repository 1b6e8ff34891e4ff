"""A small classifier trained on the user's own labelled pictures, for a feature space that knows what matters in them.

The features of ImageNet's networks are strange on digits, cells or spectrograms, and their weights have to be fetched. 64
features of a classifier trained on the data itself are neither; their name carries a hash of the weights, since a number
is comparable only within one classifier.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._files import read_tensors, write_tensors
from .checks import check_samples

FEATURES = 64
_META = "unstir_classifier"


class Classifier(nn.Module):
    """Three stages of two 3 × 3 convolutions, halved in between, mean over the picture, `FEATURES` numbers, K classes.

    Called on pictures (n, C, H, W) it returns the features (n, 64), so that it may be passed as `features=`; `logits` gives
    the classes. `name` is "cnn-<hash>", `accuracy` that on held-out pictures (NaN where there were none).
    """

    def __init__(self, channels: int, classes: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.accuracy = channels, tuple(classes), width, float("nan")
        layers: list[nn.Module] = []
        before = channels
        for out in (width, 2 * width, 2 * width):
            for _ in range(2):
                layers += [nn.Conv2d(before, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
                before = out
            layers.append(nn.AvgPool2d(2, ceil_mode=True))
        self.body, self.features = nn.Sequential(*layers), nn.Linear(before, FEATURES)
        self.head = nn.Linear(FEATURES, len(self.classes))

    @property
    def name(self) -> str:
        """ "cnn-" and six digits of a hash of the weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"cnn-{digest.hexdigest()[:6]}"

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.features(self.body(x.float()).mean((2, 3))))

    def logits(self, x: Tensor) -> Tensor:
        """(n, K) unnormalised log-probabilities."""
        return self.head(self(x))

    def save(self, path: str | Path) -> None:
        """Writes the classifier as safetensors, so that later numbers can be compared with today's."""
        about = {"channels": self.channels, "classes": self.classes, "width": self.width, "accuracy": self.accuracy}
        write_tensors(path, self.state_dict(), {_META: json.dumps(about)})


def load_classifier(path: str | Path) -> Classifier:
    """The classifier that `save` wrote. ValueError, in one line, for anything else."""
    from safetensors import safe_open

    tensors = read_tensors(path)
    with safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
        about = (file.metadata() or {}).get(_META)
    if about is None:
        raise ValueError(f"{path} is no classifier of unstir (train_classifier(…).save); it holds other weights")
    told = json.loads(about)
    made = Classifier(told["channels"], told["classes"], told["width"])
    made.load_state_dict(tensors)
    made.accuracy = told["accuracy"]
    return made.eval().requires_grad_(False)


def train_classifier(
    dataset: Any, *, held_out: int | None = None, steps: int = 400, batch: int = 128, width: int = 32, seed: int = 0
) -> Classifier:
    """A `Classifier` of a labelled `data.Dataset` of pictures; the same bits for the same arguments on one machine.

    held_out: pictures kept for `accuracy` (default: a sixth). Steps of AdamW under a one-cycle learning rate up to 3e-3, label
    smoothing 0.1, pictures shifted by up to a sixteenth of their side. Raises ValueError without labels or pictures.
    """
    if dataset.labels is None or len(dataset.classes) < 2:
        raise ValueError(f"{dataset.name} has no labels of two classes or more; a classifier needs them (or use 'randconv')")
    if len(dataset.shape) != 3:
        raise ValueError(f"{dataset.name} has samples of shape {dataset.shape}; the classifier is for pictures (C, H, W)")
    for name, value in (("steps", steps), ("batch", batch), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
    if width % 8:
        raise ValueError(f"width={width} must be a multiple of 8")
    train, test = dataset.split(max(1, len(dataset) // 6) if held_out is None else held_out, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(dataset.shape[0], dataset.classes, width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    reach = max(1, max(dataset.shape[1:]) // 16)
    for _ in range(steps):
        rows = torch.randint(len(train), (min(batch, len(train)),), generator=generator).tolist()
        x, y = train.batch(rows)
        down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        x = F.pad(x, [reach] * 4, mode="replicate")
        x = x[..., reach + down : reach + down + dataset.shape[1], reach + right : reach + right + dataset.shape[2]]
        loss = F.cross_entropy(network.logits(check_samples(x, "pictures", 1)), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    right_ones = 0
    for rows in torch.arange(len(test)).split(256):
        x, y = test.batch(rows.tolist())
        right_ones += int((network.logits(x).argmax(1) == y).sum())
    network.accuracy = right_ones / len(test)
    return network
