"""Restoration beside deepinv: same operators, same denoiser, same number of network calls, one run.

    python -m benchmarks.inverse [--calls 50] [--images 32] [--write docs/results]

Data: 16 × 16 grey patches of scikit-learn's two photographs. The prior is a mixture of Gaussians fitted to patches of the
left halves, whose denoiser E[x0 | x_t] is exact, so a difference is one of the methods. Settings are chosen on 16 patches
of the right halves, the rest is measured on others. Every operator is one object with a singular value decomposition,
which deepinv gets as its `DecomposablePhysics`. deepinv's methods run with their defaults and with the settings of a
small search, as ours do; on both sides the calls may be shared by several samples, whose mean is the result.

Time is processor time of one thread per image. deepinv imports torchvision, whose compiled part has to fit torch; where
it does not, the names it would register are registered here, which is all that deepinv needs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unstir
from unstir._files import write_text
from unstir._random import normal
from unstir.denoiser import GaussianMixture
from unstir.process import EDM
from unstir.steer import ValueRange, operators, posterior, red_diff

SIDE, PARTS, NOISE = 16, 8, 0.05  # patch, Gaussians, σ_y on values in [0, 1]
SHAPE = (1, SIDE, SIDE)
SPAN = ValueRange(0.0, 1.0)
PROCESS = EDM(0.002, 80.0)
HEAD = "| task | our best | deepinv's best | our quickest that is as good | holds |"
CHOOSE = 16  # patches on which settings are chosen
TEST = 1126  # seed of the patches that are reported (and of their noise, one more): nothing was chosen on them


# -- data and prior -----------------------------------------------------------------------------------------------
def patches(half: str, count: int, seed: int) -> Tensor:
    """(count, 1, 16, 16) in [0, 1]: patches of china.jpg and flower.jpg at random places of one half."""
    from sklearn.datasets import load_sample_images

    halves = []
    for picture in load_sample_images().images:  # type: ignore[attr-defined]
        grey = picture.astype(np.float64).mean(2) / 255
        grey = grey[: len(grey) // 2 * 2, : grey.shape[1] // 2 * 2]
        grey = grey.reshape(len(grey) // 2, 2, -1, 2).mean((1, 3))  # half the size: more structure in a patch
        middle = grey.shape[1] // 2
        halves.append(grey[:, :middle] if half == "left" else grey[:, middle:])
    generator, out = np.random.default_rng(seed), []
    for i in range(count):
        grey = halves[i % 2]
        top, left = generator.integers(grey.shape[0] - SIDE), generator.integers(grey.shape[1] - SIDE)
        out.append(grey[top : top + SIDE, left : left + SIDE])
    return torch.from_numpy(np.stack(out))[:, None]


def prior() -> GaussianMixture:
    """A mixture of Gaussians of patches in [−1, 1], by expectation maximisation; small eigenvalues are kept off 0."""
    from sklearn.mixture import GaussianMixture as Fit

    x = SPAN.model(patches("left", 4000, 0)).flatten(1).numpy()
    fit = Fit(PARTS, covariance_type="full", reg_covar=1e-4, max_iter=12, random_state=0).fit(x)
    means = torch.from_numpy(fit.means_).reshape(-1, *SHAPE)
    return GaussianMixture(PROCESS, torch.from_numpy(fit.weights_), means, torch.from_numpy(fit.covariances_))


def tasks() -> dict[str, Any]:
    """The operators; all are `Spectral`."""
    keep = torch.ones(SIDE, SIDE)
    keep[4:12, 5:11] = 0
    line = torch.exp(-(torch.arange(-4, 5).double() ** 2) / (2 * 1.5**2))
    kernel = line[:, None] * line
    angles = torch.arange(6, dtype=torch.float64) * (math.pi / 6)
    return {
        "inpainting": operators.mask(keep[None]),
        "super-resolution ×4": operators.average_pool(4),
        "Gaussian deblurring": operators.blur(kernel / kernel.sum(), SHAPE),
        "CT, 6 views": operators.explicit(operators.radon(angles, SHAPE), SHAPE),
    }


# -- the two sides: functions (y in [0, 1] units, operator) -> x in [0, 1] -------------------------------------------
Run = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Entry:
    """One method with one setting."""

    library: str
    method: str
    setting: str
    run: Run


def ours(model: Any, calls: int) -> Iterator[Entry]:
    """Our methods: one sample with all calls, or the mean of several samples that share them."""

    steep = {"grid": "karras", "start": 1.0}
    short = {"grid": "karras", "start": float(PROCESS.time(-math.log(2.0))), "grid_options": {"rho": 2.0}}

    def one(method: str, solver: str, share: int, grid: dict[str, Any] = steep, **options: Any) -> Run:
        plan = unstir.plan(solver, PROCESS, nfe=calls // share, end=0.0, **grid)

        def run(y: Tensor, operator: Any) -> Tensor:
            many = y.repeat(share, *[1] * (y.ndim - 1))
            posed = SPAN.problem(operator, many, NOISE, torch.zeros(1, *SHAPE))
            x = unstir.sample(posterior(model, posed.operator, posed.y, method, posed.noise, **options), plan, shape=len(many))
            return SPAN.user(x.reshape(share, len(y), *SHAPE).mean(0))

        return run

    for share in (1, 5, 8):
        told = "" if share == 1 else f", mean of {share} × {calls // share}"
        yield Entry("unstir", "DDRM", f"default{told}", one("ddrm", "ddim", share))
        yield Entry("unstir", "DDRM", f"σ̂ ≤ 2{told}", one("ddrm", "ddim", share, short))
        yield Entry("unstir", "DDRM", f"σ̂ ≤ 2, η 1{told}", one("ddrm", "ddim", share, short, eta=1.0))
        if share == 8:
            continue
        yield Entry("unstir", "DiffPIR", f"default{told}", one("diffpir", "ddim", share))
        yield Entry("unstir", "DiffPIR", f"σ_d 0.5{told}", one("diffpir", "ddim", share, data_std=0.5))
        yield Entry("unstir", "ΠGDM", f"σ_d 4{told}", one("pigdm", "ddim", share, data_std=4.0, carry="data"))
        yield Entry("unstir", "TMPD", f"3 steps{told}", one("tmpd", "ddim", share, steps=3))
    for zeta in (0.5, 1.0):
        yield Entry("unstir", "DPS", f"ζ {zeta}", one("dps", "ancestral", 1, strength=zeta))
    plan = unstir.plan("ddim", PROCESS, nfe=calls, grid="karras", start=float(PROCESS.time(-math.log(10.0))), end=0.0)
    for lam in (0.25, 1.0):
        for rate in (0.1,):

            def run(y: Tensor, operator: Any, lam: float = lam, rate: float = rate) -> Tensor:
                posed = SPAN.problem(operator, y, NOISE, torch.zeros(1, *SHAPE))
                return SPAN.user(red_diff(model, posed.operator, posed.y, plan, posed.noise, lam=lam, rate=rate, sums=True))

            yield Entry("unstir", "RED-diff", f"λ {lam}, rate {rate}", run)


def import_deepinv() -> Any:
    """deepinv, though torchvision's compiled part may be missing; None if it is not installed."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_deepinv.library = library  # type: ignore[attr-defined]  # lives as long as the names
    except ImportError:
        return None
    try:
        import deepinv
    except ImportError:
        return None
    return deepinv


def theirs(dinv: Any, model: Any, calls: int) -> Iterator[Entry]:
    """deepinv's methods, defaults first, then a search as wide as ours."""

    class Wrapped(dinv.models.Denoiser):
        """The exact denoiser as deepinv calls it: pictures and σ in units of [0, 1]."""

        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            level = 2 * torch.as_tensor(sigma, dtype=torch.float64).flatten()
            t = PROCESS.time(-level.log())
            return SPAN.user(model(SPAN.model(x.float()), t if len(t) == len(x) else t[0]))

    denoiser = Wrapped()

    def physics_of(operator: Any, y: Tensor) -> Any:
        mask = operator.s.float()
        form = operator.V_adjoint(torch.zeros(1, *SHAPE)).shape
        return dinv.physics.DecomposablePhysics(
            U=operator.U, U_adjoint=operator.U_adjoint, V=operator.V, V_adjoint=operator.V_adjoint,
            img_size=SHAPE, mask=mask.expand(form).contiguous(), noise_model=dinv.physics.GaussianNoise(NOISE),
        )  # fmt: skip

    def made(build: Callable[[], Any], **more: Any) -> Callable[[Tensor, Any], Tensor]:
        def run(y: Tensor, operator: Any) -> Tensor:
            extra = {k: v(operator, y) for k, v in more.items()}
            return build()(y, physics_of(operator, y), seed=1, **extra).float()

        return run

    s = dinv.sampling
    shape = {"x_init": lambda operator, y: (len(y), *SHAPE)}
    yield Entry("deepinv", "DPS", "default", made(lambda: s.DPS(denoiser, num_steps=calls), **shape))
    for weight in (0.5, 2.0, 4.0):
        yield Entry(
            "deepinv", "DPS", f"weight {weight}", made(lambda w=weight: s.DPS(denoiser, num_steps=calls, weight=w), **shape)
        )
    annealed = made(lambda: s.DPS(denoiser, num_steps=calls, guidance="annealed"), **shape)
    yield Entry("deepinv", "DPS", "annealed", annealed)

    def mean_of(share: int, run: Run) -> Run:
        """What deepinv's `DiffusionSampler` computes: the mean of several runs."""
        return lambda y, operator: run(y.repeat(share, *[1] * (y.ndim - 1)), operator).reshape(share, len(y), *SHAPE).mean(0)

    for share in (1, 5):
        steps, told = calls // share, "" if share == 1 else f", mean of {share} × {calls // share}"
        top, geometric = np.linspace(1, 0, steps + 1)[:-1], np.geomspace(10.0, 0.005, steps)
        for name, levels, eta in (
            ("default", top, 0.85), ("η 0.5", top, 0.5), ("η 1", top, 1.0), ("σ 10 … 0.005", geometric, 0.85),
        ):  # fmt: skip
            ddrm = made(lambda v=levels, e=eta: s.DDRM(denoiser, sigmas=v, eta=e))
            yield Entry("deepinv", "DDRM", name + told, mean_of(share, ddrm))
    back = {"x_init": lambda operator, y: operator.A_dagger(y)}
    for lam, zeta in ((7.0, 0.1), (3.0, 0.3), (7.0, 1.0), (25.0, 0.1), (25.0, 1.0), (60.0, 1.0)):
        name = "default" if (lam, zeta) == (7.0, 0.1) else f"λ {lam}, ζ {zeta}"

        def pir(steps: int, lam: float = lam, zeta: float = zeta) -> Any:
            term = dinv.optim.data_fidelity.L2()
            return s.DiffPIR(denoiser, term, sigma=NOISE, max_iter=steps, zeta=zeta, lambda_=lam)

        yield Entry("deepinv", "DiffPIR", name, made(partial(pir, calls), **back))
        yield Entry(
            "deepinv", "DiffPIR", f"{name}, mean of 5 × {calls // 5}", mean_of(5, made(partial(pir, calls // 5), **back))
        )
    for name, term in (("ΠGDM", s.PiGDMDataFidelity), ("moment matching", s.MomentMatchingDataFidelity)):
        for alpha in (0.0, 1.0):
            for weight in (1.0, 0.5) if name == "ΠGDM" else (1.0,):

                def build(steps: int, term: Any = term, alpha: float = alpha, weight: float = weight) -> Any:
                    sde = s.VarianceExplodingDiffusion(alpha=alpha, sigma_min=0.005, sigma_max=20.0)
                    times = torch.linspace(1, 0.001, steps + 1, dtype=torch.float64)
                    return s.PosteriorDiffusion(term(weight=weight), denoiser, sde, s.AncestralSolver(timesteps=times))

                kind = f"{'probability flow' if alpha == 0 else 'stochastic'}, weight {weight}"
                yield Entry("deepinv", name, kind, made(partial(build, calls), **shape))
                if weight == 1:
                    many = mean_of(5, made(partial(build, calls // 5), **shape))
                    yield Entry("deepinv", name, f"{kind}, mean of 5 × {calls // 5}", many)


# -- measuring ----------------------------------------------------------------------------------------------------
def psnr(x: Tensor, truth: Tensor) -> float:
    """Mean of 10 log10(1/MSE), dB, on values in [0, 1]; −∞ where a method diverged."""
    error = (x.double() - truth).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean()) if bool(torch.isfinite(error).all()) else -math.inf


def measured(operator: Any, x: Tensor, seed: int) -> Tensor:
    y = operator.A(x)
    return (y + NOISE * normal(tuple(y.shape), seed=seed, dtype=torch.float64)).float()


def best_settings(entries: list[Entry], operator: Any, x: Tensor, y: Tensor) -> dict[tuple[str, str], tuple[Entry, float]]:
    """{(library, method): (its best entry on the patches for choosing, PSNR)}."""
    best: dict[tuple[str, str], tuple[Entry, float]] = {}
    for entry in entries:
        try:
            found = psnr(entry.run(y, operator), x)
        except Exception as error:  # a peer that cannot do a task is reported, not hidden
            print(
                f"    {entry.library} {entry.method} ({entry.setting}): {type(error).__name__}: {str(error)[:90]}", flush=True
            )
            continue
        print(f"    {entry.library:8}{entry.method:16}{entry.setting:40}{found:7.2f} dB", flush=True)
        key = (entry.library, entry.method)
        if key not in best or found > best[key][1]:
            best[key] = (entry, found)
    return best


def timed(entry: Entry, y: Tensor, operator: Any, repeats: int) -> tuple[Tensor, float, int]:
    """(result, least processor seconds an image, calls a patch)."""
    spent = []
    x = y
    calls = 0
    for _ in range(repeats):
        with unstir.count_calls() as counted:
            begun = time.process_time()
            x = entry.run(y, operator)
            spent.append(time.process_time() - begun)
        calls = counted.forward
    return x, min(spent) / len(y), calls


def run(calls: int, images: int, repeats: int) -> str:
    """Both libraries on all tasks; the report as Markdown."""
    torch.set_num_threads(1)
    dinv = import_deepinv()
    model = prior()
    entries = [*ours(model, calls), *(theirs(dinv, model, calls) if dinv is not None else ())]
    choose, test = patches("right", CHOOSE, 1), patches("right", images, TEST)
    version = "not installed" if dinv is None else dinv.__version__
    lines = [
        "# Restoration beside deepinv",
        "",
        "Written by `python -m benchmarks.inverse --write docs/results`.",
        f"{images} patches of 16 × 16 pixels of real photographs, σ_y = {NOISE} on values in [0, 1], {calls} network calls a",
        f"result on both sides, the exact denoiser of a mixture of {PARTS} Gaussians fitted to other patches; deepinv",
        f"{version}, torch {torch.__version__}. Each method with the best of its settings on {CHOOSE} patches more. PSNR in",
        f"dB; ms are processor time of one thread per image, the least of {repeats} runs.",
    ]
    verdicts = []
    for name, operator in tasks().items():
        print(name, flush=True)
        best = best_settings(entries, operator, choose, measured(operator, choose, 11))
        y = measured(operator, test, TEST + 1)
        rows = []
        for (library, method), (entry, _) in best.items():
            x, seconds, made = timed(entry, y, operator, repeats)
            rows.append((psnr(x, test), 1000 * seconds, library, method, entry.setting, made))
        rows.sort(key=lambda row: -row[0])
        lines += ["", f"## {name}", "", "| library | method | setting | PSNR | ms an image |", "|---|---|---|---:|---:|"]
        lines.append(f"| – | A⁺y | | {psnr(operator.A_dagger(y), test):.2f} | |")
        lines += [f"| {lib} | {m} | {setting} | {p:.2f} | {ms:.1f} |" for p, ms, lib, m, setting, _ in rows]
        first = {lib: next((row for row in rows if row[2] == lib), None) for lib in ("unstir", "deepinv")}
        mine, peer = first["unstir"], first["deepinv"]
        if mine and peer:
            # Several of ours may beat the peer's best: the quickest of those that do is what the time is judged by.
            able = [row for row in rows if row[2] == "unstir" and row[0] >= peer[0]]
            quick = min(able, key=lambda row: row[1]) if able else mine
            verdicts.append((name, mine, peer, quick))
    if verdicts:
        lines += [
            "",
            "## In short",
            "",
            "| task | our best | deepinv's best | our quickest that is as good | holds |",
            "|---|---|---|---|---|",
        ]
        for name, mine, peer, quick in verdicts:
            held = quick[0] >= peer[0] and quick[1] <= peer[1]
            cells = [f"{row[3]}: {row[0]:.2f} dB, {row[1]:.1f} ms" for row in (mine, peer, quick)]
            lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if held else '**no**'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50, help="network calls a result")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the quickest counts")
    parser.add_argument("--write", type=Path, default=None, help="folder for inverse.md")
    options = parser.parse_args()
    report = run(options.calls, options.images, options.repeats)
    print(report)
    if options.write is not None:
        write_text(options.write / "inverse.md", report)


if __name__ == "__main__":
    main()
