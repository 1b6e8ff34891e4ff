"""Sound files: bit for bit back, resampled without a shift, and refused by name where they cannot be used."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from unstir.data.sound import Form, faults, form_of, peak, read_wav, resample, windows, write_wav, writer

soundfile = pytest.importorskip("soundfile")


def tone(rate: int, hertz: float, seconds: float = 0.5) -> torch.Tensor:
    t = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (0.5 * torch.sin(2 * math.pi * hertz * t))[None].float()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_integers_come_back_bit_for_bit(tmp_path: Path, subtype: str, channels: int) -> None:
    bits = {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 24}[subtype]  # float32 holds 24 of 32 bits
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = np.random.default_rng(0).integers(low, high, (1000, channels), endpoint=True)
    values[:2] = [[low], [high]]
    stored = (values << (32 - bits)).astype(np.int32)
    soundfile.write(tmp_path / "a.wav", stored, 11025, subtype)
    samples, rate = read_wav(tmp_path / "a.wav")
    assert (rate, samples.shape, samples.dtype) == (11025, (channels, 1000), torch.float32)
    assert torch.equal(samples.double(), torch.from_numpy(values.T / 2 ** (bits - 1)))
    write_wav(tmp_path / "b.wav", samples, rate, like=form_of(tmp_path / "a.wav"))
    again, _ = soundfile.read(tmp_path / "b.wav", dtype="int32", always_2d=True)
    assert np.array_equal(again, stored)
    assert form_of(tmp_path / "b.wav") == form_of(tmp_path / "a.wav")


@pytest.mark.parametrize(("ending", "subtype"), [("wav", "FLOAT"), ("flac", "PCM_24"), ("aiff", "PCM_16")])
def test_form_and_texts_are_kept(tmp_path: Path, ending: str, subtype: str) -> None:
    with soundfile.SoundFile(tmp_path / f"a.{ending}", "w", 48000, 2, subtype) as file:
        file.title, file.artist = "Morning", "A bird"
        file.write(np.random.default_rng(0).uniform(-0.5, 0.5, (480, 2)))
    form = form_of(tmp_path / f"a.{ending}")
    assert (form.rate, form.channels, form.length, form.subtype) == (48000, 2, 480, subtype)
    samples, rate = read_wav(tmp_path / f"a.{ending}")
    write_wav(tmp_path / f"b.{ending}", samples, rate, like=form)
    assert form_of(tmp_path / f"b.{ending}") == form
    assert form.texts["title"] == "Morning"
    assert torch.equal(read_wav(tmp_path / f"b.{ending}")[0], samples)


def test_beyond_full_scale(tmp_path: Path) -> None:
    loud = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    write_wav(tmp_path / "a.wav", loud, 8000)
    assert read_wav(tmp_path / "a.wav")[0].tolist() == [[1 - 2**-15, -1.0, 1 - 2**-15, -1.0]]
    write_wav(tmp_path / "b.wav", loud, 8000, like=Form(8000, 1, 4, "WAV", "FLOAT"))
    assert torch.equal(read_wav(tmp_path / "b.wav")[0], loud)


def test_windows_are_parts_of_the_whole(tmp_path: Path) -> None:
    samples = torch.rand(2, 1000) - 0.5
    write_wav(tmp_path / "a.wav", samples, 8000, like=Form(8000, 2, 1000, "WAV", "FLOAT"))
    parts = list(windows(tmp_path / "a.wav", range(0, 1000, 300), 400))
    assert [p.shape[1] for p in parts] == [400, 400, 400, 100]
    assert all(torch.equal(part, samples[:, s : s + 400]) for part, s in zip(parts, range(0, 1000, 300), strict=True))


def test_writer_leaves_nothing_of_a_run_that_failed(tmp_path: Path) -> None:
    def run() -> None:
        with writer(tmp_path / "a.wav", Form(8000, 1, 0)) as write:
            write(torch.zeros(1, 10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rate", "to"), [(44100, 8000), (8000, 16000), (22050, 8000)])
def test_resampling_keeps_a_tone_in_its_place(rate: int, to: int) -> None:
    found, exact = resample(tone(rate, 440), rate, to), tone(to, 440)
    assert found.shape[1] == math.ceil(rate * 0.5 * to / rate)
    inside = slice(to // 20, -to // 20)  # away from the ends, where the tone is cut off
    assert float((found - exact)[:, inside].abs().max()) < 2e-3
    assert torch.equal(resample(exact, to, to), exact)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    inside = slice(50, -50)  # the ends of a tone that is cut off are no tone
    assert float(resample(tone(48000, 7000), 48000, 8000)[:, inside].abs().max()) < 1e-3 * 0.5


def test_faults() -> None:
    sound = tone(8000, 100)
    assert faults(sound) == []
    assert faults(torch.zeros(2, 100)) == ["silent"]
    assert faults(torch.cat([sound, 0 * sound])) == ["channel 2 is silent"]
    assert faults((4 * sound).clamp(-1, 1))[0].startswith("clipped (")
    assert faults(2 * sound) == []  # its peaks touch full scale with single samples
    assert float(peak(torch.zeros(1, 5))) == 1
    assert float(peak(sound)) == float(sound.abs().max())


def _nan(path: Path) -> None:
    values = np.zeros(4000)
    values[2000] = np.nan
    soundfile.write(path, values, 8000, "FLOAT")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda p: None, "is missing", id="missing"),
        pytest.param(lambda p: p.write_bytes(b"RIFF, but no sound"), "cannot be read as sound", id="text"),
        pytest.param(lambda p: soundfile.write(p, np.zeros((0, 1)), 8000), "holds no samples", id="empty"),
        pytest.param(_nan, "holds NaN or infinite samples, the first at 0.250 s", id="nan"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=rf"a\.wav {message}"):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda p: write_wav(p / "a.wav", torch.zeros(5), 8000), "channels, length", id="one axis"),
        pytest.param(lambda p: write_wav(p / "a.wav", torch.full((1, 5), math.nan), 8000), "NaN", id="nan"),
        pytest.param(lambda p: write_wav(p, torch.zeros(1, 5), 8000), "is a folder", id="folder"),
        pytest.param(
            lambda p: write_wav(p / "a", torch.zeros(1, 5), 8000, like=Form(8000, 1, 5, "FLAC", "FLOAT")),
            "cannot be written as FLAC FLOAT",
            id="format",
        ),
        pytest.param(lambda p: resample(torch.zeros(1, 5), 8000, 0), "to=0", id="rate"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
