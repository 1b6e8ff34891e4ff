"""Speech to learn from, and noises to spoil it with, for the systems that restore sound.

Real speech: the folder or zip that the environment variable UNSTIR_SPEECH names, in the layout of the Free Spoken Digit
Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset): files {digit}_{speaker}_{index}.wav. Without it, digits
spoken by espeak-ng in six voices (`pip install "unstir[speech,espeak]"`): a stand-in without breath, room or microphone.

All is at 8 kHz, and everything drawn comes from the generator that is passed in.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad

from .._extras import need
from ..data.sound import read_wav, resample

RATE = 8000
VARIABLE = "UNSTIR_SPEECH"
HELD_OUT = 2  # speakers, the last ones by name
Speech = dict[str, list[Tensor]]  # {speaker: utterances (T,)}

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("en-us", "en-us+f2", "en-gb-x-rp+m3", "en-gb-x-rp+f3", "en-gb-scotland+m7", "en-us+f4")


def speech() -> tuple[str, Speech, Speech]:
    """(what it is, {speaker: utterances} to learn from, the same of held-out speakers).

    Raises ValueError if UNSTIR_SPEECH names nothing usable, ImportError if there is neither that nor a synthesiser.
    """
    named = os.environ.get(VARIABLE)
    if named:
        what, found = f"recorded digits ({Path(named).name})", recorded(Path(named))
    else:
        try:
            what, found = "digits spoken by espeak-ng", synthesised()
        except (ImportError, OSError):
            raise ImportError(
                f"no speech to learn from: pip install 'unstir[speech,espeak]' for a synthesiser, or let {VARIABLE} name a "
                "folder or zip of recordings {digit}_{speaker}_{index}.wav, such as the Free Spoken Digit Dataset"
            ) from None
    names = sorted(found)
    return what, {n: found[n] for n in names[:-HELD_OUT]}, {n: found[n] for n in names[-HELD_OUT:]}


def recorded(source: Path) -> Speech:
    """The recordings of a folder or a zip by speaker, mono; silent ones and other names are left out."""
    if source.is_dir():
        files = [(p.name, p) for p in source.rglob("*.wav")]
    elif source.is_file() and zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
        files = [(Path(n).name, io.BytesIO(archive.read(n))) for n in archive.namelist() if n.endswith(".wav")]
    else:
        raise ValueError(f"{VARIABLE}={str(source)!r} is neither a folder nor a zip of WAV files")
    found: Speech = {}
    for name, file in sorted(files, key=lambda pair: pair[0]):
        parts = name.removesuffix(".wav").split("_")
        if len(parts) == 3:
            samples, rate = read_wav(file) if isinstance(file, Path) else _in_memory(file)
            if bool(samples.any()):
                found.setdefault(parts[1], []).append(resample(samples.mean(0, keepdim=True), rate, RATE)[0])
    if len(found) <= HELD_OUT:
        raise ValueError(
            f"{VARIABLE}={str(source)!r} holds {len(found)} speakers in files {{digit}}_{{speaker}}_{{index}}.wav; "
            f"more than {HELD_OUT} are needed, since {HELD_OUT} are held out"
        )
    return found


def _in_memory(file: io.BytesIO) -> tuple[Tensor, int]:
    values, rate = need("soundfile").read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(values.T.copy()), rate


def synthesised() -> Speech:
    """Ten digits in six voices, each at four speeds and three pitches, through espeak-ng's C interface."""
    loader = need("espeakng_loader")
    engine = ctypes.CDLL(loader.get_library_path())
    engine.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    rate = engine.espeak_Initialize(2, 0, str(loader.get_data_path()).encode(), 0)  # 2: synchronous, into the callback
    spoken: list[Tensor] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def listen(samples: ctypes._Pointer, count: int, events: int) -> int:
        if samples and count > 0:
            spoken.append(torch.tensor(samples[:count], dtype=torch.float32) / 2**15)
        return 0

    engine.espeak_SetSynthCallback(listen)
    found: Speech = {}
    for number, voice in enumerate(VOICES):
        if engine.espeak_SetVoiceByName(voice.encode()):
            raise OSError(f"espeak-ng has no voice {voice}")
        for speed in (130, 150, 170, 190):
            for pitch in (35, 50, 65):
                engine.espeak_SetParameter(1, speed, 0)
                engine.espeak_SetParameter(3, pitch, 0)
                for word in WORDS:
                    spoken.clear()
                    text = word.encode()
                    engine.espeak_Synth(text, len(text) + 1, 0, 0, 0, 1, None, None)
                    found.setdefault(f"{number} {voice}", []).append(resample(torch.cat(spoken)[None], rate, RATE)[0])
    return found


# -- drawing ------------------------------------------------------------------------------------------------
def whole(g: Generator, n: int) -> int:
    """A whole number from 0 to n − 1."""
    return int(torch.randint(n, (1,), generator=g))


def between(g: Generator, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * float(torch.rand(1, generator=g))


def sentence(utterances: Sequence[Tensor], words: int, g: Generator, varied: bool = False) -> Tensor:
    """`words` utterances (T,) of about equal loudness with pauses between them.

    varied: spoken 0.8 to 1.25 times as fast, and through a random filter of ± 4 dB: few speakers are made many.
    """
    speed, parts = between(g, 0.8, 1.25), []
    for _ in range(words):
        word = utterances[whole(g, len(utterances))]
        if varied:
            word = interpolate(word[None, None], scale_factor=1 / speed, mode="linear")[0, 0]
        parts += [word / _loudness(word) * between(g, 0.7, 1.4), torch.zeros(int(RATE * between(g, 0.03, 0.15)))]
    spoken = torch.cat(parts)
    return _filtered(spoken, g) if varied else spoken


def _loudness(x: Tensor) -> Tensor:
    return x.square().mean().sqrt().clamp_min(1e-8)


def _filtered(x: Tensor, g: Generator) -> Tensor:
    """x through a filter whose response in dB runs linearly through six random points."""
    spectrum = torch.fft.rfft(x)
    decibels = interpolate(4 * torch.randn(1, 1, 6, generator=g), size=len(spectrum), mode="linear", align_corners=True)
    return torch.fft.irfft(spectrum * 10 ** (decibels[0, 0] / 20), n=len(x))


# -- noises (n,), of any loudness ---------------------------------------------------------------------------
def white(n: int, others: Mapping[str, Sequence[Tensor]], g: Generator) -> Tensor:
    """Equal power at all frequencies."""
    return torch.randn(n, generator=g)


def pink(n: int, others: Mapping[str, Sequence[Tensor]], g: Generator) -> Tensor:
    """Power falling as 1/f."""
    spectrum = torch.fft.rfft(torch.randn(n, generator=g))
    return torch.fft.irfft(spectrum / torch.arange(len(spectrum)).clamp_min(1).sqrt(), n=n)


def babble(n: int, others: Mapping[str, Sequence[Tensor]], g: Generator) -> Tensor:
    """Six voices at once, of speakers other than the one that is to be heard."""
    voices = []
    for _ in range(6):
        spoken = others[list(others)[whole(g, len(others))]]
        voice = torch.cat([sentence(spoken, 1, g) for _ in range(1 + n // (RATE // 4))])
        voices.append(cut(voice, n, g))
    return torch.stack([v / _loudness(v) for v in voices]).sum(0)


def hum(n: int, others: Mapping[str, Sequence[Tensor]], g: Generator) -> Tensor:
    """All harmonics of a frequency near 50 or 60 Hz, falling as f^−0.8, over faint white noise (−20 dB)."""
    base, t = between(g, 48, 62), torch.arange(n) / RATE
    k = torch.arange(1, int(RATE / 2 / base))
    heights = torch.randn(len(k), generator=g) * k**-0.8
    phases = torch.rand(len(k), generator=g)
    tone = (heights[:, None] * torch.sin(2 * math.pi * (base * k[:, None] * t + phases[:, None]))).sum(0)
    return tone / _loudness(tone) + 0.1 * torch.randn(n, generator=g)


NOISES = {"white": white, "pink": pink, "babble": babble, "hum": hum}


def mixed(clean: Tensor, noise: Tensor, decibels: float) -> Tensor:
    """clean + noise, the noise scaled so that the power of clean is `decibels` above it."""
    return clean + noise * _loudness(clean) / _loudness(noise) * 10 ** (-decibels / 20)


def cut(x: Tensor, n: int, g: Generator) -> Tensor:
    """n samples of x from a random place, with zeros behind it where x is shorter."""
    x = pad(x, (0, max(0, n - len(x))))
    start = whole(g, len(x) - n + 1)
    return x[start : start + n]
