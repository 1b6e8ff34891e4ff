"""Solving 3D Inverse Problems using Pre-trained 2D Diffusion Models (2023): DiffusionMBIR.

For those who reconstruct volumes (few-view tomography, undersampled magnetic resonance) and have a diffusion model of
slices. The model sees one slice at a time; after every row a step of ADMM on

    ½‖A x − y‖² + λ‖D_z x‖₁

makes the noisy volume consistent with the measurement, and neighbouring slices with each other. The duals are kept from
row to row, so that one step of conjugate gradients a row is enough.

Parts: `steer.SliceWise`, `steer.sliced`, `steer.admm_consistency` for any process and plan; `steer.admm` for the same
problem without a model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from .._extras import need
from ..denoiser import Gaussian
from ..evaluate import labelled_rows, save_png
from ..plan import Plan, sample
from ..process import VE, Process
from ..solvers import compile_plan
from ..steer import TV, SliceWise, admm, admm_consistency, operators, sliced
from ._digits import report
from .protocol import Claim, Result, at_least, at_most

VOXEL = 6  # millimetres
SIDE = 40  # of a slice, in voxels
LEVELS = slice(6, 26)  # the axial slices that are reconstructed, of 32
HIGH, LOW, ROWS = 3.0, 0.01, 100  # σ and calls
APART, TIED = "slice by slice", "DiffusionMBIR"
ABOUT = (
    "A T1 scan of an averaged head (MNI152, 6 mm), 20 axial slices of 40 × 40, measured without noise. The model of slices is "
    "exact: a Gaussian fitted to tissue maps of the same head in random brightness, turned, stretched, shifted and mirrored; "
    f"it has seen no T1 scan. VE process, σ from {HIGH:g} to {LOW:g}, {ROWS} ancestral rows. On D: the same step on the data "
    "prediction instead of the state. The total variation has no model, and the λ that is best for this very scan."
)


# -- data ----------------------------------------------------------------------------------------------------------
class Brain(NamedTuple):
    """Volumes (32, 40, 40), axial slices from below, of one head: a T1 scan, and where grey and white matter and brain are."""

    t1: Tensor
    grey: Tensor
    white: Tensor
    inside: Tensor


def brain() -> Brain:
    """The averaged head MNI152 that comes with nilearn, in voxels of 6 mm; T1 with maximum 1, the others in [0, 1]."""
    sets = need("nilearn.datasets")
    names = ("template", "gm_template", "wm_template", "brain_mask")
    volumes = [_voxels(getattr(sets, f"load_mni152_{name}")(resolution=1).get_fdata()) for name in names]
    return Brain(volumes[0] / volumes[0].max(), *volumes[1:])


def _voxels(volume: Any) -> Tensor:
    """An array (x, y, z) in millimetres as (z, y, x) in voxels, front at the top, padded to 240 × 240 × 192 mm."""
    v = torch.as_tensor(np.asarray(volume, dtype=np.float32)).permute(2, 1, 0).flip(1)
    pad = [(size - n) for size, n in zip((192, 240, 240), v.shape, strict=True)]
    v = nnf.pad(v, [side for p in reversed(pad) for side in (p // 2, p - p // 2)])
    return nnf.avg_pool3d(v[None], VOXEL)[0]


def tissue(head: Brain, grey: Tensor, white: Tensor, rest: Tensor) -> Tensor:
    """Slices as other scans might show them: each tissue of one brightness, and what is neither grey nor white of a third."""
    return grey * head.grey + white * head.white + rest * (head.inside - head.grey - head.white).clamp_min(0)


def training_slices(head: Brain, count: int, seed: int = 0) -> Tensor:
    """(count, 1, 40, 40): slices of the tissue maps in random brightness, turned, stretched, shifted and mirrored. No T1."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=draw)

    level = torch.randint(len(head.t1), (count,), generator=draw)
    picked = Brain(*(v[level] for v in head))
    shades = [uniform(*ends)[:, None, None] for ends in ((0.3, 1.0), (0.3, 1.0), (0.0, 0.5))]
    turn, stretch, mirror = uniform(-0.3, 0.3), uniform(0.85, 1.15), 2 * (uniform(0, 1) < 0.5) - 1.0
    cos, sin = turn.cos() / stretch, turn.sin() / stretch
    rows = [mirror * cos, -sin, uniform(-0.15, 0.15), mirror * sin, cos, uniform(-0.15, 0.15)]
    where = nnf.affine_grid(torch.stack(rows, 1).reshape(count, 2, 3), [count, 1, SIDE, SIDE], align_corners=False)
    return nnf.grid_sample(tissue(picked, *shades)[:, None], where, align_corners=False)


def slice_prior(process: Process, slices: Tensor, components: int = 150) -> Gaussian:
    """The exact denoiser of N(m, Σ): first principal components of the slices, and equal variance in all other directions."""
    x = slices.double().flatten(1)
    values, axes = torch.linalg.eigh(torch.cov(x.T))
    kept, rest = values[-components:], float(values[:-components].mean())
    axes = axes[:, -components:]
    covariance = rest * torch.eye(len(values), dtype=torch.float64) + (axes * (kept - rest)) @ axes.T
    return Gaussian(process, slices.double().mean(0), covariance)


# -- measurements --------------------------------------------------------------------------------------------------
class Scan(NamedTuple):
    """How slices (1, 40, 40) are measured, and the weights of DiffusionMBIR for it."""

    name: str
    operator: Any
    weight: float
    rho: float

    @property
    def file(self) -> str:
        """The name in lower-case letters and digits."""
        return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in self.name.lower()).split())


def scans(views: int = 8, acceleration: int = 4) -> list[Scan]:
    """Parallel-beam tomography with few views, and magnetic resonance with every fourth line; both of norm 1.

    λ and ρ were chosen on a volume of tissue maps, without the T1 scan.
    """
    angles = torch.arange(views) * math.pi / views
    shape = (1, SIDE, SIDE)
    ct = operators.explicit(operators.radon(angles, shape), shape)
    mri = operators.mri(operators.lines(shape, acceleration), real=True)
    return [Scan(f"CT, {views} views", ct, 1e-3, 0.01), Scan(f"MRI × {acceleration}", mri, 3e-3, 0.01)]


def ladder(process: Process, rows: int, solver: str = "ancestral") -> Plan:
    """σ̂ falls from 3 to 0.01 by equal factors, then to the data."""
    levels = torch.logspace(math.log10(HIGH), math.log10(LOW), rows, dtype=torch.float64)
    return compile_plan(solver, process, [*process.time(-levels.log()).tolist(), 0.0])


# -- measures ------------------------------------------------------------------------------------------------------
def psnr(x: Tensor, truth: Tensor) -> float:
    """10 log10(1/MSE) in dB over the volume, whose largest value is 1."""
    return float(-10 * (x - truth).square().mean().log10())


def z_error(x: Tensor, truth: Tensor) -> float:
    """Mean square of D_z x − D_z x0, the differences of neighbouring slices (B, 1, Z, H, W)."""
    return float((x - truth).diff(dim=2).square().mean())


def planes(x: Tensor) -> Tensor:
    """The middle axial, coronal and sagittal slice of a volume (1, 1, Z, H, W) with Z ≤ H = W, head up: (3, 1, H, W)."""
    z, h, w = (n // 2 for n in x.shape[2:])
    pad = x.shape[3] - x.shape[2]
    side = torch.cat([x[:, :, :, h], x[..., w]]).flip(2)
    return torch.cat([x[:, :, z], nnf.pad(side, (0, 0, pad // 2, pad - pad // 2))])


# -- what is compared ----------------------------------------------------------------------------------------------
def posterior_mean(model: Gaussian, operator: Any, y: Tensor) -> Tensor:
    """E[x0 | y] of slices under the Gaussian, the least mean square error of any method that takes each for itself:

    m + (Σ⁻¹ + AᵀA/ε)⁻¹ Aᵀ(y − A m)/ε,      ε = 1e-8
    """
    assert model.axes is not None
    mean, n = model.means.reshape(1, *model.shape), model.means.shape[1]
    gram = operator.A_adjoint(operator.A(torch.eye(n).to(mean).reshape(n, *model.shape))).flatten(1)
    inverse = (model.axes[0] / model.spectrum[0]) @ model.axes[0].T
    right = operator.A_adjoint(y.to(mean) - operator.A(mean)).flatten(1)
    return (mean.flatten(1) + torch.linalg.solve(1e-8 * inverse + gram, right.T).T).reshape(-1, *model.shape).to(y)


def best_tv(operator: Any, y: Tensor, truth: Tensor) -> tuple[float, Tensor]:
    """(λ, volume): reconstruction by isotropic 3-D total variation, with the λ that is best for this very truth.

    Each λ starts from the solution of the last one.
    """
    x, duals, found = torch.zeros_like(truth), None, []
    for weight in (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5):
        x, duals = admm(operator, y, [TV((2, 3, 4), weight, 0.03)], x, duals, admm_steps=60, cg_steps=5)
        found.append((psnr(x, truth), weight, x))
    return max(found, key=lambda entry: entry[0])[1:]


def reconstructions(model: Gaussian, scan: Scan, truth: Tensor) -> dict[str, Tensor]:
    """{method: volume (1, 1, Z, H, W)} from one measurement of the truth; slices get their measurements y[0] as a batch."""
    volumes, operator = SliceWise(model), sliced(scan.operator)
    y, terms = operator.A(truth), [TV(2, scan.weight, scan.rho)]
    plan, few = ladder(model.process, ROWS), ladder(model.process, ROWS // 5)

    def apart(on: str) -> Tensor:
        post = admm_consistency(model, scan.operator, y[0], on=on)
        return sample(post, plan, shape=truth.shape[2]).movedim(0, 1)[None]

    def tied(on: str, plan: Plan = plan, **options: Any) -> Tensor:
        post = admm_consistency(volumes, operator, y, terms, on=on, **options)
        return sample(post, plan, shape=tuple(truth.shape))

    weight, smooth = best_tv(operator, y, truth)
    return {
        "pseudo-inverse": operator.A_dagger(y),
        f"3-D total variation, best weight {weight:g}": smooth,
        f"{APART}, exact posterior mean": posterior_mean(model, scan.operator, y[0]).movedim(0, 1)[None],
        APART: apart("state"),
        TIED: tied("state"),
        f"{TIED}, duals forgotten": tied("state", warm=False),
        f"{APART}, on D": apart("clean"),
        f"{TIED}, on D": tied("clean"),
        f"{TIED}, on D, {len(few)} calls, 5 gradients each": tied("clean", few, cg_steps=5),
    }


# -- the run -------------------------------------------------------------------------------------------------------
def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """A T1 scan from 8-view tomography, and from magnetic resonance × 4: the volume against slice by slice, 100 calls each.

    large: 4 and 2 views too, of which nothing is claimed.
    """
    head = brain()
    truth = head.t1[LEVELS][None, None].to(device)
    model = slice_prior(VE(LOW, HIGH), training_slices(head, 4000)).to(device)
    found: dict[str, dict[str, dict[str, float]]] = {}
    sheets = {}
    every = scans() + (scans(4)[:1] + scans(2)[:1] if large else [])
    for scan in every:
        ends = reconstructions(model, scan, truth)
        found[scan.name] = {name: {"PSNR": psnr(x, truth), "z error": z_error(x, truth)} for name, x in ends.items()}
        shown = {name: planes(x).cpu() for name, x in {"truth": truth, **ends}.items()}
        sheets[scan.name] = labelled_rows(shown, 3, (0, 1), ["axial", "coronal", "sagittal"])
        save_png(sheets[scan.name], out / f"{scan.file}.png")

    claims = [claim for scan in every[:2] for claim in _claims(scan.name, found[scan.name])]
    page = report("DiffusionMBIR", ABOUT, claims)
    columns = ["reconstruction", "PSNR in dB", "z-gradient error"]
    for name, rows in found.items():
        page.text(f"## {name}").table(
            [(method, *row.values()) for method, row in rows.items()], columns, best={columns[1]: "max", columns[2]: "min"}
        )
        page.picture(sheets[name], "The middle slices.")
    page.text(
        "The model is a Gaussian of 150 components, which knows no edges: where total variation alone wins, the slices of 6 mm "
        "voxels hold more edges than such a model can use. A posterior mean has less error than any draw, and no texture."
    )
    page.save(out / "report.html")
    return Result(claims, found)


def _claims(scan: str, found: dict[str, dict[str, float]]) -> list[Claim]:
    apart, tied = found[APART], found[TIED]
    return [
        at_least(f"{scan}: PSNR in dB, against slice by slice + 0.5", tied["PSNR"], apart["PSNR"] + 0.5),
        at_most(f"{scan}: z-gradient error, against 0.8 of slice by slice", tied["z error"], 0.8 * apart["z error"]),
    ]
