"""MT-Diffusion: Diffusion Models for Multi-Task Generative Modeling (2024).

For people whose objects come in several modalities (a picture and its label, a mask, a representation, another picture) and
who want one network that draws all of them together, or any of them given the others, with a classifier thrown in.

    x0 = Σ c_i e_i  of codes of unit variance,      L = E [ ‖raw − target‖² + Σ_i w_i(λ) ℓ_i(x^(i), head i of the trunk) ]

Parts: `denoiser.Aggregate` and `Joint` (the state, the codes, what is known), `nets.MultiHead`, auxiliary losses of
`train.fit`. Your data: a `Dataset` of sums with its values `beside` it, as `summed` makes. For fields that keep their own
noise, use a dict state (`data.Fields`, `MultiHead(encoders=…)`) instead of a sum.

What is known is put in by replacement, which a plan that draws new noise serves best: where the first noise happens to
suggest another class than the one that is known, later noise lets the picture come round to it.

The label's loss is weighted by α²: at high noise it would dominate. A label head reads the label's own code from the state, so
its accuracy is measured where that code is replaced by the null code.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import train
from .._random import mix, normal
from ..data import Dataset, load
from ..denoiser import Aggregate, Denoiser, Joint, categorical, continuous, orthogonal_codes
from ..evaluate import frechet, labelled_rows, save_png
from ..nets import MultiHead
from ..plan import sample
from ..process import Cosine
from ..solvers import plan
from ..train.auxiliary import Record
from ._digits import CLASSES, report
from ._kept import once
from ._trunk import ResidualMLP
from .protocol import Result, at_least, at_most

SHAPE = (1, 8, 8)
TESTED = 397  # digits
DROPPED, COPIES = 0.3, 10  # of the labels; numbers that every digit has in the data set, dropped or not
TIMES = (0.05, 0.1, 0.3)  # at which the label head is compared with a classifier
RECIPE = 2  # part of the cache's name: raise it when the network or its training changes


class Trunk(ResidualMLP):
    """LayerNorm(h), h of `ResidualMLP` on x and t in [0, 1], 16 frequencies f from 1 to 32; (B, width)."""

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__(64, torch.logspace(0, 5, 16, base=2), width=width, blocks=blocks)
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.last(self.trunk(x, time))


def network(image: bool = True, label: bool = True) -> MultiHead:
    """The trunk with a head for x0 and one for every modality."""
    heads: dict[str, nn.Module] = {"data": nn.Sequential(nn.Linear(256, 64), nn.Unflatten(1, SHAPE))}
    if image:
        heads["image"] = nn.Sequential(nn.Linear(256, 64), nn.Unflatten(1, SHAPE))
    if label:
        heads["label"] = nn.Linear(256, CLASSES)
    return MultiHead(Trunk(), heads)


def image_loss(record: Record) -> Tensor:
    """‖ê − e‖² of the picture's code, (B,)."""
    return (record.extras["image"] - record.targets["image"]).square().flatten(1).mean(1)


def label_loss(record: Record) -> Tensor:
    """−log p(label), (B,)."""
    return F.cross_entropy(record.extras["label"], record.targets["label"], reduction="none")


AUXILIARY = {"image": (image_loss, 0.5), "label": (label_loss, lambda lam: 0.1 * torch.sigmoid(2 * lam))}  # α² = sigmoid(2 λ)


# -- data ---------------------------------------------------------------------------------------------------
class Digits(NamedTuple):
    """Pictures (N, 1, 8, 8) in [−1, 1] and labels: 1400 to learn from, 397 others."""

    x: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache(maxsize=1)
def digits() -> Digits:
    data = load("digits")
    assert data.labels is not None
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    x, labels = data.all()[order], data.labels[order]
    return Digits(x[:-TESTED], labels[:-TESTED], x[-TESTED:], labels[-TESTED:])


@lru_cache(maxsize=1)
def aggregate() -> Aggregate:
    """Pictures and labels: x0 = (e_image + e_label)/√2."""
    x = digits().x
    mean = x.mean(0)
    return Aggregate(
        {"image": continuous(mean, float((x - mean).std())), "label": categorical(orthogonal_codes(CLASSES, SHAPE))}
    )


def summed(pictures_only: bool = False) -> Dataset:
    """Sums of the digits' codes, each digit ten times, with three labels in ten dropped; their values beside.

    Whether a label is dropped is a function of the sample's number, so a run that goes on sees the same data.
    """
    known, agg = digits(), aggregate()
    count = len(known.x)
    there = torch.tensor([mix(7, row) / 2**64 >= DROPPED for row in range(count * COPIES)])
    codes = agg.modalities["image"].encode(known.x)

    def read(rows: Any) -> Tensor:
        rows = torch.as_tensor(list(rows))
        own = rows % count
        if pictures_only:
            return codes[own]
        return agg.state({"image": known.x[own], "label": known.labels[own]}, {"label": there[rows]})

    name = "digits" if pictures_only else "digits and labels"
    data = Dataset(read, count * COPIES, SHAPE, name=name, range=(-4.0, 4.0))
    if pictures_only:
        return data
    return data.beside(targets={"image": codes.repeat(COPIES, 1, 1, 1), "label": known.labels.repeat(COPIES)})


def trained(folder: Path, steps: int, joint: bool = True, device: str = "cpu", seed: int = 0) -> Denoiser:
    """The joint model, or one of pictures alone with the same trunk; kept in `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(joint, joint)
    model = Joint(net, Cosine(), aggregate()) if joint else Denoiser(net, Cosine(), "velocity", shape=SHAPE)
    config = train.TrainConfig(
        data="digits", split="all", steps=steps, batch=256, lr=2e-3, schedule="linear", warmup=50, seed=seed,
        process="cosine", predicts="velocity", levels="uniform", ema=0.995, device=device, checkpoint_every=steps, keep=1,
    )  # fmt: skip
    auxiliary = AUXILIARY if joint else None
    found = once(
        folder / f"mt-diffusion-v{RECIPE}-{'joint' if joint else 'image'}-{steps}-{seed}.safetensors",
        steps,
        lambda run, bar: train.fit(model, summed(not joint), config, run, resume=True, progress=bar, auxiliary=auxiliary),
    )
    model.network.load_state_dict(found)  # type: ignore[union-attr]
    return model.to(device).eval().requires_grad_(False)


# -- the run ------------------------------------------------------------------------------------------------
class Judge:
    """A support vector machine of the pictures, which no network has seen."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        from sklearn.svm import SVC

        self.machine = SVC(C=10).fit(x.flatten(1).numpy(), labels.numpy())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.machine.predict(x.flatten(1).cpu().numpy()))


def free_classifier(model: Joint, seed: int = 0) -> list[tuple[float, float, float]]:
    """[(accuracy of the label head, of logistic regression, and with ten draws)] at `TIMES`; no label is in the state.

    The regression is fitted to training pictures of the same noise and amplitude, each of them once, and ten times.
    """
    from sklearn.linear_model import LogisticRegression

    known, agg, found = digits(), model.aggregate, []
    for t in TIMES:

        def stirred(x: Tensor, key: int, t: float = t) -> Tensor:
            return model.process.stir(agg.state({"image": x}), t, normal(x.shape, seed=mix(seed, key)))

        seen = stirred(known.test, 0)
        guesses = [model.heads(seen, t)[1]["label"].argmax(1)]
        for draws in (1, 10):
            many = torch.cat([stirred(known.x, 1 + k) for k in range(draws)]).flatten(1).numpy()
            regression = LogisticRegression(max_iter=300).fit(many, known.labels.repeat(draws).numpy())
            guesses.append(torch.as_tensor(regression.predict(seen.flatten(1).numpy())))
        found.append(tuple(float((guess == known.test_labels).float().mean()) for guess in guesses))
    return found


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """One network draws digits and their labels together, either given the other, and classifies.

    large: 10 000 steps instead of 1500.
    """
    steps, count = (10_000 if large else 1500), 1000
    model, alone = (trained(out.parent, steps, joint, device).cpu() for joint in (True, False))
    assert isinstance(model, Joint)
    known, agg, run = digits(), model.aggregate, plan("auto", Cosine(), nfe=20)
    judge = Judge(known.x, known.labels)

    both = sample(model, run, shape=(count, *SHAPE), seed=0, full=True)
    drawn = agg.read(both.aux)
    asked = torch.arange(count) % CLASSES
    given = {  # by a plan that draws new noise, and by the one that draws none
        name: agg.read(sample(model.known(label=asked), way, shape=(count, *SHAPE), seed=1, full=True).aux)["image"]
        for name, way in {"ancestral": plan("ancestral", Cosine(), nfe=20), "auto": run}.items()
    }
    told = given["ancestral"]
    single = agg.modalities["image"].read(sample(alone, run, shape=(count, *SHAPE), seed=0))

    agree = float((judge(drawn["image"]) == drawn["label"]).float().mean())
    right = {name: float((judge(x) == asked).float().mean()) for name, x in given.items()}
    per_class = torch.bincount(drawn["label"], minlength=CLASSES)
    accuracy = free_classifier(model)
    far = {n: frechet(known.test, x, "pixel-pca:20").value for n, x in {"joint": drawn["image"], "image only": single}.items()}
    far["floor: digits learned from"] = frechet(known.test, known.x, "pixel-pca:20").value
    head, regression, _ = accuracy[TIMES.index(0.1)]
    claims = [
        at_least(f"a judge agrees with the label drawn beside the picture, of {count}", agree, 0.88),
        at_least(
            "label head at t = 0.1 without the label in the state, against logistic regression + 0.02", head, regression + 0.02
        ),
        at_least("a judge sees the class that was given", right["ancestral"], 0.80),
        at_most("Fréchet distance of pictures: joint, against 1.15 of pictures alone", far["joint"], 1.15 * far["image only"]),
        at_least(f"times that the rarest class was drawn, of {count}", int(per_class.min()), 40),
    ]
    page = report(
        "Digits and their labels from one network",
        f"{len(known.x)} digits to learn from, {len(known.test)} others; {steps} steps of 256; 20 calls. The judge: a "
        f"support vector machine ({float((judge(known.test) == known.test_labels).float().mean()):.3f} right on the others).",
        claims,
    )
    rows = [[t, *pair] for t, pair in zip(TIMES, accuracy, strict=True)]
    page.table(
        rows,
        ["t", "label head", "logistic regression", "of ten draws"],
        caption="Accuracy on noisy test digits, no label in the state.",
    )
    page.table(list(far.items()), ["pictures", "FD[pixel-pca:20]"])
    shown = {f"drawn as {n}": drawn["image"][drawn["label"] == n][:10] for n in range(CLASSES)}
    sheet = labelled_rows({k: v for k, v in shown.items() if len(v) == 10}, value_range=(-1, 1))
    save_png(sheet, out / "joint.png")
    page.picture(sheet, "Pictures in rows of the label that was drawn with them.")
    sheet = labelled_rows({f"given {n}": told[asked == n][:10] for n in range(CLASSES)}, value_range=(-1, 1))
    save_png(sheet, out / "given.png")
    page.picture(sheet, "Pictures of classes that were given, by replacement of the label's code.")
    page.save(out / "report.html")
    figures = {"agreement": agree, "given": right, "per class": per_class, "accuracy": rows, "distances": far, "steps": steps}
    return Result(claims, figures)
