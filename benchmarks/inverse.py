"""Restoration beside deepinv: same operators, same denoiser, same number of network calls, one run.

    python -m benchmarks.inverse [--calls 50] [--write docs/results]

Pictures, models and operators are in `inverse_problems`, methods and their settings in `inverse_methods`. Both libraries
get as many trials of settings a task, on the same pictures; the best of each method is measured on others. On both sides
the calls may be shared by several samples, whose mean is the result; ours come in twins (`steer.Reconstructor`). Every
operator is one object with a singular value decomposition, which deepinv gets as its `DecomposablePhysics`.

Time is processor time of one thread per image.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unstir._files import write_text
from unstir._random import normal

from .inverse_methods import TRIALS, Entry, entries, import_deepinv, ours, theirs
from .inverse_problems import BENCHES, CHOSEN, NOISE, TEST, Bench

HEAD = "| task | our best | deepinv's best | difference | our quickest that is as good | holds |"


class Row(NamedTuple):
    """A method on the pictures of the report."""

    entry: Entry
    chosen: float  # PSNR on the pictures for choosing
    each: Tensor  # PSNR of every picture, dB
    ms: float
    calls: float  # network calls a picture

    @property
    def psnr(self) -> float:
        return float(self.each.mean())

    def __str__(self) -> str:
        return f"{self.entry.method}: {self.psnr:.2f} dB, {self.ms:.2f} ms"


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """10 log10(1/MSE) of every picture, dB, on values in [0, 1]; −∞ where a method diverged."""
    error = (x.double() - truth).square().flatten(1).mean(1)
    return torch.where(torch.isfinite(error), -10 * error.log10(), -math.inf)


def measured(operator: Any, x: Tensor, seed: int) -> Tensor:
    y = operator.A(x)
    return (y + NOISE * normal(tuple(y.shape), seed=seed, dtype=torch.float64)).float()


def best_settings(tried: list[Entry], operator: Any, x: Tensor, y: Tensor) -> list[tuple[Entry, float]]:
    """The best entry of every method on the pictures for choosing, with its PSNR."""
    best: dict[tuple[str, str], tuple[Entry, float]] = {}
    for entry in tried:
        try:
            found = float(psnr(entry.run(y, operator), x).mean())
        except Exception as error:  # a peer that cannot do a task is reported, not hidden
            problem = f"{type(error).__name__}: {str(error)[:90]}"
            print(f"    {entry.library} {entry.method} ({entry.setting}): {problem}", flush=True)
            continue
        key = (entry.library, entry.method)
        if key not in best or found > best[key][1]:
            best[key] = (entry, found)
    for entry, found in best.values():
        print(f"    {entry.library:8}{entry.method:16}{entry.setting:60}{found:7.2f} dB", flush=True)
    return list(best.values())


def timed(tried: list[Entry], y: Tensor, operator: Any, rounds: int, seen: list[int]) -> list[tuple[Tensor, float, float]]:
    """(result, least processor seconds an image, network calls an image) of every entry.

    The entries take turns, so that what else the machine does falls on all of them. seen: batches that the network was given.
    """
    spent, results, calls = [[] for _ in tried], [y for _ in tried], [0 for _ in tried]
    for _ in range(rounds):
        for k, entry in enumerate(tried):
            seen.clear()
            begun = time.process_time()
            results[k] = entry.run(y, operator)
            spent[k].append(time.process_time() - begun)
            calls[k] = sum(seen)
    return [(x, min(times) / len(y), made / len(y)) for x, times, made in zip(results, spent, calls, strict=True)]


def compare(bench: Bench, dinv: Any, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(tables, verdicts) as lines of Markdown."""
    model, seen = bench.model(), []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    tried = list(entries("unstir", ours(model, bench, options.calls)))
    if dinv is not None:
        tried += entries("deepinv", theirs(dinv, model, bench, options.calls))
    choose, test = bench.pictures(bench.choose, CHOSEN), bench.pictures(bench.report, options.seed)
    lines, verdicts = [], []
    for name, operator in bench.tasks().items():
        print(f"{bench.name}: {name}", flush=True)
        best = best_settings(tried, operator, choose, measured(operator, choose, 11))
        y = measured(operator, test, options.seed + 1)
        rows = []
        figures = timed([entry for entry, _ in best], y, operator, bench.repeats, seen)
        for (entry, chosen), (x, seconds, calls) in zip(best, figures, strict=True):
            rows.append(Row(entry, chosen, psnr(x, test), 1000 * seconds, calls))
        rows.sort(key=lambda row: -row.psnr)
        lines += ["", f"### {bench.name}: {name}", "", "| library | method | setting | calls | PSNR | ms an image |"]
        lines += ["|---|---|---|---:|---:|---:|", f"| – | A⁺y | | | {float(psnr(operator.A_dagger(y), test).mean()):.2f} | |"]
        for row in rows:
            entry, figures = row.entry, f"{row.calls:g} | {row.psnr:.2f} | {row.ms:.2f}"
            lines.append(f"| {entry.library} | {entry.method} | {entry.setting} | {figures} |")
        if dinv is not None:
            verdicts.append(verdict(f"{bench.name}: {name}", rows))
    return lines, verdicts


def verdict(task: str, rows: list[Row]) -> str:
    """A line of the table in short; the difference has its standard error over the pictures."""
    mine, peer = (next(row for row in rows if row.entry.library == library) for library in ("unstir", "deepinv"))
    # Several of ours may be as good as the peer's best: the quickest of those is what the time is judged by.
    able = [row for row in rows if row.entry.library == "unstir" and row.psnr >= peer.psnr]
    quick = min(able, key=lambda row: row.ms) if able else mine
    gain = mine.each - peer.each
    error = float(gain.std()) / math.sqrt(len(gain))
    held = quick.psnr >= peer.psnr and quick.ms <= peer.ms
    return f"| {task} | {mine} | {peer} | {float(gain.mean()):+.2f} ± {error:.2f} | {quick} | {'yes' if held else '**no**'} |"


def run(options: argparse.Namespace) -> Iterator[str]:
    """Both libraries on all tasks; the report as Markdown, as far as it is after each set of pictures."""
    torch.set_num_threads(1)
    dinv = import_deepinv()
    trials = sum(TRIALS["unstir"].values())
    version = "not installed" if dinv is None else dinv.__version__
    lines = [
        "# Restoration beside deepinv",
        "",
        "Written by `python -m benchmarks.inverse --write docs/results`.",
        f"σ_y = {NOISE} on values in [0, 1], at most {options.calls} network calls a result on both sides; deepinv {version},",
        f"torch {torch.__version__}. Each method with the best of its settings, of {trials} trials a library and task, on",
        f"pictures for choosing, measured on others (seed {options.seed}). PSNR in dB; ms are processor time of one thread",
        "per image, the least of some runs. Difference: mean over the pictures, with its standard error.",
        "",
        *(f"- {b.name}: {b.about}; {b.choose} for choosing, {b.report} reported, {b.repeats} runs" for b in BENCHES),
    ]
    tables, verdicts = [], []
    head = ["", "## In short", "", HEAD, "|---|---|---|---|---|---|"]
    for bench in BENCHES:
        if options.only in (None, bench.name):
            found = compare(bench, dinv, options)
            tables, verdicts = tables + found[0], verdicts + found[1]
            yield "\n".join([*lines, *head, *verdicts, "", "## All methods", *tables]) + "\n"


def merged(report: str, old: str) -> str:
    """The report with what an older one says of pictures that it does not speak of itself."""
    for bench in BENCHES:
        if f"### {bench.name}:" not in report:
            lines = [line for line in old.splitlines() if line.startswith(f"| {bench.name}:")]
            tables = [part for part in old.split("\n### ")[1:] if part.startswith(f"{bench.name}:")]
            if tables:
                report = report.replace("\n\n## All methods\n", "\n" + "\n".join(lines) + "\n\n## All methods\n").rstrip("\n")
                report += "".join("\n\n### " + part.rstrip("\n") for part in tables) + "\n"
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50, help="network calls a result")
    parser.add_argument("--seed", type=int, default=TEST, help="of the pictures that are reported; another one for trying out")
    parser.add_argument(
        "--only",
        default=None,
        choices=[b.name for b in BENCHES],
        help="photographs or digits; what the file says of the others is kept",
    )
    parser.add_argument("--write", type=Path, default=None, help="folder for inverse.md")
    options = parser.parse_args()
    for report in run(options):
        print(report, flush=True)
        if options.write is not None:
            file = options.write / "inverse.md"
            write_text(file, merged(report, file.read_text()) if options.only and file.exists() else report)


if __name__ == "__main__":
    main()
