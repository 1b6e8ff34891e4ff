"""Pairs: what is matched, cut, skipped with a reason, and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unstir.data import Pairs, load_pairs

Image = pytest.importorskip("PIL.Image")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six pairs of 8 × 12 grey pictures; the degraded one is the true one plus 3."""
    random = np.random.default_rng(0)
    for n in range(6):
        pixels = random.integers(0, 250, (8, 12), dtype=np.uint8)
        save(tmp_path / "gt" / "sub" / f"{n}.png", pixels)
        save(tmp_path / "lq" / "sub" / f"{n}.png", pixels + 3)
    return tmp_path / "lq", tmp_path / "gt"


def test_partners_meet_whatever_the_order_of_rows(folders) -> None:
    pairs = load_pairs(folders)
    assert isinstance(pairs, Pairs)
    assert (len(pairs), pairs.shape, pairs.skipped) == (6, (1, 8, 12), ())
    x, labels = pairs.batch([4, 0])
    assert labels is None
    torch.testing.assert_close(pairs.anchors([4, 0]) - x, torch.full_like(x, 3 / 127.5), rtol=0, atol=1e-6)
    assert pairs.std() == pytest.approx(3 / 127.5, rel=1e-5)  # of the residual
    colour = load_pairs(folders, channels=3)
    assert colour.shape == (3, 8, 12)


def test_windows_cover_a_picture_without_resizing(folders) -> None:
    pairs, whole = load_pairs(folders, size=8), load_pairs(folders)
    assert (len(pairs), pairs.shape, pairs.groups[:4]) == (12, (1, 8, 8), [0, 0, 1, 1])
    first = whole.all()[0]
    assert torch.equal(pairs.all()[0], first[:, :, :8])
    assert torch.equal(pairs.all()[1], first[:, :, 4:])
    assert torch.equal(pairs.anchors([1])[0], whole.anchors([0])[0][:, :, 4:])


def test_whole_files_are_held_out(folders) -> None:
    train, test = (load_pairs(folders, size=4, split=s) for s in ("train", "test"))
    assert len(train) + len(test) == len(load_pairs(folders, size=4))
    seen = {tuple(v.flatten().tolist()) for v in train.all()}
    assert not any(tuple(v.flatten().tolist()) in seen for v in test.all())
    assert not set(train.groups) & set(test.groups)
    assert test.fingerprint() != train.fingerprint()


def test_the_fingerprint_sees_the_degraded_side(folders) -> None:
    before = load_pairs(folders).fingerprint()
    save(folders[0] / "sub" / "0.png", np.zeros((8, 12), np.uint8))
    assert load_pairs(folders).fingerprint() != before


def test_wrong_pairs_are_skipped_and_named(folders) -> None:
    lq, gt = folders
    save(lq / "sub" / "0.png", np.zeros((4, 12), np.uint8))
    (lq / "sub" / "1.png").write_text("no picture")
    (gt / "sub" / "2.png").unlink()
    save(gt / "alone.png", np.zeros((8, 12), np.uint8))
    pairs = load_pairs(folders)
    reasons = {Path(name).name.removesuffix(".png"): why for name, why in pairs.skipped}
    assert len(pairs) == 3
    assert set(reasons) == {"0", "1", "2", "alone"}
    assert "12×4" in reasons["0"]
    assert "12×8" in reasons["0"]
    assert "identify" in reasons["1"]
    assert "no partner" in reasons["2"]
    assert "4 skipped" in pairs.describe()
    small = load_pairs(folders, size=8)
    assert len(small) == 6
    with pytest.raises(ValueError, match=r"no usable pair .* 7 skipped"):
        load_pairs(folders, size=9)


def test_different_sizes_need_windows(folders) -> None:
    for folder in folders:
        save(folder / "sub" / "7.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"2 sizes: 12×8 \(6\), 16×16 \(1\); give size="):
        load_pairs(folders)
    assert len(load_pairs(folders, size=8)) == 6 * 2 + 4


def test_arrays(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    np.save(tmp_path / "gt.npy", x)
    np.save(tmp_path / "lq.npy", x + 1)
    np.savez(tmp_path / "named.npz", clean=x, noisy=x + 1)
    np.savez(tmp_path / "two.npz", first=x + 1, second=x)
    np.savez(tmp_path / "three.npz", a=x, b=x, c=x)
    sources = [
        (tmp_path / "lq.npy", tmp_path / "gt.npy"),
        tmp_path / "named.npz",
        str(tmp_path / "two.npz"),
        (x + 1, torch.tensor(x)),
    ]
    for source in sources:
        pairs = load_pairs(source)
        assert torch.equal(pairs.all(), torch.tensor(x))
        assert torch.equal(pairs.anchors(range(9)), torch.tensor(x + 1))
    with pytest.raises(ValueError, match="a, b, c; name them 'lq' and 'gt'"):
        load_pairs(tmp_path / "three.npz")
    with pytest.raises(ValueError, match="pairs need equal shapes"):
        load_pairs((x, x[:4]))


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (("a", "b", "c"), {}, "3 entries"),
        (("nowhere", "elsewhere"), {}, "neither a folder nor"),
        ("nowhere.npz", {}, "that exists"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), {"size": 4}, "arrays are used whole"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), {"split": "half"}, "split='half'"),
        ((np.zeros((1, 2)), np.zeros((1, 2))), {"split": "train"}, "1 pair"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), {"channels": 2}, "channels=2"),
    ],
    ids=str,
)
def test_wrong_input_is_named(source, options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_pairs(source, **options)


def test_a_folder_of_another_kind_is_refused(folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither pictures nor sounds"):
        load_pairs((folders[0], tmp_path / "empty"))
    with pytest.raises(ValueError, match="its partner must be one"):
        load_pairs((folders[0], tmp_path / "gt.npy"))


# -- sounds ---------------------------------------------------------------------------------------------------
def _sound(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    soundfile = pytest.importorskip("soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


@pytest.fixture
def recordings(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    for n in range(3):
        clean = 0.4 * np.sin(np.arange(9000) * (0.1 + 0.05 * n))
        _sound(tmp_path / "clean" / f"{n}.wav", clean)
        _sound(tmp_path / "noisy" / f"{n}.wav", clean + 0.05 * random.normal(size=9000))
    return tmp_path / "noisy", tmp_path / "clean"


def test_sounds_become_windows_of_spectrograms(recordings) -> None:
    pairs = load_pairs(recordings)
    assert pairs.sound is not None
    assert pairs.sound.rate == 8000
    length = 63 * pairs.sound.hop
    assert (pairs.shape, pairs.groups) == (pairs.sound.shape(length), [0, 0, 1, 1, 2, 2])
    back = pairs.sound.inverse(pairs.anchors([0]), length)
    assert float(back.abs().max()) == pytest.approx(1, abs=1e-4)  # in units of the degraded sound's peak
    assert float((pairs.anchors([0]) - pairs.batch([0])[0]).abs().mean()) > 1e-3


def test_wrong_sounds_are_skipped_and_named(recordings) -> None:
    noisy, clean = recordings
    loud = np.clip(3 * np.sin(np.arange(9000) * 0.1), -1, 1)
    for name, y, x in (
        ("silent", np.zeros(900), np.zeros(900)),
        ("clipped", 0.3 * loud, loud),
        ("short", np.ones(800) / 2, np.ones(900) / 2),
        ("stereo", np.ones((900, 2)) / 2, np.ones(900) / 2),
    ):
        _sound(noisy / f"{name}.wav", y)
        _sound(clean / f"{name}.wav", x)
    _sound(noisy / "rate.wav", np.ones(900) / 2, 16000)
    _sound(clean / "rate.wav", np.ones(900) / 2)
    found = dict(load_pairs(recordings).skipped)
    assert set(found) == {"silent", "clipped", "short", "stereo", "rate"}
    for name, words in {
        "silent": "silent",
        "clipped": "clipped",
        "short": "800 samples",
        "stereo": "2 channels",
        "rate": "16000 Hz",
    }.items():
        assert words in found[name]
    for folder in recordings:
        _sound(folder / "other.wav", np.ones(900) / 2, 16000)
    with pytest.raises(ValueError, match=r"2 rates: 8000 Hz \(3\), 16000 Hz \(1\)"):
        load_pairs(recordings)
