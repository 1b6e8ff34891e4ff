"""Scanners: magnetic resonance and tomography, and an operator as the matrix it is.

Pictures are (B, C, H, W). Every operator follows its input to its dtype and device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ...process.base import float64
from .derive import norm
from .linear import Linear, Spectral, dense, mask


def mri(keep: Tensor, real: bool = False) -> Spectral:
    """Single-coil MRI, y = m ⊙ F x with the orthonormal Fourier transform; a complex picture is (B, 2, H, W).

    keep (H, W): 1 where k-space is measured, zero frequency at [0, 0]. y is (B, 2, H, W), and A⁺ = Aᵀ.

    real: x is a real picture (B, 1, H, W), whose k-space is symmetric. With H the Hartley transform (orthonormal,
    H x = Re F x − Im F x) V = H and s² = (m(k) + m(−k))/2: a frequency of which one of the pair is measured is known,
    at 1/√2 of the strength.
    """
    seen = mask(keep)
    if real:
        return _real_mri(seen)

    def fourier(transform: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor) -> Tensor:
            if x.ndim != 4 or x.shape[1] != 2:
                raise ValueError(f"x has shape {tuple(x.shape)}; a complex picture is (B, 2, H, W)")
            z = transform(torch.complex(x[:, 0], x[:, 1]), norm="ortho")
            return torch.stack((z.real, z.imag), 1)

        return apply

    forward = fourier(torch.fft.fft2)
    return Spectral(seen.s, fourier(torch.fft.ifft2), lambda x: seen.V_adjoint(forward(x)), U_adjoint=seen.U_adjoint)


def _real_mri(seen: Spectral) -> Spectral:
    keep = seen.s
    mirrored = keep.flip(-2, -1).roll((1, 1), (-2, -1))  # m(−k)
    s = ((keep + mirrored) / 2).sqrt()

    def hartley(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}; a real picture is (B, 1, H, W)")
        z = torch.fft.fft2(seen.V_adjoint(x), norm="ortho")
        return z.real - z.imag

    def divided(c: Tensor) -> Tensor:
        return torch.where(s.to(c) > 0, c / s.to(c).clamp_min(1e-6), 0.0)

    def left(c: Tensor) -> Tensor:  # U c = A V c/s
        z = torch.fft.fft2(hartley(divided(c)), norm="ortho")[:, 0]
        return torch.stack((z.real, z.imag), 1) * keep.to(c)

    def left_adjoint(y: Tensor) -> Tensor:  # Vᵀ Aᵀ y/s
        if y.ndim != 4 or y.shape[1] != 2:
            raise ValueError(f"y has shape {tuple(y.shape)}; measured k-space is (B, 2, H, W), real and imaginary part")
        z = torch.fft.ifft2(torch.complex(y[:, 0], y[:, 1]) * keep.to(y), norm="ortho").real
        return divided(hartley(z[:, None]))

    return Spectral(s, hartley, hartley, left, left_adjoint)


def lines(shape: Sequence[int], acceleration: float, center: float = 0.08, seed: int = 0) -> Tensor:
    """A mask of k-space for `mri`: whole lines (columns), one in `acceleration` of all, those at low frequency for certain.

    center: the share of columns round zero frequency that is always measured; the rest is drawn with `seed`.
    """
    high, wide = int(shape[-2]), int(shape[-1])
    if not (acceleration >= 1 and 0 <= center <= 1):
        raise ValueError(f"acceleration={acceleration} must be at least 1 and center={center} lie in [0, 1]")
    frequency = torch.fft.fftfreq(wide).abs()
    count = max(1, round(wide / acceleration))
    sure = frequency.argsort(stable=True)[: min(count, max(1, round(center * wide)))]
    rest = torch.tensor([i for i in range(wide) if i not in set(sure.tolist())], dtype=torch.long)
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: count - len(sure)]]
    keep = torch.zeros(wide)
    keep[torch.cat([sure, drawn])] = 1
    return keep.expand(high, wide).clone()


def radon(angles: Tensor, shape: Sequence[int]) -> Linear:
    """Parallel-beam tomography: rotate by each angle (radians), sum along the beam; y is (B, C, angles, W), ‖A‖ = 1.

    Square pictures, shape (C, N, N); what is rotated out of the frame is lost. The adjoint is exact;
    filtered back-projection is not A⁺. For small pictures `explicit` makes it fast, and spectral.
    """
    angles = float64(angles)
    if angles.ndim != 1 or len(shape) != 3 or shape[-1] != shape[-2]:
        raise ValueError(f"angles must be one-dimensional and shape (C, N, N); got {tuple(angles.shape)} and {tuple(shape)}")
    if float(angles.abs().max()) > 2 * math.pi:
        warnings.warn(
            f"angles reach {float(angles.abs().max()):g}: they are in radians, and a turn is 6.28; torch.deg2rad turns degrees",
            stacklevel=2,
        )
    n, count = int(shape[-1]), len(angles)
    cos, sin = angles.cos(), angles.sin()
    turn = torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)  # (angles, 2, 2)
    grid = nnf.affine_grid(nnf.pad(turn, (0, 1)), [count, 1, n, n], align_corners=False)
    scale = 1.0

    def project(x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        turned = nnf.grid_sample(x.reshape(1, b * c, n, n).expand(count, -1, -1, -1), grid.to(x), align_corners=False)
        return turned.sum(2).reshape(count, b, c, n).permute(1, 2, 0, 3) / scale

    operator = Linear(project, shape)
    scale = norm(operator, torch.zeros(1, *shape, dtype=torch.float64))
    return operator


def explicit(operator: Any, shape: Sequence[int], threshold: float = 1e-4) -> Spectral:
    """A linear operator as its matrix and singular value decomposition: everything in closed form, for small samples.

    shape: of a sample, at most 4096 values. Singular values up to threshold · ‖A‖ are taken for 0.
    """
    size = math.prod(shape)
    if size > 4096:
        raise ValueError(f"samples of shape {tuple(shape)} have {size} values; matrices are for at most 4096")
    made = operator.A(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    form = tuple(made.shape[1:])
    flat = dense(made.flatten(1).T, shape)
    return Spectral(
        torch.where(flat.s > threshold * flat.s.max(), flat.s, 0.0),
        flat.V,
        flat.V_adjoint,
        lambda c: flat.U(c).reshape(len(c), *form),
        lambda y: flat.U_adjoint(y.flatten(1)),
    )
