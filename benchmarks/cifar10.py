"""The bundled colour model: its data, its file in the package, and its figures.

    .venv/bin/python -m benchmarks.cifar10 prepare ../shared/data --out out/cifar10
    unstir train out/cifar10/train.npz --out out/cifar10/run …                       (docs/models.md has the whole line)
    .venv/bin/python -m benchmarks.cifar10 ship out/cifar10/run
    .venv/bin/python -m benchmarks.cifar10 figures --data out/cifar10

`figures` measures Fréchet distances to the test pictures in the features of a classifier trained here (its name and its
accuracy are on the page), with and without guidance, and writes docs/results/cifar10.md and its sheet of samples. The data
was JPEG-compressed (../shared/data/README.md): figures are comparable with each other, not with those of papers.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import unstir  # noqa: E402
from unstir import data, steer  # noqa: E402
from unstir.evaluate import frechet, kid, labelled_rows, load_classifier, save_png, train_classifier  # noqa: E402

OUT = ROOT / "docs" / "results"
BUDGETS, GUIDED = (5, 8, 10, 18, 35), (18,)  # evaluations; guided ones cost two each
SIDE, COLUMNS = 32, 50  # of a tile, and tiles in a row of a mosaic
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def prepare(source: Path, out: Path) -> None:
    """cifar10-{train,test}.zip of mosaics -> {train,test}.npz of pictures and the names of their classes."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        with zipfile.ZipFile(source / f"cifar10-{part}.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
            labels = np.load(io.BytesIO(archive.read(next(n for n in archive.namelist() if n.endswith("labels.npy")))))
            sheets = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
        tiles = [s.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3) for s in sheets]
        x = np.concatenate(tiles)[: len(labels)]
        np.savez(out / f"{part}.npz", x=x, y=np.array(CLASSES)[labels])
        print(f"wrote {out / f'{part}.npz'}: {x.shape}")


def ship(run: Path) -> None:
    """The run's averaged model into the package, in half precision."""
    model = unstir.load(run)
    model.meta["classes"] = list(CLASSES)
    unstir.save(model, ROOT / "unstir" / "models" / "cifar10", dtype=torch.float16)
    size = (ROOT / "unstir" / "models" / "cifar10" / "model.safetensors").stat().st_size
    print(f"{sum(p.numel() for p in model.parameters()):,} numbers, {size / 1e6:.1f} MB")


def figures(folder: Path, count: int, steps: int) -> None:
    """FD and KID of `count` samples at every budget, and a sheet of samples; the classifier is kept in `folder`."""
    file = folder / f"classifier-{steps}.safetensors"
    if not file.exists():
        train_classifier(data.load(folder / "train.npz"), held_out=2000, steps=steps).save(file)
    classifier = load_classifier(file)
    test = data.load(folder / "test.npz")
    real = test.batch(range(count))[0]
    model = unstir.load("cifar10")
    labels = torch.arange(count) % len(CLASSES)
    lines = ["# The bundled model `cifar10`", "", "Written by `python -m benchmarks.cifar10 figures`.", ""]
    own = _right(classifier, real, test.batch(range(count))[1])
    lines += [
        f"{count} samples, the classes in turn, against {count} test pictures; FD and KID in the 64 features of",
        f"{classifier.name}, a classifier trained here ({classifier.accuracy:.1%} right on training pictures that it did not",
        "learn). Floor: the same between two halves of the test pictures. Right: how often the classifier sees the class that",
        f"was asked for (of the test pictures: {own:.1%}).",
        "",
        "| evaluations | guidance | FD | floor | KID · 10³ | right | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for scale in (1.0, 2.0):
        seen = model if scale == 1 else steer.cfg(model, scale)
        for nfe in BUDGETS if scale == 1 else GUIDED:
            began = time.perf_counter()
            x = torch.cat(
                [
                    unstir.sample(seen, nfe=nfe, shape=len(rows), seed=0, index=rows.tolist(), class_labels=labels[rows])
                    for rows in torch.arange(count).split(100)
                ]
            ).clamp(-1, 1)
            seconds = time.perf_counter() - began
            fd, near = frechet(real, x, classifier), 1e3 * kid(real, x, classifier).value
            cells = [nfe, f"{scale:g}", f"{fd.value:.3g}", f"{fd.floor:.3g}", f"{near:.2f}"]
            cells += [f"{_right(classifier, x, labels):.1%}", f"{seconds:.0f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            print(lines[-1], flush=True)
            if nfe == 18:
                sheet = labelled_rows({name: x[labels == k][:12] for k, name in enumerate(CLASSES)}, value_range=(-1, 1))
                save_png(sheet, OUT / f"cifar10-guidance-{scale:g}.png")
    lines += ["", "18 evaluations, guidance 1 and 2, samples in the order of their numbers:", ""]
    lines += [f"![guidance {scale}](cifar10-guidance-{scale}.png)" for scale in (1, 2)]
    (OUT / "cifar10.md").write_text("\n".join(lines) + "\n")


@torch.no_grad()
def _right(classifier: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor | None) -> float:
    assert labels is not None
    found = torch.cat([classifier.logits(part).argmax(1) for part in x.split(256)])  # type: ignore[operator]
    return float((found == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("prepare")
    one.add_argument("source", type=Path)
    one.add_argument("--out", type=Path, default=Path("out/cifar10"))
    two = what.add_parser("ship")
    two.add_argument("run", type=Path)
    three = what.add_parser("figures")
    three.add_argument("--data", type=Path, default=Path("out/cifar10"))
    three.add_argument("--count", type=int, default=400)
    three.add_argument("--steps", type=int, default=400, help="of the classifier's training")
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.source, given.out)
    elif given.what == "ship":
        ship(given.run)
    else:
        figures(given.data, given.count, given.steps)


if __name__ == "__main__":
    main()
