"""Aspect-ratio buckets: their sizes, who goes where, and batches that are a function of (seed, k)."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from unstir import data
from unstir.data.buckets import Buckets, bucket_sizes, load_buckets, nearest

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(("side", "step", "ratio"), [(512, 64, 2.0), (1024, 64, 4.0), (96, 32, 3.0)])
def test_buckets_have_one_area_and_sides_of_whole_steps(side, step, ratio):
    sizes = bucket_sizes(side, step, ratio)
    assert (side, side) in sizes
    for height, width in sizes:
        assert height % step == width % step == 0
        assert 1 / ratio <= width / height <= ratio
        assert side**2 - step * max(height, width) < height * width <= side**2
        assert (width, height) in sizes
    assert [w / h for h, w in sizes] == sorted(w / h for h, w in sizes)


def test_a_picture_goes_where_the_least_is_cut_off():
    sizes = bucket_sizes(512)
    assert sizes[nearest((300, 300), sizes)] == (512, 512)
    assert sizes[nearest((1080, 1920), sizes)] == (384, 640)  # 1.78 lies nearer to 1.67 than to 2
    assert sizes[nearest((10, 1000), sizes)] == sizes[-1]

    def lost(size, bucket):
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        return 1 - bucket[0] * bucket[1] / (size[0] * size[1] * scale**2)

    rng = np.random.default_rng(0)
    for size in rng.integers(100, 900, (50, 2)).tolist():
        best = nearest(tuple(size), sizes)
        assert lost(size, sizes[best]) == pytest.approx(min(lost(size, s) for s in sizes), abs=1e-12)


def parts(*counts):
    return Buckets(
        [
            data.Dataset(lambda rows, i=i: torch.full((len(rows), 1, 1, i + 1), float(i)), n, (1, 1, i + 1))
            for i, n in enumerate(counts)
        ]
    )


def test_every_picture_is_seen_equally_often():
    made, size = parts(6, 3, 9), 4
    cycle = 2 + 1 + 3
    seen = Counter()
    for k in range(3 * cycle):  # a cycle shows every picture size/gcd = 4/3 times: three cycles, 4 times
        bucket, rows = made.rows(0, k, size)
        assert len(rows) == size
        seen.update((bucket, row) for row in rows)
    assert len(seen) == 18
    assert set(seen.values()) == {4}


def test_batches_are_a_function_of_seed_and_number():
    made = parts(50, 7, 31)
    forward = [made.rows(3, k, 8) for k in range(40)]
    again = parts(50, 7, 31)
    assert [again.rows(3, k, 8) for k in reversed(range(40))] == forward[::-1]
    assert [made.rows(4, k, 8) for k in range(40)] != forward
    # Two processes take the halves of the same batch.
    whole, _ = made.batch(3, 5, 8)
    halves = [made.batch(3, 5, 8, part)[0] for part in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), whole)


def test_a_batch_has_no_picture_twice_before_its_bucket_is_through():
    made, streams = parts(10, 25), {0: [], 1: []}
    for k in range(60):
        bucket, rows = made.rows(1, k, 5)
        streams[bucket] += rows
    for bucket, count in ((0, 10), (1, 25)):
        stream = streams[bucket]
        for start in range(0, len(stream) - count + 1, count):
            assert sorted(stream[start : start + count]) == list(range(count))


def test_a_folder_of_many_shapes(tmp_path):
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(40, 40), (44, 40), (30, 60), (61, 30), (20, 41), (90, 10)]):
        file = tmp_path / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(file)
    (tmp_path / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n")
    turned = Image.new("RGB", (60, 30), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held on its side
    turned.save(tmp_path / "class1" / "turned.jpg", exif=exif)
    made = load_buckets(tmp_path, side=32, step=8)
    assert (len(made), made.classes) == (7, ("class0", "class1"))
    assert [name for name, _ in made.skipped] == ["class0/broken.png"]
    assert "7 pictures in" in made.describe()
    assert "1 skipped (first: class0/broken.png" in made.describe()
    assert {s[1:] for s in made.shapes} <= set(bucket_sizes(32, 8))
    upright = made.parts[0]
    assert len(upright) == 3  # 61 × 30, 90 × 10 and the turned one
    assert upright.shape[1] > upright.shape[2]
    assert upright.labels.tolist().count(1) == 3
    x, labels = made.batch(0, 0, 4)
    assert x.shape[1:] in made.shapes
    assert x.abs().max() <= 1
    assert labels.shape == (4,)


def test_a_square_picture_is_what_load_makes_of_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(load_buckets(tmp_path, side=32, step=8).parts[0].all(), data.load(tmp_path, size=32).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: bucket_sizes(0), "side=0"),
        (lambda p: bucket_sizes(32, 64), "smaller than step=64"),
        (lambda p: bucket_sizes(64, 64, 0.5), "ratio=0.5"),
        (lambda p: bucket_sizes(64, 64, math.inf), "ratio=inf"),
        (lambda p: load_buckets(p), "holds no pictures"),
        (lambda p: load_buckets(p / "nowhere"), "holds no pictures"),
        (lambda p: (p.joinpath("a.png").write_bytes(b""), load_buckets(p)), "none of 1 pictures can be read; the first: a.png"),
        (lambda p: parts(3).rows(0, -1, 2), "k=-1"),
        (lambda p: parts(3).rows(0, 0, 0), "size=0"),
        (lambda p: Buckets([]), "no buckets"),
    ],
    ids=["side", "step", "ratio", "no ratio", "empty", "missing", "unreadable", "k", "size", "none"],
)
def test_bad_input_is_named(call, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
