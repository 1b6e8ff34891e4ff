"""Wrong data, case by case: an error of one line that names the file and the remedy, or skipped and counted, or read right.

And nothing is unpickled.
"""

import io
import pickle
import re
import struct
import zlib
from typing import Any, NamedTuple

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


class Skipped(NamedTuple):
    """One file is left out, by this name and for this reason, and the good one beside it is read."""

    name: str
    reason: str


class Read(NamedTuple):
    """The data are read, and look like this."""

    seen: Any
    value: Any


def encoded(form, pixels=None):
    """The file of a picture: an array, an image, or a grey ramp."""
    buffer = io.BytesIO()
    if not isinstance(pixels, Image.Image):
        pixels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) if pixels is None else pixels)
    pixels.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return buffer.getvalue()


def animation(form):
    """Two frames, black and white."""
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), level) for level in (0, 255)]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def huge():
    """The header of a PNG of a billion pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def broken(content):
    """One bit of the pixels turned over."""
    place = content.index(b"IDAT") + 8
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def half(form):
    """The first half of the file of a picture of noise."""
    content = encoded(form, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    return content[: len(content) // 2]


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])
    return file


def alone(folder, name, content):
    return corrupt(folder, name, content).parent


def beside(folder, name, content):
    """A folder of one good picture and this one."""
    (folder / "good.png").write_bytes(encoded("PNG"))
    return alone(folder, name, content)


def linked(folder):
    (folder / "good.png").write_bytes(encoded("PNG"))
    (folder / "z.png").symlink_to(folder / "gone.png")
    return folder


def level(dataset):
    """The value 0 … 255 of every pixel, if they are all alike."""
    (value,) = set(((dataset.all() + 1) * 127.5).round().flatten().tolist())
    return value


def red(dataset):
    return bool((dataset.all()[0, 0] > 0.9).all() and (dataset.all()[0, 1:] < -0.9).all())


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
    # -- arrays and their labels ----------------------------------------------------------------
    "floats that are bytes": (
        lambda p: save(p, np.arange(128.0).reshape(2, 1, 8, 8) * 2),
        {},
        "x.npy has dtype float64 and whole numbers from 0 to 254, .*uint8, or as floats x/255·2 − 1",
    ),
    "16-bit array": (
        lambda p: save(p, (np.arange(128).reshape(2, 8, 8) * 500).astype(np.uint16)),
        {},
        "x.npy has dtype uint16 .* 16 bits; save it as floats x/65535·2 − 1",
    ),
    "structured array": (lambda p: save(p, np.zeros((2, 2), [("a", "f4")])), {}, "x.npy has dtype .*; give uint8 pictures"),
    "dates": (lambda p: save(p, np.zeros((2, 2), "datetime64[s]")), {}, "x.npy has dtype datetime64"),
    "signed bytes": (lambda p: save(p, np.zeros((2, 4, 4), np.int8)), {}, "x.npy has dtype int8; give uint8"),
    "half an npy": (lambda p: cut(save(p, np.zeros((64, 64)))), {}, "x.npy cannot be read as an array"),
    "NaN beyond the first rows": (
        lambda p: save(p, np.where(np.arange(10_000)[:, None] == 9_000, np.nan, 0.0)),
        {},
        "x.npy holds NaN or infinite values, the first in sample 9000; remove or repair",
    ),
    "labels NaN": (lambda p: np.zeros((2, 2)), {"labels": [0, np.nan]}, "whole numbers"),
    "labels of objects": (lambda p: np.zeros((2, 2)), {"labels": np.array([None, 1], object)}, "whole numbers or names"),
    "labels file missing": (lambda p: save(p, np.zeros((2, 2))), {"labels": "no.npy"}, "no.npy is missing"),
    "label gaps": (
        lambda p: np.zeros((4, 2)),
        {"labels": [9, 0, 5, 9]},
        Read(lambda d: (d.classes, d.labels.tolist()), (("0", "5", "9"), [2, 0, 1, 2])),
    ),
    "labels below zero": (lambda p: np.zeros((3, 2)), {"labels": [-1, 3, -1]}, Read(lambda d: d.labels.tolist(), [0, 1, 0])),
    "label names": (lambda p: np.zeros((3, 2)), {"labels": ["b", "a", "b"]}, Read(lambda d: d.classes, ("a", "b"))),
    "big-endian floats": (
        lambda p: save(p, np.array([[1.5], [-2.0]], ">f8")),
        {},
        Read(lambda d: d.all().flatten().tolist(), [1.5, -2.0]),
    ),
    "columns first": (
        lambda p: save(p, np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])),
        {},
        Read(lambda d: d.all().tolist(), [[1, 2], [3, 4]]),
    ),
    "half precision": (lambda p: save(p, np.ones((2, 3), np.float16)), {}, Read(lambda d: d.all().dtype, torch.float32)),
    # -- lists of labels ------------------------------------------------------------------------
    "csv with two labels for one": (
        lambda p: corrupt(folder_of(p, a=(4, 4)), "labels.csv", b"a.png,1\na.png,2\n").parent,
        {},
        "labels.csv line 2 calls a.png '2', and before '1'; keep one",
    ),
    "csv without a label": (
        lambda p: corrupt(folder_of(p, a=(4, 4)), "labels.csv", b"a.png,\n").parent,
        {},
        "labels.csv line 1 has no label for a.png; give one",
    ),
    "csv in another encoding": (
        lambda p: corrupt(folder_of(p, a=(4, 4)), "labels.csv", "a.png,größe\n".encode("latin-1")).parent,
        {},
        "labels.csv cannot be read as CSV",
    ),
    "csv with a byte-order mark": (
        lambda p: corrupt(folder_of(p, a=(4, 4)), "labels.csv", b"\xef\xbb\xbfa.png,cat\n").parent,
        {},
        Read(lambda d: d.classes, ("cat",)),
    ),
    # -- pictures that cannot be read: skipped, named and counted ---------------------------------
    "zero bytes": (lambda p: beside(p, "z.png", b""), {}, Skipped("z.png", "cannot identify")),
    "half a png": (
        lambda p: beside(p, "z.png", half("PNG")),
        {},
        Skipped("z.png", "(?i)truncated|broken|unrecognized"),
    ),
    "half a jpeg": (lambda p: beside(p, "z.jpg", half("JPEG")), {}, Skipped("z.jpg", "(?i)truncated")),
    "half a webp": (lambda p: beside(p, "z.webp", half("WEBP")), {}, Skipped("z.webp", ".")),
    "half a tiff": (lambda p: beside(p, "z.tif", half("TIFF")), {}, Skipped("z.tif", ".")),
    "a web page": (lambda p: beside(p, "z.jpg", b"<!DOCTYPE html><title>404</title>"), {}, Skipped("z.jpg", "cannot identify")),
    "a text": (lambda p: beside(p, "z.png", b"not a picture"), {}, Skipped("z.png", "cannot identify")),
    "a pickle": (lambda p: beside(p, "z.png", pickle.dumps([1])), {}, Skipped("z.png", "cannot identify")),
    "a wrong checksum": (lambda p: beside(p, "z.png", broken(encoded("PNG"))), {}, Skipped("z.png", ".")),
    "a bomb": (lambda p: beside(p, "z.png", huge()), {}, Skipped("z.png", "exceeds limit")),
    "what a Mac leaves": (
        lambda p: beside(p, "._a.png", b"\0\5\x16\7\0\2\0\0Mac OS X"),
        {},
        Skipped("._a.png", "cannot identify"),
    ),
    "a link to nothing": (lambda p: linked(p), {}, Skipped("z.png", "No such file")),
    "floats that are NaN": (
        lambda p: beside(p, "z.tif", encoded("TIFF", np.full((8, 8), np.nan, np.float32))),
        {},
        Skipped("z.tif", "outside 0"),
    ),
    "32 bits beyond 16": (
        lambda p: beside(p, "z.tif", encoded("TIFF", np.full((8, 8), 70_000, np.int32))),
        {},
        Skipped("z.tif", "outside 0"),
    ),
    # -- pictures of unusual kinds: read as they are meant ---------------------------------------
    "16 bits": (lambda p: alone(p, "a.png", encoded("PNG", np.full((8, 8), 32_896, np.uint16))), {}, Read(level, 128)),
    "1 bit": (lambda p: alone(p, "a.png", encoded("PNG", np.ones((8, 8), bool))), {}, Read(level, 255)),
    "cmyk": (lambda p: alone(p, "a.jpg", encoded("JPEG", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))), {}, Read(red, True)),
    "animated": (lambda p: alone(p, "a.gif", animation("GIF")), {}, Read(level, 0)),
    "animated webp": (lambda p: alone(p, "a.webp", animation("WEBP")), {}, Read(level, 0)),
    "several pages": (lambda p: alone(p, "a.tif", animation("TIFF")), {}, Read(level, 0)),
    "a palette": (
        lambda p: alone(p, "a.png", encoded("PNG", Image.new("RGB", (8, 8), "red").convert("P"))),
        {},
        Read(red, True),
    ),
    "transparent": (lambda p: alone(p, "a.png", encoded("PNG", Image.new("RGBA", (8, 8), (0, 0, 0, 0)))), {}, Read(level, 255)),
    "an ending in capitals": (lambda p: alone(p, "A.PNG", encoded("PNG")), {}, Read(len, 1)),
    "a name with spaces and letters": (lambda p: alone(p, "ein Bild ä 猫.png", encoded("PNG")), {}, Read(len, 1)),
    "grey among colours": (
        lambda p: beside(p, "z.png", encoded("PNG", Image.new("RGB", (8, 8)))),
        {},
        Read(lambda d: d.shape, (3, 8, 8)),
    ),
    "other files": (lambda p: beside(p, "Thumbs.db", b"x"), {}, Read(lambda d: (len(d), d.skipped), (1, ()))),
    "mixed sizes with size=": (
        lambda p: folder_of(p, a=(4, 4), b=(9, 5)),
        {"size": 4},
        Read(lambda d: (len(d), d.shape), (2, (1, 4, 4))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data(case, tmp_path):
    make, options, outcome = CASES[case]
    source = make(tmp_path)
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=outcome) as caught:
            data.load(source, **options)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is None
        return
    found = data.load(source, **options)
    if isinstance(outcome, Skipped):
        assert len(found) == 1
        ((name, reason),) = found.skipped
        assert name == outcome.name
        assert re.search(outcome.reason, reason)
        assert f"1 skipped (first: {name}" in found.describe()
    else:
        assert outcome.seen(found) == outcome.value


def test_there_are_many_cases():
    assert len(CASES) >= 70


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
