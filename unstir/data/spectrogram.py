"""Sound as a picture of complex numbers, compressed in amplitude, and exactly back.

    C = STFT(x),     c = κ |C|^ε e^{i∠C},     x = STFT⁻¹((|c|/κ)^{1/ε} e^{i∠c})

Speech has few loud bins and many faint ones; with ε = ½ all of them get a say, and a noise of one
size for every bin becomes a sensible process. Source: Speech Enhancement and Dereverberation with
Diffusion-based Generative Models, 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Spectrogram:
    """The transform of sounds at `rate` Hz to real pictures and back.

    n_fft: window of a frame in samples (periodic Hann), even; F = n_fft/2 + 1 frequencies.
    hop: samples from frame to frame, at most n_fft/2.
    exponent, factor: ε and κ. Every bin is multiplied by κ after compression.
    fold: k × k neighbouring bins become channels of one: a smaller, deeper picture of the same
        numbers, on which a network is several times faster. 1 folds nothing.
    frames: the number of frames is made a multiple of this, by zeros at the end of the sound.

    A sound (B, T) becomes (B, 2k², F/k, N/k): real and imaginary parts are channels.
    """

    rate: int
    n_fft: int = 510
    hop: int = 128
    exponent: float = 0.5
    factor: float = 0.15
    fold: int = 1
    frames: int = 64

    def __post_init__(self) -> None:
        for f in fields(self):
            value, whole = getattr(self, f.name), f.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
                raise ValueError(f"{f.name}={value!r} must be a {'whole ' if whole else ''}number above 0")
        if self.n_fft % 2:
            raise ValueError(f"n_fft={self.n_fft} must be even")
        if self.hop > self.n_fft // 2:
            raise ValueError(f"hop={self.hop} must be at most n_fft/2 = {self.n_fft // 2}, or the inverse would not be exact")
        if self.exponent > 1:
            raise ValueError(f"exponent={self.exponent} must be at most 1, which compresses nothing")
        for name, size in (("the number of frequencies", self.n_fft // 2 + 1), ("frames", self.frames)):
            if size % self.fold:
                raise ValueError(f"fold={self.fold} must divide {name}, {size}")

    @property
    def channels(self) -> int:
        """Channels of a picture, 2k²."""
        return 2 * self.fold**2

    def shape(self, length: int) -> tuple[int, int, int]:
        """(2k², F/k, N/k), the picture of `length` samples."""
        return self.channels, (self.n_fft // 2 + 1) // self.fold, self.count(length) // self.fold

    def count(self, length: int) -> int:
        """The frames of `length` samples: 1 + ⌈length/hop⌉, rounded up to a multiple of `frames`."""
        return -(-(1 + -(-length // self.hop)) // self.frames) * self.frames

    def __call__(self, sound: Tensor) -> Tensor:
        """The picture (B, 2k², F/k, N/k) of a sound (B, T)."""
        if sound.ndim != 2 or 0 in sound.shape:
            raise ValueError(f"sound has shape {tuple(sound.shape)}; it must be (batch, samples), both at least 1")
        whole = F.pad(sound, (0, (self.count(sound.shape[1]) - 1) * self.hop - sound.shape[1]))
        spectrum = torch.stft(whole, self.n_fft, self.hop, window=self._window(sound), pad_mode="constant", return_complex=True)
        small = torch.polar(self.factor * spectrum.abs() ** self.exponent, spectrum.angle())
        return F.pixel_unshuffle(torch.view_as_real(small).movedim(-1, 1), self.fold)

    def inverse(self, picture: Tensor, length: int) -> Tensor:
        """The sound (B, length) of a picture. Exact: inverse(forward(x), T) = x up to rounding."""
        if picture.ndim != 4 or picture.shape[1:] != self.shape(length):
            raise ValueError(f"picture has shape {tuple(picture.shape)}; {length} samples have (B, *{self.shape(length)})")
        parts = F.pixel_shuffle(picture, self.fold).movedim(1, -1).contiguous()
        small = torch.view_as_complex(parts)
        spectrum = torch.polar((small.abs() / self.factor) ** (1 / self.exponent), small.angle())
        return torch.istft(spectrum, self.n_fft, self.hop, window=self._window(parts))[:, :length]

    def power(self, sound: Tensor) -> Tensor:
        """|C|² of a sound (B, T), uncompressed: (B, F, N)."""
        spectrum = torch.stft(sound, self.n_fft, self.hop, window=self._window(sound), pad_mode="constant", return_complex=True)
        return spectrum.abs().square()

    def decibels(self, sound: Tensor, floor: float = -80.0) -> Tensor:
        """10 log₁₀ |C|² of a sound (B, T), relative to its loudest bin and cut off at `floor`: (B, F, N), for looking at."""
        power = self.power(sound)
        return 10 * (power / power.amax().clamp_min(1e-30)).clamp_min(10 ** (floor / 10)).log10()

    def spec(self) -> dict[str, Any]:
        """The options, JSON-able: meta["sound"] of a model for sound."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Spectrogram:
        """The transform that `spec` described. ValueError for anything else."""
        try:
            return cls(**spec)
        except TypeError as error:
            raise ValueError(f"sound={dict(spec)!r} does not describe a spectrogram: {error}") from None

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)
