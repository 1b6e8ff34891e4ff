"""Captions, WebDataset shards, zarr, tables of `datasets`, iterables: the same pictures by every road."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from unstir import data

Image = pytest.importorskip("PIL.Image")


def pictures(count=6, size=(7, 6)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(count)]


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def expected():
    return torch.from_numpy(np.stack(pictures())).movedim(-1, 1).float() / 127.5 - 1


@pytest.mark.parametrize("limit", [1 << 25, 0], ids=["memory", "streaming"])
def test_shards_give_pictures_labels_and_captions(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("unstir.data.images.IN_MEMORY", limit)
    members = []
    for i, array in enumerate(pictures()):
        members += [(f"{i:03d}.png", encoded(array)), (f"{i:03d}.cls", str(i % 2).encode())]
        members += [(f"{i:03d}.txt", f"picture {i}".encode())] if i else []
    write_tar(tmp_path / "a.tar", members[:8])
    write_tar(tmp_path / "b.tar", members[8:])
    found = data.load(tmp_path)
    assert torch.equal(found.all(), expected())
    assert torch.equal(found.batch([5, 0, 5])[0], expected()[[5, 0, 5]])
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.captions == ("", "picture 1", "picture 2", "picture 3", "picture 4", "picture 5")
    assert "5 captions" in found.describe()
    assert found.subset([2]).captions == ("picture 2",)


def test_labels_and_captions_of_a_shard_may_be_json(tmp_path):
    members = []
    for i, array in enumerate(pictures()):
        note = json.dumps({"label": "ab"[i % 2], "caption": f"c{i}"}).encode()
        members += [(f"x/{i}.png", encoded(array)), (f"x/{i}.json", note)]
    found = data.load(write_tar(tmp_path / "a.tar", members))
    assert found.classes == ("a", "b")
    assert found.captions is not None
    assert found.captions[3] == "c3"
    assert data.load(tmp_path / "a.tar", labels="none").labels is None


def test_broken_pictures_of_a_shard_are_listed_by_name(tmp_path):
    members = [("0.png", encoded(pictures()[0])), ("1.png", b"\x89PNG\r\n"), ("2.png", b"")]
    found = data.load(write_tar(tmp_path / "a.tar", members))
    assert len(found) == 1
    assert [name for name, _ in found.skipped] == ["a.tar/1.png", "a.tar/2.png"]


BAD_SHARDS = {
    "no tar": (lambda p: (p / "a.tar").write_bytes(b"abc" * 400), "cannot be read as an uncompressed tar"),
    "no pictures": (lambda p: write_tar(p / "a.tar", [("0.cls", b"1")]), "holds no pictures among 1 samples"),
    "some labels": (
        lambda p: write_tar(
            p / "a.tar", [("0.png", encoded(pictures()[0])), ("0.cls", b"1"), ("1.png", encoded(pictures()[1]))]
        ),
        r"1 pictures have no label \(first: a.tar/1.png\)",
    ),
    "bad json": (
        lambda p: write_tar(p / "a.tar", [("0.png", encoded(pictures()[0])), ("0.json", b"{")]),
        "its .json cannot be read",
    ),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_bad_shards_are_named(case, tmp_path):
    make, message = BAD_SHARDS[case]
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "a.tar")


def test_shards_and_loose_pictures_do_not_mix(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", encoded(pictures()[0]))])
    (tmp_path / "b.png").write_bytes(encoded(pictures()[1]))
    with pytest.raises(ValueError, match=r"both \.tar shards and pictures"):
        data.load(tmp_path)


def test_captions_lie_beside_the_pictures(tmp_path):
    for i, array in enumerate(pictures(3)):
        (tmp_path / f"{i}.png").write_bytes(encoded(array))
    assert data.load(tmp_path).captions is None
    before = data.load(tmp_path).fingerprint()
    (tmp_path / "1.txt").write_text(" one \n")
    found = data.load(tmp_path)
    assert found.captions == ("", "one", "")
    assert found.fingerprint() != before


def test_a_table_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "text": datasets.Value("string")}
    )
    rows = {
        "img": [{"bytes": encoded(a), "path": None} for a in pictures()],
        "label": [0, 1, 1, 0, 1, 1],
        "text": list("abcdef"),
    }
    found = data.load(datasets.Dataset.from_dict(rows, features=features))
    assert torch.equal(found.all(), expected())
    assert found.classes == ("cat", "dog")
    assert found.labels is not None
    assert found.labels.tolist() == rows["label"]
    assert found.captions == tuple("abcdef")
    with pytest.raises(ValueError, match="no column of pictures"):
        data.load(datasets.Dataset.from_dict({"a": [1, 2]}))


def test_zarr_arrays_and_groups(tmp_path):
    zarr = pytest.importorskip("zarr")
    values = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    zarr.save_array(str(tmp_path / "a.zarr"), values)
    found = data.load(tmp_path / "a.zarr", layout="raw")
    assert torch.equal(found.all(), torch.from_numpy(values))
    assert torch.equal(found.batch([6, 0, 6])[0], torch.from_numpy(values[[6, 0, 6]]))
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("x", data=np.stack(pictures()))
    group.create_array("y", data=np.arange(6) % 3)
    found = data.load(tmp_path / "g.zarr")
    assert torch.equal(found.all(), expected())
    assert found.classes == ("0", "1", "2")
    zarr.open_group(str(tmp_path / "e.zarr"), mode="w")
    with pytest.raises(ValueError, match=r"has the arrays \(none\)"):
        data.load(tmp_path / "e.zarr")
    values[3, 1] = np.nan
    zarr.save_array(str(tmp_path / "n.zarr"), values)
    with pytest.raises(ValueError, match="the first in sample 3"):
        data.load(tmp_path / "n.zarr", layout="raw")


@pytest.mark.parametrize("form", ["arrays", "pairs", "dicts"])
def test_iterables_are_read_to_the_end(form):
    def items():
        for i, array in enumerate(pictures()):
            yield array if form == "arrays" else (array, i % 2) if form == "pairs" else {"image": array, "label": i % 2}

    found = data.load(items())
    assert torch.equal(found.all(), expected())
    assert (found.labels is None) == (form == "arrays")


def endless():
    while True:
        yield np.zeros((64, 64), np.float32)


BAD_ITERABLES = {
    "empty": ([], "iterable is empty"),
    "shapes": ([np.zeros((2, 2)), np.zeros((2, 3))], r"sample 1 of the iterable has shape \(2, 3\)"),
    "keys": ([{"z": 1}], "has the keys z"),
    "endless": (endless(), "holds more than"),
}


@pytest.mark.parametrize("case", BAD_ITERABLES)
def test_bad_iterables_are_named(case, monkeypatch):
    monkeypatch.setattr("unstir.data.rows.LARGEST", 1 << 20)
    source, message = BAD_ITERABLES[case]
    with pytest.raises(ValueError, match=message):
        data.load(source)


def test_memory_does_not_grow_with_a_folder(tmp_path, monkeypatch):
    """Beyond the limit nothing is kept: the reader holds no pixels, and every batch is decoded anew."""
    monkeypatch.setattr("unstir.data.images.IN_MEMORY", 3 * 126)
    for i, array in enumerate(pictures()):
        (tmp_path / f"{i}.png").write_bytes(encoded(array))
    found = data.load(tmp_path)
    assert torch.equal(found.all(), expected())
    (tmp_path / "4.png").write_bytes(encoded(255 - pictures()[4]))
    assert torch.allclose(found.batch([4])[0], -expected()[[4]], atol=1e-6)
