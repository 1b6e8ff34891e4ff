"""Wrong data: one line that names the cause, and nothing is unpickled."""

import pickle

import numpy as np
import pytest
import torch

from unstir import data

Image = pytest.importorskip("PIL.Image")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def folder_of(tmp_path, **pictures):
    for name, size in pictures.items():
        file = tmp_path / f"{name.replace('__', '/')}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", size).save(file)
    return tmp_path


def save(tmp_path, values, name="x.npy"):
    np.save(tmp_path / name, values)
    return tmp_path / name


def corrupt(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


CASES = {
    "unknown name": (lambda p: "digitz", {}, "bundled: digits"),
    "missing path": (lambda p: p / "nowhere", {}, "neither an existing path"),
    "empty folder": (lambda p: p, {}, "holds no pictures"),
    "unknown file": (lambda p: corrupt(p, "x.xyz", b"abc"), {}, "unknown kind '.xyz'"),
    "only truncated pictures": (lambda p: corrupt(p, "a.png", b"\x89PNG\r\n").parent, {}, "none of 1 pictures can be read"),
    "mixed sizes": (lambda p: folder_of(p, a=(4, 4), b=(5, 4)), {}, "2 sizes: .*give size="),
    "picture outside the classes": (lambda p: folder_of(p, a=(4, 4), k__b=(4, 4)), {}, "outside the class subfolders"),
    "csv lacks a picture": (
        lambda p: corrupt(folder_of(p, a=(4, 4), b=(4, 4)), "labels.csv", b"a.png,1\n").parent,
        {},
        "no label for 1 of 2 pictures; the first: b.png",
    ),
    "csv with one column": (lambda p: corrupt(folder_of(p, a=(4, 4)), "labels.csv", b"a.png\n").parent, {}, "line 1"),
    "csv missing": (lambda p: folder_of(p, a=(4, 4)), {"labels": "no.csv"}, "no.csv' is missing"),
    "NaN": (lambda p: save(p, np.array([[0.0], [np.nan]])), {}, "NaN or infinite values, the first in sample 1"),
    "infinite": (lambda p: save(p, np.array([[np.inf], [0.0]])), {}, "first in sample 0"),
    "no samples": (lambda p: save(p, np.zeros((0, 3))), {}, "nothing in it"),
    "one axis": (lambda p: save(p, np.zeros(3)), {}, r"shape \(3,\)"),
    "complex": (lambda p: save(p, np.zeros((3, 3), complex)), {}, "dtype complex128"),
    "text": (lambda p: save(p, np.array([["a"], ["b"]])), {}, "dtype <U1"),
    "truncated npy": (lambda p: corrupt(p, "x.npy", b"\x93NUMPY\x01\x00v"), {}, "x.npy cannot be read"),
    "empty npz": (lambda p: corrupt(p, "x.npz", b""), {}, "x.npz cannot be read"),
    "npz without data": (lambda p: (np.savez(p / "x.npz", z=np.zeros((2, 2))), p / "x.npz")[1], {}, "has the arrays z"),
    "labels too short": (lambda p: np.zeros((3, 2)), {"labels": [0, 1]}, "one per sample"),
    "fractional labels": (lambda p: np.zeros((2, 2)), {"labels": [0.5, 1]}, "whole numbers"),
    "size 0": (lambda p: "digits", {"size": 0}, "size=0"),
    "size as text": (lambda p: "digits", {"size": "8"}, "size='8'"),
    "channels 2": (lambda p: "digits", {"channels": 2}, "channels=2"),
    "split": (lambda p: "digits", {"split": "valid"}, "split='valid'"),
    "layout": (lambda p: "digits", {"layout": "nhwc"}, "layout='nhwc'"),
    "channels that cannot be": (lambda p: np.zeros((2, 5, 6, 6)), {"channels": 3}, "5 channels"),
    "size of raw numbers": (lambda p: np.zeros((2, 5)), {"size": 3}, "raw numbers"),
    "layout of raw numbers": (lambda p: np.zeros((2, 5)), {"layout": "chw"}, "3 or 4 axes"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_one_line(case, tmp_path):
    source, options, words = CASES[case]
    with pytest.raises(ValueError, match=words) as caught:
        data.load(source(tmp_path), **options)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_source_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="source is int"):
        data.load(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["npy", "npz", "renamed"])
def test_arrays_are_never_unpickled(kind, tmp_path):
    witness, file = tmp_path / "executed", tmp_path / "x.npy"
    values = np.empty((2, 1), object)
    values[:] = Bomb(witness)
    if kind == "npy":
        np.save(file, values, allow_pickle=True)
    elif kind == "npz":
        file = tmp_path / "x.npz"
        np.savez(file, x=values)
    else:
        file.write_bytes(pickle.dumps(Bomb(witness)))
    with pytest.raises(ValueError, match="cannot be read as an array"):
        data.load(file)
    assert not witness.exists()
    np.load(tmp_path / "x.npz", allow_pickle=True)["x"] if kind == "npz" else pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists()  # the bomb does go off when it is unpickled: the test above could have failed


def test_labels_out_of_range():
    with pytest.raises(ValueError, match="labels must lie in"):
        data.Dataset(lambda rows: torch.zeros(len(rows), 1), 2, (1,), labels=torch.tensor([0, 2]), classes=("a", "b"))
