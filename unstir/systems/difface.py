"""DifFace: Blind Face Restoration with Diffused Error Contraction (2024).

For people who own a restorer trained with a plain pixel loss, and an unconditional model of the same pictures, and want
realistic results under degradations that nobody trained for. The "diffused estimator" is: restore, then add noise,

    x_N ~ N(α_N f(y), σ_N² I),

and let the model run from there. What f got wrong shrinks by α_N and drowns in σ_N, the rest is the model's knowledge
of pictures. Larger N: more real and less faithful. It must be chosen for the size of the pictures (t = 400 of 1000 is
for 512²; on 8 × 8 it forgets the digit), see `unstir.steer.start_time` and `search_start_time`.

Parts: `unstir.steer.start`, the start kernel and the tail of any plan; DDIM with η = ½; no training but f's.
For holes add `steer.posterior(prior, mask, y, "ddnm", carry="data")`: the published step on known pixels, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import load
from ..denoiser import GaussianMixture
from ..evaluate import error_plot, frechet, labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP, Process
from ..solvers import plan
from ..steer import search_start_time, start, start_divergence, start_time
from ._digits import report
from .protocol import Result, at_least, at_most

PROCESS = VP()
LEVELS = tuple(0.1 * 2 ** (k / 4) for k in range(20))  # σ̂ = σ/α of the starts that are searched, 0.1 … 2.7
SHOWN = (0.2, 0.35, 0.5, 1.25)


def difface(
    prior: Any, restorer: Callable[[Tensor], Tensor], y: Tensor, run: Plan, t: float, *, seed: int = 0, **cond: Any
) -> Tensor:
    """f(y), clipped to [−1, 1], stirred to t and brought back by the prior; another seed is another plausible result."""
    h = restorer(y)
    if h.shape[1:] != (getattr(prior, "shape", None) or h.shape[1:]):
        raise ValueError(f"the restorer gives pictures of shape {tuple(h.shape[1:])}; the prior was made for {prior.shape}")
    if float(h.abs().max()) > 8:  # a poor restorer may overshoot; pictures of 0 … 255 are another matter
        raise ValueError(f"the restorer's values reach {float(h.abs().max()):.3g}; it must return pictures in [−1, 1]")
    tail, x = start(run, h.clamp(-1, 1), t, seed=seed)
    return sample(prior, tail, x=x, seed=seed, **cond).clamp(-1, 1)


def ddim(nfe: int = 100, process: Process = PROCESS) -> Plan:
    """The published sampler: DDIM with η = ½ on uniform times, of which a restoration runs the part below its start."""
    return plan("ddim", process, nfe, "uniform", eta=0.5)


class Degradation(NamedTuple):
    """Ranges of the blur's standard deviation in pixels, of the shrinking factor, and of the noise's level."""

    blur: tuple[float, float]
    shrink: tuple[int, int]
    noise: tuple[float, float]

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """y = enlarge(shrink(blur(x))) + noise, drawn for every picture (B, 1, 8, 8) apart."""
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(len(x), generator=generator, dtype=x.dtype)

        k = _blurs(uniform(*self.blur), x.shape[-1])
        y = torch.einsum("bij,bcjk,blk->bcil", k, x, k)
        small = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(y, 2), scale_factor=2, mode="bilinear")
        factor = uniform(self.shrink[0], self.shrink[1] + 1).floor()[:, None, None, None]
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return torch.where(factor >= 2, small, y) + uniform(*self.noise)[:, None, None, None] * z


def _blurs(std: Tensor, size: int) -> Tensor:
    """Gaussian blur of `size` pixels as matrices (B, size, size), rows of sum 1."""
    d = torch.arange(size, dtype=std.dtype)
    k = torch.exp(-((d[:, None] - d) ** 2) / (2 * std[:, None, None] ** 2))
    return k / k.sum(2, keepdim=True)


MILD = Degradation((0.3, 1.0), (1, 2), (0.0, 0.3))  # what the restorer is trained on
SEVERE = Degradation((1.0, 1.0), (2, 2), (0.8, 0.8))  # what it has never seen


def ridge(clean: Tensor, copies: int = 20, penalty: float = 1.0) -> Callable[[Tensor], Tensor]:
    """f: the linear least-squares restorer of `MILD` degradations, the plainest network with a pixel loss there is."""
    x = clean.repeat(copies, 1, 1, 1)
    y = torch.cat([MILD(x, 1).flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = y.T @ y + penalty * torch.eye(y.shape[1], dtype=y.dtype)
    weights = torch.linalg.solve(gram, y.T @ x.flatten(1))
    return lambda seen: (seen.flatten(1) @ weights[:-1] + weights[-1]).reshape(seen.shape)


def mixture_prior(clean: Tensor, components: int = 20, process: Process = PROCESS) -> GaussianMixture:
    """The exact denoiser of a mixture of full-covariance Gaussians fitted to the pictures (scikit-learn)."""
    from sklearn.mixture import GaussianMixture as Fit

    fit: Any = Fit(components, reg_covar=1e-3, random_state=0).fit(clean.flatten(1).numpy())
    return GaussianMixture(process, fit.weights_, torch.as_tensor(fit.means_).reshape(-1, *clean.shape[1:]), fit.covariances_)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Mean over the pictures of 10 log₁₀(4/MSE), for values in [−1, 1]."""
    return float((10 * (4 / (x - truth).square().flatten(1).mean(1)).log10()).mean())


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Fréchet distance of pixels and PSNR on 397 held-out digits: what was seen, f alone, SDEdit, DifFace.

    Nothing is trained by steps: the prior is exact and f linear, both fitted to 1100 digits. For every degradation the
    start level is chosen on 300 other digits, before the test: the lowest FD among those whose PSNR there loses at most
    half of what the claims allow (0.2 dB of f's, 0.5 dB where f is at home). large: five draws of the degradation.
    """
    rest, test = load("digits").split(397)
    fitted, validation = rest.split(300)
    clean, held, truth = (part.all().double() for part in (fitted, validation, test))
    restorer, prior, run = ridge(clean), mixture_prior(clean), ddim()
    scores: dict[str, dict[str, dict[str, float]]] = {}
    chosen: dict[str, float] = {}
    shown: dict[str, Tensor] = {"truth": truth[:10]}
    for name, degrade, drop in (("mild", MILD, 0.5), ("severe", SEVERE, 0.2)):
        estimate = restorer(degrade(held, 200)).clamp(-1, 1)
        least = psnr(estimate, held) - drop / 2

        def score(x: Tensor, true: Tensor, least: float = least) -> float:
            x = x.clamp(-1, 1)
            return frechet(true, x, "pixel").value if psnr(x, true) >= least else math.inf

        best, _ = search_start_time(prior, run, estimate, held, score, [_time(v) for v in LEVELS], seed=200)
        chosen[name] = float(PROCESS.noise_ratio(best))
        rows = scores[name] = _compare(prior, restorer, degrade, run, truth, best, 5 if large else 1)
        y = degrade(truth, 100)
        x = {"seen": y.clamp(-1, 1), "f": restorer(y).clamp(-1, 1)}
        x |= {f"DifFace, seed {k}": difface(prior, restorer, y, run, best, seed=k) for k in (0, 1)}
        x |= {"DifFace from level 4": difface(prior, restorer, y, run, _time(4.0))}
        shown |= {f"{name}: {label}": value[:10] for label, value in x.items()}
    error = float((restorer(MILD(held, 5)).clamp(-1, 1) - held).square().flatten(1).sum(1).mean())
    f, ours = ({name: rows[label] for name, rows in scores.items()} for label in ("f", "DifFace, chosen level"))
    falls = max(b["FD"] / a["FD"] for rows in scores.values() for a, b in pairwise(rows[_label(v)] for v in SHOWN))
    gain = {name: ours[name]["FD"] / f[name]["FD"] for name in scores}
    claims = [
        at_most("unseen degradation: FD, against half of f's", ours["severe"]["FD"], 0.5 * f["severe"]["FD"]),
        at_least("unseen degradation: PSNR, against f's − 0.2 dB", ours["severe"]["PSNR"], f["severe"]["PSNR"] - 0.2),
        at_most("degradation that f was trained on: FD, against 0.75 of f's", ours["mild"]["FD"], 0.75 * f["mild"]["FD"]),
        at_least("the same: PSNR, against f's − 0.5 dB", ours["mild"]["PSNR"], f["mild"]["PSNR"] - 0.5),
        at_most(
            "the FD's ratio to f's where the degradation is unseen, against that where it is not", gain["severe"], gain["mild"]
        ),
        at_most("FD falls with the start level: largest ratio of neighbours", falls, 1.0),
    ]
    page = report(
        "DifFace",
        "397 held-out digits, blurred, shrunk and noisy; f is ridge regression (clipped to [−1, 1]), the prior the exact "
        "denoiser of a mixture of 20 Gaussians, both fitted to 1100 other digits; DDIM, η = ½. SDEdit starts from what was "
        "seen instead of f's result. FD: Fréchet distance of the 64 pixels to the true digits.",
        claims,
    )
    for name, rows in scores.items():
        table = [[label, row["FD"], row["PSNR"]] for label, row in rows.items()]
        caption = f"{name}: level chosen on validation pairs, σ̂ = {chosen[name]:.2g}"
        page.table(table, ["result", "FD", "PSNR, dB"], best={"FD": "min", "PSNR, dB": "max"}, caption=caption)
    page.plot(error_plot({name: [(v, rows[_label(v)]["FD"]) for v in SHOWN] for name, rows in scores.items()}, ylabel="FD"))
    advice = [(kl, start_time(PROCESS, error, kl)) for kl in (50.0, 10.0, 2.0)]
    page.table(
        [[kl, t, float(PROCESS.noise_ratio(t))] for kl, t in advice],
        ["KL to the right start, nats", "t", "σ̂"],
        caption=f"start_time: where f's mean error (‖e‖² = {error:.3g} on mild pairs) costs that much.",
    )
    sheet = labelled_rows(shown)
    save_png(sheet, out / "samples.png")
    page.picture(sheet, "The same ten digits in all rows; from σ̂ = 4 the prior forgets them.").save(out / "report.html")
    kls = {f"{v:g}": start_divergence(PROCESS, _time(v), error) for v in SHOWN}
    return Result(claims, {"scores": scores, "chosen σ̂": chosen, "mean squared error of f": error, "KL of the start": kls})


def _time(level: float) -> float:
    """t with σ/α = level."""
    return float(PROCESS.time(-math.log(level)))


def _label(level: float) -> str:
    return f"DifFace, σ̂ {level:g}"


def _compare(
    prior: Any, restorer: Callable[[Tensor], Tensor], degrade: Degradation, run: Plan, truth: Tensor, chosen: float, draws: int
) -> dict[str, dict[str, float]]:
    """{result: {FD, PSNR}}, means over `draws` draws of the degradation."""
    table: dict[str, dict[str, float]] = {}
    for draw in range(draws):
        y = degrade(truth, 100 + draw)
        results = {
            "seen": y.clamp(-1, 1),
            "f": restorer(y).clamp(-1, 1),
            "SDEdit, chosen level": difface(prior, lambda v: v.clamp(-1, 1), y, run, chosen, seed=draw),
            "DifFace, chosen level": difface(prior, restorer, y, run, chosen, seed=draw),
        }
        results |= {_label(level): difface(prior, restorer, y, run, _time(level), seed=draw) for level in SHOWN}
        for label, x in results.items():
            row = table.setdefault(label, {"FD": 0.0, "PSNR": 0.0})
            row["FD"] += frechet(truth, x, "pixel").value / draws
            row["PSNR"] += psnr(x, truth) / draws
    return table
