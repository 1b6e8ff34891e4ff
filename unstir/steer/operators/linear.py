"""Operators: the two general forms, and the common measurements as functions that make them.

    Spectral   A = U diag(s) Vᵀ with U, V as fast maps: everything in closed form
    Linear     A as a function: the adjoint by vector–Jacobian product, the rest by conjugate gradients

Pictures are (B, C, H, W). Every operator follows its input to its dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ...process.base import float64
from .derive import Map, vjp


def _same(x: Tensor) -> Tensor:
    return x


class Spectral:
    """A = U diag(s) Vᵀ: maps U, V with orthonormal columns, their adjoints, and s ≥ 0 that broadcasts over Vᵀx.

    V may be thin (fewer columns than x has values); what it leaves out is in the null space.
    """

    linear = True

    def __init__(self, s: Tensor, V: Map = _same, V_adjoint: Map = _same, U: Map = _same, U_adjoint: Map = _same) -> None:
        # Singular values that are rounding errors would be divided by.
        self.s = torch.where(s > 1e-10 * s.max(), s, 0.0)
        self.V, self.V_adjoint, self.U, self.U_adjoint = V, V_adjoint, U, U_adjoint

    def _s(self, like: Tensor) -> Tensor:
        return self.s.to(like.device, like.real.dtype)

    def A(self, x: Tensor) -> Tensor:
        """A x = U s Vᵀ x."""
        c = self.V_adjoint(x)
        return self.U(self._s(c) * c)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y = V s Uᵀ y."""
        c = self.U_adjoint(y)
        return self.V(self._s(c) * c)

    def A_dagger(self, y: Tensor) -> Tensor:
        """A⁺ y = V s⁺ Uᵀ y,  s⁺ = 1/s, 0 where s = 0."""
        c = self.U_adjoint(y)
        s = self._s(c)
        return self.V(torch.where(s > 0, 1 / s, 0.0) * c)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: Any) -> Tensor:
        """argmin γ/2 ‖A x − y‖² + ½ ‖x − z‖²  =  z + V (s/(1/γ + s²)) (Uᵀy − s Vᵀz). gamma: number, (B,) or (B, 1, …)."""
        c = self.V_adjoint(z)
        s, rho = self._s(c), 1 / torch.as_tensor(gamma, device=c.device, dtype=c.real.dtype)
        rho = rho.reshape(-1, *[1] * (c.ndim - 1)) if rho.ndim else rho
        return z + self.V(torch.where(s > 0, s / (rho + s**2), 0.0) * (self.U_adjoint(y) - s * c))

    def norm(self) -> float:
        """The largest singular value."""
        return float(self.s.max())


class Linear:
    """A linear function and the shape of its input (without batch); Aᵀ is its vector–Jacobian product."""

    linear = True

    def __init__(self, function: Map, shape: Sequence[int]) -> None:
        self.A, self.shape = function, tuple(shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y."""
        return vjp(self.A, y.new_zeros((len(y), *self.shape)), y)


class Nonlinear:
    """A differentiable function that is not linear; `inverse`, if given, is a rough h⁺ with h(h⁺(h(x))) = h(x)."""

    linear = False

    def __init__(self, function: Map, inverse: Map | None = None) -> None:
        self.A = function
        if inverse is not None:
            self.A_dagger = inverse


# -- spectral --------------------------------------------------------------------------------------------------
def mask(keep: Tensor) -> Spectral:
    """Inpainting, y = m ⊙ x at full size: keep (C, H, W), or what broadcasts to the sample, is 1 (or True) where x is seen."""
    keep = torch.as_tensor(keep)
    if not bool(((keep == 0) | (keep == 1)).all()):
        raise ValueError("keep has values other than 0 and 1; give a mask that is 1 (True) where pixels are known")
    keep = keep.to(torch.float64)

    def same(x: Tensor) -> Tensor:
        if x.ndim <= keep.ndim or any(k not in (1, n) for k, n in zip(keep.shape[::-1], x.shape[::-1], strict=False)):
            raise ValueError(f"keep has shape {tuple(keep.shape)}, which does not fit samples of shape {tuple(x.shape[1:])}")
        return x

    # A mask of zeros sees nothing, which is allowed.
    return Spectral(keep, V_adjoint=same, U_adjoint=same)


def average_pool(factor: int) -> Spectral:
    """Downsampling, the mean of factor × factor blocks: A Aᵀ = I/factor², and A⁺ repeats every value.

    An orthonormal basis of the block, whose first vector is constant, is V: s = 1/factor for that
    vector and 0 for the others.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"factor={factor!r} must be an integer of at least 1")
    size = factor**2
    rows = torch.arange(size, dtype=torch.float64)
    # The cosine transform of the block: orthonormal, the first row constant.
    basis = torch.cos(math.pi / size * (rows + 0.5) * rows[:, None]) * math.sqrt(2 / size)
    basis[0] = 1 / factor

    def to_blocks(x: Tensor) -> Tensor:
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(f"factor={factor} does not divide the picture's size {tuple(x.shape[-2:])}")
        b, c, h, w = x.shape
        blocks = nnf.pixel_unshuffle(x, factor).reshape(b, c, size, h // factor, w // factor)
        return torch.einsum("km,bcmhw->bckhw", basis.to(x), blocks)

    def from_blocks(c: Tensor) -> Tensor:
        return nnf.pixel_shuffle(torch.einsum("km,bckhw->bcmhw", basis.to(c), c).flatten(1, 2), factor)

    s = torch.zeros(size, 1, 1, dtype=torch.float64)
    s[0] = 1 / factor
    first = _first_of(size)
    return Spectral(s, from_blocks, to_blocks, lambda c: c[:, :, 0], first)


def _first_of(size: int) -> Map:
    """y as the first of `size` coefficients, the others 0."""
    return lambda y: nnf.pad(y[:, :, None], (0, 0, 0, 0, 0, size - 1))


def blur(kernel: Tensor, shape: Sequence[int], threshold: float = 0.03) -> Spectral:
    """Circular convolution, diagonal under the Fourier transform: A = F⁻¹ k̂ F, s = |k̂|, U = F⁻¹ times the phase of k̂.

    kernel (h, w), its centre at (h // 2, w // 2); shape: of a sample, ends in (H, W). Frequencies with
    |k̂| ≤ threshold · max |k̂| are taken for lost (A itself is without them), so that noise is not blown up.
    The coefficients are those of a real picture at the ⌊W/2⌋ + 1 frequencies that tell the others, their conjugates.
    """
    kernel = float64(kernel)
    high, wide = int(shape[-2]), int(shape[-1])
    if kernel.ndim != 2 or kernel.shape[0] > high or kernel.shape[1] > wide:
        raise ValueError(
            f"kernel has shape {tuple(kernel.shape)}; it must be (h, w), no larger than the picture {(high, wide)}"
        )
    padded = nnf.pad(kernel, (0, wide - kernel.shape[1], 0, high - kernel.shape[0]))
    padded = padded.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
    transfer = torch.fft.rfft2(padded)
    s = transfer.abs()
    phase = torch.where(s > 0, transfer / s.clamp_min(1e-300), 1.0)

    def to_frequency(x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho")

    def from_frequency(c: Tensor) -> Tensor:
        return torch.fft.irfft2(c, s=(high, wide), norm="ortho")

    def turn(c: Tensor, by: Tensor) -> Tensor:
        return c * by.to(c.device, c.dtype)

    return Spectral(
        torch.where(s > threshold * s.max(), s, 0.0),
        from_frequency,
        to_frequency,
        lambda c: from_frequency(turn(c, phase)),
        lambda y: turn(to_frequency(y), phase.conj()),
    )


def separable(rows: Tensor, columns: Tensor, threshold: float = 0.03) -> Spectral:
    """y = R x Cᵀ on pictures, with R (m, H) and C (n, W) any matrices: blur with any border, bicubic resizing, crops.

    With R = U₁ S₁ V₁ᵀ and C = U₂ S₂ V₂ᵀ:  V = V₁ ⊗ V₂, U = U₁ ⊗ U₂, s = s₁ s₂ᵀ. threshold as in `blur`.
    """
    u1, s1, v1 = torch.linalg.svd(float64(rows), full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(float64(columns), full_matrices=False)
    s = s1[:, None] * s2

    def both(left: Tensor, right: Tensor) -> Map:
        return lambda x: left.to(x) @ x @ right.to(x)

    kept = torch.where(s > threshold * s.max(), s, 0.0)
    return Spectral(kept, both(v1.T, v2), both(v1, v2.T), both(u1, u2.T), both(u1.T, u2))


def separable_blur(kernel: Tensor, shape: Sequence[int], threshold: float = 0.03) -> Spectral:
    """Convolution with kernel ⊗ kernel (odd length), zeros beyond the border; shape ends in (H, W)."""
    kernel = float64(kernel)
    if kernel.ndim != 1 or len(kernel) % 2 == 0:
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}; it must be one-dimensional with an odd length")

    def band(n: int) -> Tensor:
        reach = len(kernel) // 2
        away = torch.arange(n) - torch.arange(n)[:, None] + reach
        return torch.where((away >= 0) & (away < len(kernel)), kernel.flip(0)[away.clamp(0, len(kernel) - 1)], 0.0)

    return separable(band(int(shape[-2])), band(int(shape[-1])), threshold)


def dense(matrix: Tensor, shape: Sequence[int]) -> Spectral:
    """y = M x with x flattened: matrix (m, n), shape of a sample with n values; y is (B, m)."""
    matrix = float64(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != math.prod(shape):
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}; samples of shape {tuple(shape)} need {math.prod(shape)} columns"
        )
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return Spectral(
        s,
        lambda c: (c @ v.to(c)).reshape(len(c), *shape),
        lambda x: x.flatten(1) @ v.T.to(x),
        lambda c: c @ u.T.to(c),
        lambda y: y @ u.to(y),
    )


# -- by function -------------------------------------------------------------------------------------------------
def phase_retrieval(oversample: int = 2) -> Nonlinear:
    """y = |F x|, x padded with zeros to `oversample` times its size, F orthonormal. Not linear: only for gradient methods.

    The sign and the position of x are lost, so run several samples and keep the smallest residual.
    """
    if isinstance(oversample, bool) or not isinstance(oversample, int) or oversample < 1:
        raise ValueError(f"oversample={oversample!r} must be an integer of at least 1")

    def magnitude(x: Tensor) -> Tensor:
        high, wide = x.shape[-2:]
        padded = nnf.pad(x, (0, (oversample - 1) * wide, 0, (oversample - 1) * high))
        z = torch.fft.fft2(padded, norm="ortho")
        # |z| has no derivative at 0; the floor keeps its gradient finite.
        return (z.real**2 + z.imag**2 + 1e-20).sqrt()

    return Nonlinear(magnitude)
