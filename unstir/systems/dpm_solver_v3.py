"""DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics (2023).

For anyone who samples one trained model many times in 5 to 10 calls. Three curves of the model over the
log-SNR are measured once, per pixel, from a few hundred data at each level: l, the linear part of its noise
prediction, and s, b, the slope and offset of what is left. The equation is then solved in the variable that
varies least, by a multistep predictor–corrector with one call a step. A part of the gain is lost on any
other network, and above about 15 calls UniPC is as good without measuring anything.

Parts: `unstir.tune.model_statistics` (Jacobian–vector products), `unstir.solvers.ems_multistep` (a plan whose
entries are tensors, with an additive column), a grid uniform in λ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import train
from .._files import read_tensors, write_tensors
from ..data import load
from ..denoiser import Denoiser
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VP, Process
from ..solvers import make_grid, plan
from ..solvers.ems import Statistics, ems_multistep
from ..tune import model_statistics
from ._digits import error_section, errors, report
from .protocol import Result, at_least, at_most

RECIPE = 1  # part of the cache's name: raise it when the network or its training changes
BUDGETS = (5, 6, 8, 10, 15)


def dpm_solver_v3(
    process: Process,
    nfe: int,
    stats: Statistics,
    order: int = 2,
    pseudo_corrector: bool = True,
    grid: str = "logsnr",
    start: float = 1.0,
    end: float = 1e-3,
    **options: Any,
) -> Plan:
    """DPM-Solver-v3 with exactly `nfe` calls, for the model whose statistics are given.

    The default, order 2 with a pseudo corrector of order 3, is the paper's choice for guided and latent
    models and the best on our digits; for unconditional pixel models it takes order=3, pseudo_corrector=False,
    and up to 5 calls pseudo_predictor=True. options: of `unstir.solvers.ems_multistep`.
    """
    nodes = make_grid(grid, process, nfe, start, end)
    return ems_multistep(process, nodes, stats=stats, order=order, pseudo_corrector=pseudo_corrector, **options)


# -- the network --------------------------------------------------------------------------------------------
class NoiseNet(nn.Module):
    """ε̂(x, λ) for 8 × 8 pictures:  h = W x,   three times h ← h + B silu(A h + e),   ε̂ = H h,   e = MLP(λ/5)."""

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.enter, self.head = nn.Linear(64, width), nn.Linear(width, 64)
        self.a, self.b = (nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)) for _ in range(2))

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        h, e = self.enter(x.flatten(1)), self.embed(lam[:, None] / 5)
        for a, b in zip(self.a, self.b, strict=True):
            h = h + b(nn.functional.silu(a(h) + e))
        return self.head(h).reshape(x.shape)


def network(folder: Path, steps: int = 1500, seed: int = 0) -> Denoiser:
    """The noise-prediction network on all digits, trained once and kept in `folder`: t uniform, batch 256, cosine rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Denoiser(NoiseNet(), VP(), "noise", time="logsnr", shape=(1, 8, 8))
    path = folder / f"digits-noise-v{RECIPE}-{steps}-{seed}.safetensors"
    if not path.exists():
        config = train.TrainConfig(
            data="digits", split="all", steps=steps, batch=256, lr=2e-3, warmup=0, weight_decay=0.01, seed=seed,
            predicts="noise", ema=0.995, device="cpu", checkpoint_every=steps, keep=1,
        )  # fmt: skip
        with train.bar(steps, "digits network") as progress:
            run = train.fit(model, load("digits"), config, path.with_suffix(""), resume=True, progress=progress)
        if run.interrupted:
            raise KeyboardInterrupt
        write_tensors(path, run.model.network.state_dict())  # type: ignore[union-attr]
    model.network.load_state_dict(read_tensors(path))  # type: ignore[union-attr]
    return model.eval().requires_grad_(False)


# -- the claim ----------------------------------------------------------------------------------------------
def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """DPM-Solver-v3 beside DDIM, DPM-Solver++ 2M and UniPC-3 on a network trained on real digits.

    large: 480 knots of 1024 samples and 1000 starts instead of 160 knots of 256 and 48.
    """
    process = VP()
    model = network(out.parent).to(device)
    knots, samples = (480, 1024) if large else (160, 256)
    with train.bar(knots, "model statistics") as progress:
        stats = model_statistics(model, load("digits"), knots=knots, samples=samples, start=1.0, end=1e-3, progress=progress)
    stats.save(out / "statistics.safetensors")
    zero = torch.zeros_like(stats.l)
    only_l = Statistics(process, stats.logsnr, stats.l, zero, zero)

    x = process.prior((1000 if large else 48, 1, 8, 8), seed=1, device=device)
    reference = sample(model, plan("dpmpp-3m", process, 401, "logsnr", end=1e-3), x=x)
    plans = {
        "DDIM": lambda n: plan("ddim", process, n, "logsnr", end=1e-3),
        "DPM-Solver++ 2M": lambda n: plan("dpmpp-2m", process, n, "logsnr", end=1e-3, lower_final=True),
        "UniPC-3, B1": lambda n: plan("unipc", process, n, "logsnr", end=1e-3, kind="half"),
        "UniPC-3, B2": lambda n: plan("unipc", process, n, "logsnr", end=1e-3, kind="midpoint"),
        "v3, order 1, l alone": lambda n: dpm_solver_v3(process, n, only_l, order=1, corrector=False),
        "v3, order 1": lambda n: dpm_solver_v3(process, n, stats, order=1, corrector=False),
        "v3, order 2": lambda n: dpm_solver_v3(process, n, stats, order=2, corrector=False),
        "v3, order 3": lambda n: dpm_solver_v3(process, n, stats, order=3, corrector=False),
        "v3, order 3 and corrector": lambda n: dpm_solver_v3(process, n, stats, order=3, pseudo_corrector=False),
        "v3, order 2 and pseudo corrector": lambda n: dpm_solver_v3(process, n, stats),
    }
    found = errors(model, plans, BUDGETS, x, reference)
    best, first, ddim = found["v3, order 2 and pseudo corrector"], found["v3, order 1"], found["DDIM"]
    rivals = ("DDIM", "DPM-Solver++ 2M", "UniPC-3, B1", "UniPC-3, B2")
    claims = [
        *(
            at_most(f"{n} calls: v3's error, against half of the best of {', '.join(rivals)}", best[n], 0.5 * rival)
            for n in (5, 6, 8)
            for rival in [min(found[name][n] for name in rivals)]
        ),
        *(at_most(f"{n} calls: v3 of order 1, against 0.6 of DDIM's error", first[n], 0.6 * ddim[n]) for n in (5, 6, 8, 10)),
        at_least("5 calls: v3 of order 1 with l alone is worse than DDIM", found["v3, order 1, l alone"][5], ddim[5]),
    ]

    pictures = {"reference": reference[:10].cpu()}
    for name in ("DDIM", "DPM-Solver++ 2M", "UniPC-3, B2", "v3, order 2 and pseudo corrector"):
        pictures[f"{name}, 5 calls"] = sample(model, plans[name](5), x=x[:10]).cpu()
    sheet = labelled_rows(pictures)
    save_png(sheet, out / "samples.png")
    page = report(
        "DPM-Solver-v3",
        f"A noise network trained on 1797 real digits, VP process, t from 1 to 0.001, grid uniform in λ, {len(x)} starts. "
        f"Statistics: {knots} knots of {samples} samples. Error: median over the samples of the root-mean-square distance "
        "to 401 third-order steps.",
        claims,
    )
    mean = {name: [float(v) for v in getattr(stats, name).mean((1, 2, 3))] for name in ("l", "s", "b")}
    rows = [[float(stats.logsnr[k]), *(mean[name][k] for name in mean)] for k in range(0, knots, knots // 10)]
    page.table(
        rows, ["λ", *mean], caption="The curves, averaged over the pixels: l goes from 1 (data) to 0 (noise prediction)."
    )
    error_section(page, out, found, "Median error at equal numbers of network calls.")
    page.picture(sheet, "The same starts after 5 calls.").save(out / "report.html")
    return Result(claims, {"errors": found, "starts": len(x), "knots": knots, "samples": samples})
