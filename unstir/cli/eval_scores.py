"""What `unstir eval` measures of one set of samples, and how it shows it: scores with error bars, classes, copies, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data
from ..evaluate import (
    Report,
    Score,
    compare,
    labelled_rows,
    load_classifier,
    memorisation,
    neighbours,
    paired,
    per_class,
    train_classifier,
)
from ..evaluate.features import space
from ..evaluate.samples import choose
from . import show

SHOWN = 10  # pictures in a row of the report
UNSEEN = 2000  # unseen pictures whose distance to the training set is enough to know
COLUMNS = ("metric", "samples of", "value>", "±>", "floor>")
# Of which metrics less, and of which more is better; of the others neither (Vendi, the ratio of distances).
LESS, MORE = ("FD", "MMD", "Energy", "1000", "LPIPS"), ("Precision", "Recall", "Density", "Coverage", "PSNR", "SSIM")


@dataclass(frozen=True)
class Reference:
    """Real data, the parts of it that were and were not trained on, and the feature spaces to compare in."""

    whole: data.Dataset
    real: Tensor
    train: Tensor | None
    test: Tensor | None
    spaces: tuple[Any, ...]


def reference(name: str, train: str | None, features: Sequence[str], out: Path, **options: Any) -> Reference:
    """The data set `name`; its train and test parts, or `train` and all of it, where pictures are cut as `options` say.

    "classifier" among the features trains one on the train part, and keeps it as out/classifier.safetensors;
    "classifier:FILE" takes that of a file.
    """
    whole = data.load(name, **options)
    known, unseen = None, None
    if train is not None:
        known, unseen = data.load(train, **options), whole
        if known.shape != whole.shape:
            raise ValueError(f"--train has samples of shape {known.shape}; --reference has {whole.shape}")
    elif len(whole) >= 24:
        known, unseen = (data.load(name, **options, split=part) for part in ("train", "test"))
    spaces: list[Any] = []
    real = whole.all()
    for one in features:
        kind, _, file = one.partition(":")
        if kind != "classifier":
            spaces.append(space(one, real))  # once for all sets: a PCA of large pictures takes its time
            continue
        classifier = load_classifier(file) if file else train_classifier(known or whole)
        if not file:
            classifier.save(out / "classifier.safetensors")
            show.say(
                f"{classifier.name}: trained on {(known or whole).name}, {classifier.accuracy:.1%} right on held-out pictures."
            )
        spaces.append(classifier)
    if known is None or unseen is None:
        return Reference(whole, real, None, None, tuple(spaces))
    test = choose(unseen.all(), min(UNSEEN, len(unseen)), 0)
    return Reference(whole, real, known.all(), test, tuple(spaces))


def measure_set(samples: Tensor, about: Reference, options: Any) -> list[Score]:
    """Every score of one set of samples; options: of `unstir eval`."""
    found = compare(about.real, samples, options.metrics, about.spaces, seed=options.seed, errors=options.errors)
    if about.train is not None and about.test is not None and len(about.test) >= 4:
        found.append(memorisation(samples, about.train, about.test, seed=options.seed))
    return found


def measure_pairs(samples: Tensor, whole: data.Dataset, skipped: int) -> list[Score]:
    """PSNR, SSIM, LPIPS of sample i against real picture i."""
    if len(samples) != len(whole) or skipped or whole.skipped:
        raise ValueError(
            f"--paired compares sample i with picture i of --reference, but there are {len(samples)} and {len(whole)} "
            f"({skipped} and {len(whole.skipped)} skipped); give two folders with the same names"
        )
    return paired(samples, whole.all())


def measure_classes(samples: Tensor, labels: Tensor | None, about: Reference, options: Any) -> dict[str, Score | str]:
    """One metric in every class."""
    if labels is None or about.whole.labels is None:
        raise ValueError(f"--per-class {options.per_class} needs classes: of --reference, and the same ones of the samples")
    classes = about.whole.classes
    return per_class(
        about.real, samples, about.whole.labels, labels, classes, options.per_class, about.spaces[0], seed=options.seed
    )


def print_scores(sets: Mapping[str, Sequence[Score]]) -> None:
    """The table on the terminal, and the notes once each."""
    rows = [
        (score.name.replace("[", "\\["), label, score.value, "" if score.error is None else f"{score.error:.2g}", score.floor)
        for label, scores in sets.items()
        for score in scores
    ]
    show.table(rows, COLUMNS, section=len(next(iter(sets.values()))))
    notes = dict.fromkeys(note for scores in sets.values() for score in scores for note in score.notes)
    ends = "±: one standard deviation, from half-samples. Floor: the same between two halves of the real data."
    show.say(" ".join([ends, *(f"{note[0].upper()}{note[1:]}." for note in notes)]))


def print_classes(classes: Mapping[str, Mapping[str, Score | str]]) -> None:
    """One row a class."""
    rows = [
        (name, label, None, None, None, None, score)
        if isinstance(score, str)
        else (name, label, score.value, score.n_fake, score.floor, score.floor_n, "")
        for label, scores in classes.items()
        for name, score in scores.items()
    ]
    first = next((s.name for scores in classes.values() for s in scores.values() if isinstance(s, Score)), "value")
    remark = ("remark",) if any(row[-1] for row in rows) else ()
    columns = ("class", "samples of", first.replace("[", "\\[") + ">", "n>", "floor>", "of n>", *remark)
    show.table([row[: len(columns)] for row in rows], columns)


def report_scores(report: Report, sets: Mapping[str, Sequence[Score]]) -> None:
    """One table a feature space: a row a set, a column a metric."""
    spaces: dict[str, list[str]] = {}
    for score in next(iter(sets.values())):
        features = score.name.partition("[")[2].rstrip("]")
        spaces.setdefault(features or "pictures", []).append(score.name)
    for features, names in spaces.items():
        rows = [(label, *(next((s for s in scores if s.name == n), None) for n in names)) for label, scores in sets.items()]
        best = {n: "min" for n in names if n.startswith(LESS)} | {n: "max" for n in names if n.startswith(MORE)}
        report.text(f"### In the features {features}")
        report.table(rows, ["samples of", *names], best=best if len(rows) > 1 else {})
    notes = dict.fromkeys(note for scores in sets.values() for score in scores for note in score.notes)
    report.text(
        "± is one standard deviation, from half-samples. The floor is the same metric between two halves of the real data: "
        "no honest generator goes below it in distances, or above it in precision and its kin."
        + "".join(f" {n}." for n in notes)
    )


def report_classes(report: Report, classes: Mapping[str, Mapping[str, Score | str]]) -> None:
    """A row a class, a column a set."""
    names = list(next(iter(classes.values())))
    rows = [(name, *(scores[name] for scores in classes.values())) for name in names]
    report.text("## Class by class").table(rows, ["class", *classes])


def report_pictures(report: Report, sets: Mapping[str, Tensor], about: Reference) -> None:
    """Samples beside real pictures, and the samples that are most like a training picture, with their nearest ones."""
    shape = about.whole.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        return
    span = about.whole.range
    shown = {"real": about.whole.batch(range(min(SHOWN, len(about.whole))))[0]} | {k: v[:SHOWN] for k, v in sets.items()}
    report.text("## Samples").picture(labelled_rows(shown, value_range=span), "The first samples of every set.")
    if about.train is None:
        return
    known = about.train
    report.text("## Copies?")
    for label, samples in sets.items():
        near = neighbours(samples, known, k=min(3, len(known)))
        closest = near.distances[:, 0].argsort()[:SHOWN]
        rows = {"sample": samples[closest]}
        for k in range(near.rows.shape[1]):
            rows["nearest in training" if k == 0 else f"{k + 1}. nearest"] = known[near.rows[closest, k]]
        report.picture(
            labelled_rows(rows, value_range=span),
            f"{label}: the samples that lie nearest to a training picture (Euclidean distance of pixels, closest first), and "
            f"those pictures. A row of twins would mean memorisation.",
        )


def record(score: Score | str) -> Any:
    """A score as JSON has it."""
    return score if isinstance(score, str) else {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(score).items()}


def is_samples(name: str) -> bool:
    """Is it a folder of pictures or an array, rather than a model?"""
    path = Path(name)
    if path.is_file():
        return True
    model = ("config.json", "model_index.json", "model", "checkpoints")
    return path.is_dir() and not any((path / part).exists() for part in model) and any(path.iterdir())


def of_classes(labels: Tensor | None, classes: Sequence[str], whole: data.Dataset) -> Tensor | None:
    """Labels of the samples by the numbers of the reference's classes; None where the classes are not the same."""
    if labels is None or set(classes) - set(whole.classes):
        return None
    number = torch.tensor([whole.classes.index(name) for name in classes])
    return number[labels]
