"""The methods of the two libraries for `benchmarks.inverse`, and where their settings are sought.

Both libraries get the same number of trials a task (`TRIALS`). The first of each method is its default. DDRM, the one method
that is the same algorithm on both sides, then tries the same settings on both, `GRID`; the others draw theirs at random, and
seek what is not a matter of the method in the same places: the highest level and the spacing of the levels, and among how
many samples the calls are shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

import unstir
from unstir.steer import Reconstructor, red_diff

from .inverse_problems import NOISE, PROCESS, SPAN, Bench

Run = Callable[[Tensor, Any], Tensor]  # (y in units of [0, 1], operator) -> x in [0, 1]
TOPS, RHOS, SHARES = (1.0, 2.0, 4.0, 20.0), (1.0, 1.5, 2.0, 3.0), (1, 2, 4, 5, 8, 10)
ETAS = (0.5, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class Entry:
    """One method with one setting."""

    library: str
    method: str
    setting: str
    run: Run


Space = Callable[[int, Random], tuple[str, Run]]  # trial k: its setting, told and ready to run; 0 is the default


GRID = tuple(product(((1.0, 1.5), (2.0, 1.0), (2.0, 2.0), (4.0, 2.0), (20.0, 3.0)), (0.85, 1.0), (1, 4, 10)))  # (top, ρ), η, S
TRIALS = {  # kindred methods get as many, and the libraries as many in all
    "unstir": {"DDRM": 1 + len(GRID), "DiffPIR": 6, "ΠGDM": 4, "TMPD": 2, "DPS": 3, "RED-diff": 1},
    "deepinv": {"DDRM": 1 + len(GRID), "DiffPIR": 6, "ΠGDM": 4, "moment matching": 2, "DPS": 4},
}


def entries(library: str, spaces: dict[str, Space]) -> Iterator[Entry]:
    """The settings that are tried of each method."""
    for method, space in spaces.items():
        random = Random(f"{library} {method}")
        for k in range(TRIALS[library][method]):
            yield Entry(library, method, *space(k, random))


def log_uniform(random: Random, low: float, high: float) -> float:
    return float(f"{math.exp(random.uniform(math.log(low), math.log(high))):.2g}")


def levels(count: int, top: float, rho: float) -> list[float]:
    """σ̂_i = top (1 − i/n)^ρ, i = 0 … n − 1, in the model's units."""
    return [top * (1 - i / count) ** rho for i in range(count)]


def told(share: int, calls: int) -> str:
    return "" if share == 1 else f", mean of {share} × {calls // share}"


# -- ours ---------------------------------------------------------------------------------------------------------
def ours(model: Any, bench: Bench, calls: int) -> dict[str, Space]:
    like = torch.zeros(1, *bench.shape)

    def mean_of(
        method: str, solver: str, options: Callable[[Random], dict[str, Any]], shares: tuple[int, ...] = SHARES
    ) -> Space:
        """A method of `steer.posterior`; what begins with "plan_" is an option of the solver."""

        def space(k: int, random: Random) -> tuple[str, Run]:
            if k == 0:
                share = 4 if 4 in shares else 1
                return f"default{told(share, calls)}", Reconstructor(model, method, samples=share, nfe=calls, noise=NOISE)
            if method == "ddrm":
                (top, rho), eta, share = GRID[k - 1]
                chosen: dict[str, Any] = {"eta": eta}
            else:
                top, rho, share, chosen = random.choice(TOPS), random.choice(RHOS), random.choice(shares), options(random)
            nodes = [float(PROCESS.time(-math.log(level))) for level in levels(calls // share, top, rho)]
            of_plan = {name[5:]: value for name, value in chosen.items() if name.startswith("plan_")}
            plan = unstir.plan(solver, PROCESS, nfe=calls // share, grid=[*nodes, 0.0], **of_plan)
            own = {name: value for name, value in chosen.items() if not name.startswith("plan_")}
            settings = [f"σ̂ ≤ {top:g}, ρ {rho:g}", *(f"{name.removeprefix('plan_')} {v}" for name, v in chosen.items())]
            restore = Reconstructor(model, method, plan, samples=share, noise=NOISE, **own)
            return ", ".join(settings) + told(share, calls), restore

        return space

    def red(k: int, random: Random) -> tuple[str, Run]:
        lam, rate, top = 0.25, 0.1, 10.0
        if k:
            lam, rate, top = log_uniform(random, 0.1, 4.0), log_uniform(random, 0.02, 0.3), random.choice(TOPS)
        plan = unstir.plan("ddim", PROCESS, nfe=calls, grid="karras", start=float(PROCESS.time(-math.log(top))), end=0.0)

        def run(y: Tensor, operator: Any) -> Tensor:
            posed = SPAN.problem(operator, y, NOISE, like)
            return SPAN.user(red_diff(model, posed.operator, posed.y, plan, posed.noise, lam=lam, rate=rate, sums=True))

        return f"λ {lam:g}, rate {rate:g}, σ̂ ≤ {top:g}", run

    def proximal(random: Random) -> dict[str, Any]:
        weight = random.choice([{"lam": log_uniform(random, 1, 60)}, {"data_std": random.choice((0.25, 0.5, 1.0))}])
        return {**weight, "plan_eta": random.choice((0.0, *ETAS))}

    def pseudoinverse(random: Random) -> dict[str, Any]:
        chosen = {"data_std": random.choice((0.5, 1.0, 2.0, 4.0, 8.0)), "carry": random.choice(("data", "noise"))}
        return {**chosen, "plan_eta": random.choice((0.0, 0.5, 1.0))}

    return {
        "DDRM": mean_of("ddrm", "ddim", lambda random: {}),
        "DiffPIR": mean_of("diffpir", "ddim", proximal),
        "ΠGDM": mean_of("pigdm", "ddim", pseudoinverse),
        "TMPD": mean_of("tmpd", "ddim", lambda r: {"steps": r.randint(1, 5), "plan_eta": r.choice((0.0, 0.5, 1.0))}),
        "DPS": mean_of("dps", "ancestral", lambda random: {"strength": log_uniform(random, 0.2, 4.0)}, (1, 2)),
        "RED-diff": red,
    }


# -- deepinv's ----------------------------------------------------------------------------------------------------
def import_deepinv() -> Any:
    """deepinv, though torchvision's compiled part may be missing; None if it is not installed."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
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


def physics_of(dinv: Any, operator: Any, shape: tuple[int, ...]) -> Any:
    """One of our operators as a physics of deepinv, whose V is square and whose transforms are real."""
    maps = operator.V, operator.V_adjoint, operator.U, operator.U_adjoint
    s, form = operator.s.float(), operator.V_adjoint(torch.zeros(1, *shape))
    if form.is_complex():
        s, maps = half_spectrum(s, operator, shape)
    elif form.numel() < math.prod(shape):
        s, maps = completed(s, operator, shape)
    else:
        s = s.expand(form.shape).contiguous()
    named = dict(zip(("V", "V_adjoint", "U", "U_adjoint"), maps, strict=True))
    return dinv.physics.DecomposablePhysics(**named, img_size=shape, mask=s, noise_model=dinv.physics.GaussianNoise(NOISE))


def half_spectrum(s: Tensor, operator: Any, shape: tuple[int, ...]) -> tuple[Tensor, Any]:
    """A blur in the form of deepinv's own: real and imaginary parts of the half of the frequencies that tells all."""
    high, wide = shape[-2:]
    half = wide // 2 + 1
    impulse = torch.zeros(1, *shape)
    impulse[..., 0, 0] = math.sqrt(high * wide)
    phase = operator.U_adjoint(impulse).conj()[..., :half]  # Uᵀ is F and then the opposite phase

    def back(c: Tensor, by: Tensor | float = 1.0) -> Tensor:
        return torch.fft.irfft2(torch.view_as_complex(c) * by, s=(high, wide), norm="ortho")

    def forth(x: Tensor, by: Tensor | float = 1.0) -> Tensor:
        return torch.view_as_real(torch.fft.rfft2(x, norm="ortho") * by)

    mask = s[..., :half, None].expand(1, *shape[:-1], half, 2).contiguous()
    return mask, (back, forth, lambda c: back(c, phase), lambda y: forth(y, phase.conj()))


def completed(s: Tensor, operator: Any, shape: tuple[int, ...]) -> tuple[Tensor, Any]:
    """A thin V with the rest of an orthonormal basis, the null space, whose singular values are 0."""
    thin, size = operator.V(torch.eye(len(s), dtype=torch.float64)).flatten(1).T, math.prod(shape)
    rest = torch.linalg.qr(torch.cat([thin, torch.eye(size, dtype=torch.float64)], 1))[0][:, len(s) :]
    basis, more = torch.cat([thin, rest], 1).float(), size - len(s)
    return nnf.pad(s, (0, more))[None], (
        lambda c: (c @ basis.T).reshape(len(c), *shape),
        lambda x: x.flatten(1) @ basis,
        lambda c: operator.U(c[:, : len(s)]),
        lambda y: nnf.pad(operator.U_adjoint(y), (0, more)),
    )


def theirs(dinv: Any, model: Any, bench: Bench, calls: int) -> dict[str, Space]:
    s, shape = dinv.sampling, bench.shape

    class Wrapped(dinv.models.Denoiser):
        """The denoiser as deepinv calls it: pictures and σ in units of [0, 1]."""

        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            level = 2 * torch.as_tensor(sigma, dtype=torch.float64).flatten()
            t = PROCESS.time(-level.log())
            return SPAN.user(model(SPAN.model(x.float()), t if len(t) == len(x) else t[0]))

    denoiser, known = Wrapped(), {}

    def mean_of(share: int, build: Callable[[], Any], start: str | None = None) -> Run:
        """What deepinv's `DiffusionSampler` computes: the mean of several runs, here in one batch."""

        def run(y: Tensor, operator: Any) -> Tensor:
            if id(operator) not in known:
                known[id(operator)] = physics_of(dinv, operator, shape)
            many, physics = y.repeat(share, *[1] * (y.ndim - 1)), known[id(operator)]
            begin = {None: {}, "shape": {"x_init": (len(many), *shape)}, "back": {"x_init": operator.A_dagger(many)}}[start]
            return build()(many, physics, seed=1, **begin).float().reshape(share, len(y), *shape).mean(0)

        return run

    def ddrm(k: int, random: Random) -> tuple[str, Run]:
        # Its default σ from 1 to 0 are uniform, of pictures in [0, 1].
        (top, rho), eta, share = GRID[k - 1] if k else ((2.0, 1.0), 0.85, 1)
        sigmas = [level / 2 for level in levels(calls // share, top, rho)]
        setting = f"σ ≤ {top / 2:g}, ρ {rho:g}, η {eta}{told(share, calls)}"
        return setting if k else "default", mean_of(share, lambda: s.DDRM(denoiser, sigmas=sigmas, eta=eta))

    def diffpir(k: int, random: Random) -> tuple[str, Run]:
        lam, zeta, share = 7.0, 0.1, 1
        if k:
            lam, zeta, share = log_uniform(random, 1, 60), random.choice((0.1, 0.3, 0.6, 1.0)), random.choice(SHARES)

        def build() -> Any:
            term = dinv.optim.data_fidelity.L2()
            return s.DiffPIR(denoiser, term, sigma=NOISE, max_iter=calls // share, zeta=zeta, lambda_=lam)

        setting = f"λ {lam:g}, ζ {zeta}{told(share, calls)}"
        return setting if k else "default", mean_of(share, build, "back")

    def guided(term: Any) -> Space:
        def space(k: int, random: Random) -> tuple[str, Run]:
            alpha, weight, top, share = 1.0, 1.0, 20.0, 1
            if k:
                alpha, weight = random.choice((0.0, 0.5, 1.0)), random.choice((0.5, 1.0, 1.0, 2.0))
                top, share = random.choice(TOPS), random.choice(SHARES)

            def build() -> Any:
                sde = s.VarianceExplodingDiffusion(alpha=alpha, sigma_min=0.005, sigma_max=top / 2)
                times = torch.linspace(1, 0.001, calls // share + 1, dtype=torch.float64)
                return s.PosteriorDiffusion(term(weight=weight), denoiser, sde, s.AncestralSolver(timesteps=times))

            setting = f"noise {alpha:g}, weight {weight:g}, σ ≤ {top / 2:g}{told(share, calls)}"
            return setting, mean_of(share, build, "shape")

        return space

    def dps(k: int, random: Random) -> tuple[str, Run]:
        weight, guidance, schedule, share = 1.0, "norm", "vp", 1
        if k:
            weight, share = log_uniform(random, 0.25, 8.0), random.choice((1, 2))
            guidance, schedule = random.choice(("norm", "annealed")), random.choice(("vp", "vp", "ve"))

        def build() -> Any:
            return s.DPS(denoiser, num_steps=calls // share + 1, weight=weight, guidance=guidance, schedule=schedule)

        setting = f"{guidance}, weight {weight:g}, {schedule}{told(share, calls)}"
        return setting if k else "default", mean_of(share, build, "shape")

    return {
        "DDRM": ddrm,
        "DiffPIR": diffpir,
        "ΠGDM": guided(s.PiGDMDataFidelity),
        "moment matching": guided(s.MomentMatchingDataFidelity),
        "DPS": dps,
    }
