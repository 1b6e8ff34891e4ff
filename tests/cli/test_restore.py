"""`unstir restore`: every kind of file comes back in its form, bad ones are named, and nothing is replaced unasked.

The model D = y/2, whatever the noise, makes the right answer known: pictures at half their contrast, sounds at a quarter
of their amplitude (half of a spectrogram whose amplitudes are square roots).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unstir.cli import main, measure
from unstir.data.picture import read_picture
from unstir.data.sound import form_of, read_wav
from unstir.data.spectrogram import Spectrogram
from unstir.process import VP, Flow

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
TRANSFORM = Spectrogram(8000, 126, 32, frames=8, fold=2)


class Toward(Flow):
    """x_t = (1 − t) x0 + t y + t z."""

    anchored = True

    def beta(self, t: object) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64)


class Halves(nn.Module):
    """D = y/2, and 0.1 x on top where `noisy`."""

    sees_anchor = True

    def __init__(self, shape: tuple[int, ...], meta: dict[str, Any], noisy: float = 0.0) -> None:
        super().__init__()
        self.shape, self.meta, self.noisy, self.plans = shape, meta, noisy, {}
        self.process = Toward()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: float, anchor: Tensor) -> Tensor:
        return anchor / 2 + self.noisy * x


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of any length stay on one line."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """use(model): what `unstir restore m …` loads."""

    def use(kind: str = "colour", noisy: float = 0.0) -> None:
        shape = {"colour": (3, 32, 32), "grey": (1, 16, 16), "sound": (8, 32, 16)}[kind]
        model = Halves(shape, {"sound": TRANSFORM.spec()} if kind == "sound" else {}, noisy)
        monkeypatch.setattr(measure, "load", lambda *_: model)

    return use


def run(*args: Any) -> int:
    return main(["restore", "m", *map(str, args), "--nfe", "2", "--solver", "ddim"])


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 35), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    Image.fromarray(values[..., :bands].squeeze()).save(path, **options)


# -- pictures -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["colour", "grey"])
@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGB"), ("b.png", "L"), ("c.png", "RGBA"), ("d.tif", "L"), ("e.bmp", "RGB")]
)
def test_pictures_of_every_kind(tmp_path: Path, use: Any, kind: str, name: str, mode: str) -> None:
    """Half the contrast, in windows, whether or not the model has the picture's number of channels."""
    use(kind)
    save(tmp_path / name, mode)
    assert run(tmp_path / name, "--out", tmp_path / "out", "--overlap", "5") == 0
    before, after = read_picture(tmp_path / name), read_picture(tmp_path / "out" / name)
    assert float((after.pixels - before.pixels / 2).abs().max()) <= 1.01 / 127.5 / 2 + 1e-6
    assert (after.format, after.pixels.shape) == (before.format, before.pixels.shape)
    assert mode != "RGBA" or np.array_equal(after.alpha, before.alpha)


def test_sixteen_bits_stay_sixteen(tmp_path: Path, use: Any) -> None:
    use("grey")
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 0
    found = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert np.abs(found - (values / 2 + 65535 / 4)).max() <= 1.01


def test_metadata_is_kept(tmp_path: Path, use: Any) -> None:
    use()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a bridge"  # turned by 90°, description
    profile = b"no profile, but bytes are kept"
    save(tmp_path / "a.jpg", exif=exif, icc_profile=profile, quality=70, dpi=(72, 72))
    assert run(tmp_path / "a.jpg", "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "out" / "a.jpg") as after:
        assert after.size == before.size[::-1]  # upright now
        assert dict(after.getexif()) == {0x010E: "a bridge"}
        assert after.info["icc_profile"] == profile
        assert after.info["dpi"] == (72, 72)
        assert after.quantization == before.quantization


def test_draws_their_mean_and_where_they_differ(tmp_path: Path, use: Any) -> None:
    use(noisy=0.3)
    save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--out", tmp_path / "out", "--n", "3") == 0
    draws = torch.stack([read_picture(tmp_path / "out" / f"a.sample-{k}.png").pixels for k in (1, 2, 3)])
    mean = read_picture(tmp_path / "out" / "a.png").pixels
    inside = (draws.abs() < 0.99).all(0)  # files are clipped, the mean was taken before
    assert float((draws.mean(0) - mean)[inside].abs().max()) <= 1.01 / 127.5
    spread = read_picture(tmp_path / "out" / "a.png.std.png").pixels
    assert float(spread.max()) == 1
    assert not torch.equal(draws[0], draws[1])


def test_metrics_stand_beside_the_input(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Truth = input/2 + 0.1: the restoration is off by 0.1, so PSNR = 10 log 4/0.01."""
    pytest.importorskip("torchmetrics")
    use()
    save(tmp_path / "in" / "sub" / "a.png")
    picture = read_picture(tmp_path / "in" / "sub" / "a.png")
    truth = ((picture.pixels / 2 + 0.1 + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    (tmp_path / "truth" / "sub").mkdir(parents=True)
    Image.fromarray(truth).save(tmp_path / "truth" / "sub" / "a.png")
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--reference", tmp_path / "truth") == 0
    record = json.loads((tmp_path / "out" / "restore.json").read_text())
    assert record["metrics"]["PSNR"]["restored"] == pytest.approx(26.02, abs=0.3)
    assert record["metrics"]["PSNR"]["input"] < 17
    assert (tmp_path / "out" / "sub" / "a.png").is_file()
    assert "PSNR (dB)" in capsys.readouterr().out
    assert "<img" in (tmp_path / "out" / "report.html").read_text()


def test_bad_files_are_named_and_counted(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use()
    save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "text.png").write_text("hello")
    (tmp_path / "in" / "half.png").write_bytes((tmp_path / "in" / "good.png").read_bytes()[:900])
    Image.new("CMYK", (20, 20)).save(tmp_path / "in" / "cmyk.jpg")
    first, second = Image.new("L", (20, 20)), Image.new("L", (20, 20), 9)
    first.save(tmp_path / "in" / "moving.gif", save_all=True, append_images=[second])
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 restored, 4 skipped" in said
    for part in ("text.png: cannot be used: it is no picture", "CMYK", "2 frames", "truncated"):
        assert part in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.png", "report.html", "restore.json"]


# -- sound ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "tolerance"),
    [
        ("a.wav", 8000, 1, "PCM_16", 1e-4),
        ("b.flac", 44100, 2, "PCM_24", 1e-2),
        ("c.wav", 11025, 2, "FLOAT", 1e-2),
        ("d.wav", 7999, 1, "PCM_32", 1e-2),
    ],
)
def test_long_sounds_at_any_rate(
    tmp_path: Path, use: Any, name: str, rate: int, channels: int, subtype: str, tolerance: float
) -> None:
    """Ten seconds are several windows; blended, they are a quarter of the input everywhere."""
    use("sound")
    t = np.arange(10 * rate) / rate
    values = np.stack([0.8 * np.sin(2 * np.pi * (300 + 500 * c) * t) * np.sin(3 * t) for c in range(channels)], 1)
    soundfile.write(tmp_path / name, values, rate, subtype)
    assert run(tmp_path / name, "--out", tmp_path / "out") == 0
    assert form_of(tmp_path / "out" / name) == form_of(tmp_path / name)
    before, after = read_wav(tmp_path / name)[0], read_wav(tmp_path / "out" / name)[0]
    inside = slice(rate // 20, -rate // 20)
    assert float((after - before / 4)[:, inside].abs().max()) < tolerance


def test_draws_of_a_sound_are_functions_of_seed_and_name(tmp_path: Path, use: Any) -> None:
    use("sound", noisy=0.3)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 20000), 8000)
    for out, seed, n in (("x", 1, 2), ("y", 1, 1), ("z", 2, 1)):
        assert run(tmp_path / "a.wav", "--out", tmp_path / out, "--seed", seed, "--n", n) == 0
    one, two, mean = (read_wav(tmp_path / "x" / f"a{part}.wav")[0] for part in (".sample-1", ".sample-2", ""))
    assert torch.equal(one, read_wav(tmp_path / "y" / "a.wav")[0])
    assert not torch.equal(one, read_wav(tmp_path / "z" / "a.wav")[0])
    assert float(((one + two) / 2 - mean).abs().max()) <= 1.01 * 2**-15
    assert (tmp_path / "x" / "a.wav.std.png").is_file()


def test_poor_and_bad_sounds(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use("sound", noisy=0.3)
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "silent.wav", np.zeros(3000), 8000)
    soundfile.write(folder / "clipped.wav", np.clip(3 * np.sin(np.arange(3000) / 9), -1, 1), 8000)
    soundfile.write(folder / "empty.wav", np.zeros(0), 8000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 8000, "FLOAT")
    soundfile.write(folder / "one.wav", np.array([0.5]), 8000)
    (folder / "text.wav").write_text("hello")
    assert run(folder, "--out", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 restored, 3 skipped" in said
    for part in (
        "empty.wav: holds no samples",
        "nan.wav: holds NaN",
        "text.wav: cannot be read",
        "silent.wav: silent",
        "clipped:",
    ):
        assert part in said
    assert not read_wav(tmp_path / "out" / "silent.wav")[0].any()
    assert read_wav(tmp_path / "out" / "one.wav")[0].shape == (1, 1)


def test_references_that_do_not_fit_are_named(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use("sound")
    for folder, name, count, rate in (
        ("in", "a", 4000, 8000), ("truth", "a", 4000, 8000), ("in", "b", 4000, 8000), ("truth", "b", 4000, 16000),
        ("in", "c", 4000, 8000), ("truth", "c", 3999, 8000), ("in", "d", 4000, 8000),
    ):  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        soundfile.write(tmp_path / folder / f"{name}.wav", np.random.default_rng(0).uniform(-0.5, 0.5, count), rate)
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--reference", tmp_path / "truth") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 restored, 3 skipped" in said
    for part in ("reference has rate 16000", "reference has length 3999", "d.wav is missing"):
        assert part in said
    assert json.loads((tmp_path / "out" / "restore.json").read_text())["metrics"].keys() <= {"SI-SDR", "ESTOI", "PESQ-NB"}


# -- refusals -------------------------------------------------------------------------------------
def refused(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    assert run(*args) == 2
    return " ".join(capsys.readouterr().err.split())


def test_nothing_is_replaced_unasked(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use()
    save(tmp_path / "a.png")
    original = (tmp_path / "a.png").read_bytes()
    assert "is an input and would be replaced" in refused(capsys, tmp_path / "a.png", "--out", tmp_path, "--force")
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 0
    first = (tmp_path / "out" / "a.png").read_bytes()
    use(noisy=0.5)
    assert "3 of the results exist already" in refused(capsys, tmp_path / "a.png", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == first
    assert run(tmp_path / "a.png", "--out", tmp_path / "out", "--force") == 0
    assert (tmp_path / "out" / "a.png").read_bytes() != first
    assert (tmp_path / "a.png").read_bytes() == original


def test_wrong_input_in_one_line(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    use()
    save(tmp_path / "x" / "a.png")
    save(tmp_path / "y" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("no")
    out = ("--out", tmp_path / "out")
    both = (tmp_path / "x" / "a.png", tmp_path / "y" / "a.png")
    assert "would both become a.png" in refused(capsys, *both, *out)
    assert "names no file" in refused(capsys, tmp_path / "*.jpg", *out)
    assert "holds no file with an ending" in refused(capsys, tmp_path / "empty", *out)
    assert "none of 1 files could be restored" in refused(capsys, tmp_path / "bad.png", *out)
    assert "--n 0 must be at least 1" in refused(capsys, both[0], *out, "--n", "0")
    assert "--mask and --noise are for a --task" in refused(capsys, both[0], *out, "--noise", "0.1")
    model = Halves((3, 8, 8), {})
    model.process = VP()
    monkeypatch.setattr(measure, "load", lambda *_: model)
    assert "was not trained on pairs: say with --task" in refused(capsys, both[0], *out)
    assert not (tmp_path / "out").exists()


def test_patterns_and_repeated_names(tmp_path: Path, use: Any) -> None:
    use()
    for name in ("a1.png", "a2.png", "b.png"):
        save(tmp_path / name)
    assert run(tmp_path / "a?.png", tmp_path / "a1.png", "--out", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a1.png", "a2.png"]
