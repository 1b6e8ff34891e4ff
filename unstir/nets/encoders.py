"""What a condition becomes before the network sees it: tokens to attend to, or channels beside the state.

    labels     (B,) integers, K = none                → one token;      where the network has its own embedding: the integers
    tokens     (B, L) integers, 0 = nothing           → L tokens, by a small transformer that is trained along
    clip       (B, L) integers                        → L tokens, by transformers' CLIPTextModel
    picture    (B, k, h, w) numbers of the state's own sides    → themselves
    map        (B, H, W) classes, K = unknown, H = 2ⁿ h         → one-hot, halved n times, 1 × 1 convolution: k channels

Each knows its `null`, the raw value which says that there is no condition; being a number it is in the model's meta, and
the embeddings that it selects are trained wherever the condition is dropped. Texts become integers by `Words`, layouts
by `layout_ids`.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Encoder(nn.Module):
    """raw condition (B, *) → tokens (B, n, width), channels (B, channels, h, w), or integers; null: the raw value of "none"."""

    null: float = 0.0  # an integer only where all of 0 … null are classes: sampling then checks what it is given
    channels = 0

    def blank(self, x: Tensor) -> Tensor:
        """Raw values of the shape that a batch of states x takes, all of them null."""
        raise NotImplementedError


class Labels(Encoder):
    """A class, as one token; or as it is, for a network with an embedding of its own (width=0)."""

    def __init__(self, classes: int, width: int = 0) -> None:
        super().__init__()
        self.null = classes
        self.embed = nn.Embedding(classes + 1, width) if width else None

    def blank(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), int(self.null), device=x.device)

    def forward(self, label: Tensor) -> Tensor:
        if not bool(((label >= 0) & (label <= self.null)).all()):
            raise ValueError(
                f"labels from {int(label.min())} to {int(label.max())}; they are 0 … {int(self.null)}, the last: none"
            )
        return label if self.embed is None else self.embed(label)[:, None]


class Tokens(Encoder):
    """Integers 0 … vocabulary − 1 through a transformer: h = E + P, then `layers` blocks, LayerNorm. Places that hold 0 are
    attended to as well, so that "nothing" is a text of its own, which is learned.

    words: of `Words`, for an encoder of texts (the vocabulary is then theirs).
    """

    def __init__(
        self, width: int, length: int, vocabulary: int = 0, layers: int = 2, heads: int = 4, words: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.length, self.words = length, Words(words, length) if words else None
        vocabulary = len(words) + 2 if words else vocabulary
        if vocabulary < 2:
            raise ValueError(f"vocabulary={vocabulary} must be at least 2: 0 means nothing")
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def blank(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.length, dtype=torch.int64, device=x.device)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place[:, : ids.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class Clip(Encoder):
    """transformers' CLIPTextModel, built from the options of its config; frozen unless train=True.

    null: the integer that the empty prompt consists of. Load trained weights into `.model`.
    """

    def __init__(self, config: Mapping[str, Any], null: int = 0, train: bool = False) -> None:
        super().__init__()
        from .._extras import need

        library = need("transformers")
        self.model = library.CLIPTextModel(library.CLIPTextConfig(**config))
        self.null, self.length, self.learns = float(null), int(self.model.config.max_position_embeddings), train
        self.model.requires_grad_(train)

    def blank(self, x: Tensor) -> Tensor:
        return torch.full((len(x), self.length), int(self.null), device=x.device)

    def train(self, mode: bool = True) -> Clip:
        return super().train(mode and self.learns)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).last_hidden_state


class PictureBeside(Encoder):
    """Channels with the state's own sides, as they are: a small picture, latents of a masked one and its mask."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def blank(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.channels, *x.shape[2:])

    def forward(self, picture: Tensor) -> Tensor:
        return picture


class SemanticMap(Encoder):
    """A class at every pixel of a picture whose sides are 2^halvings those of the state."""

    def __init__(self, classes: int, channels: int = 3, halvings: int = 2) -> None:
        super().__init__()
        self.null, self.channels, self.halvings = classes, channels, halvings
        self.mix = nn.Conv2d(classes, channels, 1)

    def blank(self, x: Tensor) -> Tensor:
        sides = tuple(side * 2**self.halvings for side in x.shape[2:])
        return torch.full((len(x), *sides), int(self.null), device=x.device)

    def forward(self, classes: Tensor) -> Tensor:
        h = F.one_hot(classes.long(), int(self.null) + 1)[..., :-1].movedim(-1, 1).to(self.mix.weight.dtype)
        for _ in range(self.halvings):
            h = F.interpolate(h, scale_factor=0.5, mode="bilinear")
        return self.mix(h)


ENCODERS: dict[str, type[Encoder]] = {
    "labels": Labels,
    "tokens": Tokens,
    "clip": Clip,
    "picture": PictureBeside,
    "map": SemanticMap,
}


class Words:
    """Texts as integers: 0 nothing, 1 a word that is not known, 2 … the known ones. Small letters; punctuation counts.

    words(texts) → (B, length); warns of what did not fit.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words, self.length = tuple(words), length
        self._number = {word: i + 2 for i, word in enumerate(self.words)}

    @staticmethod
    def of(texts: Iterable[str], limit: int = 4096) -> tuple[str, ...]:
        """The `limit` most frequent words of some texts, in an order that depends on nothing else."""
        counted = Counter(word for text in texts for word in _split(text))
        return tuple(sorted(sorted(counted, key=lambda w: (-counted[w], w))[:limit]))

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        rows = []
        for text in [texts] if isinstance(texts, str) else texts:
            found = _split(text)
            if len(found) > self.length:
                dropped = " ".join(found[self.length :])
                warnings.warn(f"the text is longer than {self.length} words; not seen: {dropped!r}", stacklevel=2)
            ids = [self._number.get(word, 1) for word in found[: self.length]]
            rows.append(ids + [0] * (self.length - len(ids)))
        return torch.tensor(rows)


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def layout_ids(boxes: Sequence[Sequence[float]], labels: Sequence[int], classes: int, grid: int, length: int) -> Tensor:
    """(length,) integers of one layout: for each object its class, the cell of its upper left and of its lower right corner.

    boxes: (left, top, right, bottom) as shares of the picture, 0 … 1;  labels: 0 … classes − 1;  grid: cells a side.
    The vocabulary is 1 + classes + grid², 0 meaning nothing.

    Raises ValueError for boxes that are none, unknown classes, or more objects than length/3.
    """
    if len(boxes) != len(labels) or 3 * len(boxes) > length:
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels; give one label a box, and at most {length // 3} boxes")
    ids: list[int] = []
    for box, label in zip(boxes, labels, strict=True):
        left, top, right, bottom = box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1) or not 0 <= label < classes:
            raise ValueError(
                f"box {tuple(box)} of class {label}: need 0 ≤ left < right ≤ 1, 0 ≤ top < bottom ≤ 1, class < {classes}"
            )
        cells = [min(int(v * grid), grid - 1) for v in (left, top, right, bottom)]
        ids += [1 + label, 1 + classes + cells[1] * grid + cells[0], 1 + classes + cells[3] * grid + cells[2]]
    return torch.tensor(ids + [0] * (length - len(ids)))
