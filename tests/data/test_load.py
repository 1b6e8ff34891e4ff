"""`data.load`: what comes out of every kind of source."""

import csv

import numpy as np
import pytest
import torch

from unstir import data

Image = pytest.importorskip("PIL.Image")


def picture(path, mode="RGB", size=(6, 4), colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if colour is not None else 0).save(path)


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = data.load("digits")
    assert digits.shape == (1, 8, 8)
    assert len(digits) == 1797
    assert digits.classes == tuple("0123456789")
    assert torch.equal(digits.all(), torch.tensor(bunch.images / 8 - 1, dtype=torch.float32)[:, None])
    assert torch.equal(digits.labels, torch.tensor(bunch.target))
    x, label = digits[17]
    assert torch.equal(x, digits.all()[17])
    assert label == bunch.target[17]


def test_split_is_disjoint_complete_and_fixed():
    train, test = data.load("digits", split="train"), data.load("digits", split="test")
    assert (len(train), len(test)) == (1500, 297)
    rows = {x.numpy().tobytes() for x in train.all()} | {x.numpy().tobytes() for x in test.all()}
    assert rows == {x.numpy().tobytes() for x in data.load("digits").all()}
    assert not {x.numpy().tobytes() for x in train.all()} & {x.numpy().tobytes() for x in test.all()}
    # The split is part of every published figure: it must never change.
    assert (train.fingerprint(), test.fingerprint()) == ("01e315481e1ebe4b", "44addcac6a1a8f59")


def test_fingerprint_sees_values_and_labels():
    x = torch.arange(24.0).reshape(6, 4)
    one = data.load(x, labels=[0, 0, 1, 1, 2, 2]).fingerprint()
    assert one == data.load(x.clone(), labels=[0, 0, 1, 1, 2, 2]).fingerprint()
    assert one != data.load(x, labels=[0, 0, 1, 1, 1, 2]).fingerprint()
    assert one != data.load(x + 1, labels=[0, 0, 1, 1, 2, 2]).fingerprint()


def test_folder_with_classes(tmp_path):
    picture(tmp_path / "cat" / "a.png", colour=(255, 0, 0))
    picture(tmp_path / "dog" / "b.png", colour=(0, 0, 255))
    pets = data.load(tmp_path)
    assert (pets.shape, pets.classes, pets.labels.tolist()) == ((3, 4, 6), ("cat", "dog"), [0, 1])
    assert pets.all()[0, :, 0, 0].tolist() == [1, -1, -1]
    assert pets.all()[1, :, 0, 0].tolist() == [-1, -1, 1]
    assert data.load(tmp_path, labels="none").labels is None
    assert data.load(tmp_path, channels=1, size=2).shape == (1, 2, 2)


def test_folder_with_csv(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], ["b.png", "owl"], ["a.png", "yak"]])
    assert data.load(tmp_path).labels.tolist() == [1, 0]
    assert data.load(tmp_path).classes == ("owl", "yak")


def test_grey_pictures_stay_grey_and_depths_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 128 * 257 + 100, np.uint16)).save(tmp_path / "b.png")
    grey = data.load(tmp_path)
    assert grey.shape == (1, 4, 4)
    assert torch.equal(grey.all()[0], grey.all()[1])


def test_transparency_is_on_white_and_orientation_is_applied(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert data.load(tmp_path).all().min() == 1
    turned = tmp_path / "turned"
    turned.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    Image.new("RGB", (6, 4)).save(turned / "a.jpg", exif=exif)
    assert data.load(turned).shape == (3, 6, 4)


def test_unreadable_pictures_are_skipped_and_named(tmp_path):
    picture(tmp_path / "good.png", size=(64, 64))
    rng = np.random.default_rng(0)
    noisy = tmp_path / "noisy.png"
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(noisy)
    (tmp_path / "cut.png").write_bytes(noisy.read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    found = data.load(tmp_path)
    assert len(found) == 2
    assert sorted(name for name, _ in found.skipped) == ["cut.png", "empty.png", "text.jpg"]
    assert "3 skipped" in found.describe()


def test_a_large_folder_is_decoded_when_wanted(tmp_path, monkeypatch):
    for i in range(5):
        picture(tmp_path / f"{i}.png", colour=(40 * i, 0, 0))
    in_memory = data.load(tmp_path).all()
    monkeypatch.setattr("unstir.data.images.IN_MEMORY", 100)
    assert torch.equal(data.load(tmp_path).all(), in_memory)


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "expected"),
    [
        ((5, 6, 7), np.uint8, {}, (1, 6, 7)),
        ((5, 6, 7, 3), np.uint8, {}, (3, 6, 7)),
        ((5, 3, 6, 7), np.float32, {}, (3, 6, 7)),
        ((5, 3, 6, 3), np.uint8, {}, (3, 6, 3)),  # ambiguous: channels first
        ((5, 3, 6, 3), np.uint8, {"layout": "hwc"}, (3, 3, 6)),
        ((5, 6, 7), np.float64, {"layout": "raw"}, (6, 7)),
        ((5, 9), np.float32, {}, (9,)),
        ((5, 2, 3, 4, 5), np.float32, {}, (2, 3, 4, 5)),
        ((5, 9, 7, 3), np.uint8, {"size": 4, "channels": 1}, (1, 4, 4)),
        ((5, 6, 7), np.uint8, {"channels": 3}, (3, 6, 7)),
    ],
)
def test_array_layouts(tmp_path, shape, dtype, options, expected):
    values = (np.arange(np.prod(shape)) % 251 / (1 if dtype is np.uint8 else 250)).astype(dtype).reshape(shape)
    np.save(tmp_path / "x.npy", values)
    found = data.load(tmp_path / "x.npy", **options)
    assert found.shape == expected
    assert found.all().shape == (5, *expected)
    assert found.all().dtype == torch.float32


def test_bytes_map_to_minus_one_and_one_and_floats_are_kept(tmp_path):
    assert data.load(np.array([[[0, 255]]], np.uint8)).all().flatten().tolist() == [-1, 1]
    raw = data.load(np.array([[3.5, -7.0]]))
    assert raw.all().tolist() == [[3.5, -7.0]]
    assert raw.range == (-7.0, 3.5)


def test_npz_labels_are_numbered_without_gaps(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 3, 2)), labels=np.array([7, 2, 7, 40]))
    found = data.load(tmp_path / "a.npz")
    assert found.classes == ("2", "7", "40")
    assert found.labels.tolist() == [1, 0, 1, 2]
    assert data.load(tmp_path / "a.npz", labels="none").labels is None
