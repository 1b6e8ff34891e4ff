"""Sound files: samples as float32 in [−1, 1], written back in the form they came in.

Whatever libsndfile knows is read (WAV, FLAC, OGG, AIFF, …), at any rate, with any number of
channels. `soundfile` and `scipy` come with the extra `unstir[speech]` and are imported when first
needed. A file is checked where it enters: one that cannot be used raises ValueError with its name,
one that is merely poor (silent, clipped) is described by `faults`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import need
from .._files import atomic_file

SOUNDS = (".wav", ".flac", ".ogg", ".aiff", ".aif", ".w64", ".caf", ".au")
_BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_EXACT = ("FLOAT", "DOUBLE")  # forms that hold any number, beyond ±1 too
FULL = 1 - 2**-14  # from here on a sample counts as full scale
RUN = 3  # so many full-scale samples in a row are clipping; a single one is a peak


@dataclass(frozen=True)
class Form:
    """How a sound is stored: rate in Hz, channels, length in samples, container, number format, and its texts (title, …)."""

    rate: int
    channels: int
    length: int
    container: str = "WAV"
    subtype: str = "PCM_16"
    endian: str = "FILE"
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.length / self.rate

    def describe(self) -> str:
        """One line: "8000 Hz, mono, 2.31 s, WAV PCM_16"."""
        voices = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return f"{self.rate} Hz, {voices}, {self.seconds:.2f} s, {self.container} {self.subtype}"


def form_of(path: str | Path) -> Form:
    """The form of a file, from its header. ValueError if it is missing, no sound, or without a single sample."""
    with _opened(Path(path)) as file:
        form = Form(file.samplerate, file.channels, file.frames, file.format, file.subtype, file.endian, file.copy_metadata())
    if form.length < 1:
        raise ValueError(f"{path} holds no samples")
    return form


def read_wav(path: str | Path) -> tuple[Tensor, int]:
    """(samples, rate): float32 (C, T), integer formats divided by 2^(bits − 1), and the rate in Hz.

    Raises ValueError for a file that is missing, no sound, empty, or holds NaN or infinities.
    """
    form = form_of(path)
    return read_part(path, 0, form.length), form.rate


def read_part(path: str | Path, start: int, length: int) -> Tensor:
    """Samples start … start + length − 1 of a file, or as many as there are: (C, ≤ length)."""
    return next(windows(path, range(start, start + 1), length))


def windows(path: str | Path, starts: range, length: int) -> Iterator[Tensor]:
    """The samples (C, ≤ length) from each start on, read one window at a time: a long file needs the memory of one window."""
    with _opened(Path(path)) as file:
        for start in starts:
            file.seek(start)
            yield _samples(file, length, path, start)


def _samples(file: Any, length: int, path: str | Path, start: int) -> Tensor:
    try:
        found = file.read(length, dtype="float32", always_2d=True)
    except Exception as error:  # soundfile.LibsndfileError and its like
        raise ValueError(f"{path} cannot be read: {_line(error)}") from None
    if not np.isfinite(found).all():
        first = start + int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise ValueError(f"{path} holds NaN or infinite samples, the first at {first / file.samplerate:.3f} s")
    return torch.from_numpy(np.ascontiguousarray(found.T))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    soundfile = need("soundfile")
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        file = soundfile.SoundFile(path)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as sound: {_line(error)}") from None
    with file:
        yield file


def write_wav(path: str | Path, samples: Tensor, rate: int, *, like: Form | None = None) -> None:
    """Writes samples (C, T) atomically, in the container and number format of `like` (default: 16-bit WAV).

    Integer formats get round(2^(bits − 1) x), clipped to their range: what `read_wav` read is
    written back bit for bit. The format is that of `like`, whatever the ending of `path`.
    """
    if samples.ndim != 2 or 0 in samples.shape:
        raise ValueError(f"samples has shape {tuple(samples.shape)}; it must be (channels, length), both at least 1")
    form = like or Form(rate, len(samples), samples.shape[1])
    with writer(path, form, rate, len(samples)) as write:
        write(samples)


@contextmanager
def writer(path: str | Path, form: Form, rate: int | None = None, channels: int | None = None) -> Iterator[Any]:
    """Yields write(samples (C, t)), which appends; the file appears under its name when the block ends without error."""
    soundfile = need("soundfile")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; give the name of a file in it")
    options = {"format": form.container, "subtype": form.subtype, "endian": form.endian}
    with atomic_file(path) as temporary:
        try:
            file = soundfile.SoundFile(temporary, "w", rate or form.rate, channels or form.channels, **options)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be written as {form.container} {form.subtype}: {_line(error)}") from None
        with file:
            for name, text in form.texts.items():
                setattr(file, name, text)
            yield lambda samples: file.write(_stored(samples, form.subtype))


def _stored(samples: Tensor, subtype: str) -> np.ndarray:
    """The array (t, C) from which soundfile makes the format without a rounding of its own."""
    values = samples.detach().cpu().double().numpy().T
    if not np.isfinite(values).all():
        raise ValueError("samples contains NaN or infinite values")
    if subtype in _EXACT:
        return values
    if subtype not in _BITS:
        return values.clip(-1, 1)
    bits = _BITS[subtype]
    # libsndfile would scale floats by 2^(bits−1) − 1 but reads them by 2^(bits−1); integers it only shifts.
    whole = np.rint(values * 2 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (whole * 2 ** (32 - bits)).astype(np.int32)


def faults(samples: Tensor) -> list[str]:
    """What is wrong with samples (C, T) that can be read: "silent", "clipped (…)", "channel 2 is silent"; often nothing.

    Silent: every sample is zero. Clipped: at least 3 samples in a row stand at full scale.
    """
    if not bool(samples.any()):
        return ["silent"]
    found = [f"channel {c + 1} is silent" for c, row in enumerate(samples) if not bool(row.any())]
    full = (samples.abs() >= FULL).float()
    if samples.shape[1] >= RUN:
        runs = full.unfold(1, RUN, 1).amin(2)
        if bool(runs.any()):
            found.append(f"clipped ({int(full.sum())} samples at full scale)")
    return found


def resample(samples: Tensor, rate: int, to: int) -> Tensor:
    """Samples (C, T) at `rate` Hz as (C, ⌈T·to/rate⌉) at `to` Hz: polyphase filtering, no shift in time.

    The low-pass lies at the lower of the two Nyquist frequencies (`scipy.signal.resample_poly`).
    """
    for name, value in (("rate", rate), ("to", to)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of Hz, at least 1")
    if rate == to:
        return samples
    common = math.gcd(rate, to)
    signal = need("scipy.signal")
    found = signal.resample_poly(samples.double().numpy(), to // common, rate // common, axis=-1)
    return torch.from_numpy(found).to(samples.dtype)


def peak(samples: Tensor) -> Tensor:
    """max |x| over all of the samples (C, T), 1 where they are silent: x/peak is loud, and never 0/0."""
    top = samples.abs().amax()
    return torch.where(top > 0, top, torch.ones_like(top))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
