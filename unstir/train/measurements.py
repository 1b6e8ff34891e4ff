"""Learning what cannot be measured: signals from observations of them, through a known forward model.

Of an unknown signal S there are observations O = forward(S, φ): at hand (context), one that is stirred (target), and further
ones (novel). The network's Ŝ = network(x_t, t, φ^t, context) has to explain both:

    L = E[ w(λ) ( w_t ‖forward(Ŝ, φ^t) − O^t‖² + w_n Σ_n ‖forward(Ŝ, φ^n) − O^n‖² ) ],     x_t = α O^t + σ z

in means over the values of an observation. The first term alone makes forward(Ŝ, φ^t) the exact denoiser of the target; what
the target does not see of S gets its gradient from the second. No term contains S. Where the law of all observations
determines the law of S, samples of observations are, with their Ŝ, samples of p(S | context).
(Diffusion with Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision, 2023.)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._random import mix
from ..denoiser import ForwardModelDenoiser
from ..process.base import expand, float64
from . import order
from .descend import descend
from .levels import Levels, stratified
from .objective import Objective, drop
from .progress import Listener
from .scenes import Views, Visits
from .weights import Weight

_VIEWS = 30  # a stream, apart from those of `order` and `fields`
_LOOKED_AT = 512  # visits at most, before training, to find what no φ sees


@dataclass(frozen=True)
class MeasurementLoss:
    """L of the module.

    target, novel: w_t and w_n.   weight, levels: w(λ), "raw" being 1, and the level density, as in `Objective`.
    cond_dropout: share of samples whose context is replaced by zeros.
    """

    target: float = 1.0
    novel: float = 1.0
    weight: str | Weight = "raw"
    levels: str | Levels = "uniform"
    cond_dropout: float = 0.0

    @property
    def objective(self) -> Objective:
        """Weight, levels and dropout."""
        return Objective(self.weight, self.levels, self.cond_dropout)

    def __post_init__(self) -> None:
        _ = self.objective  # which checks what it is given
        for name in ("target", "novel"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and at least 0")
        if self.target == 0:
            raise ValueError("target=0 leaves nothing that makes D a denoiser; it must be > 0")

    def loss(
        self, model: Any, x0: Tensor, noise: Tensor, t: Tensor, cond: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(L, details): the mean, and per sample the weighted loss and ‖forward(Ŝ, φ^t) − O^t‖².

        x0: O^t, and noise: (B, *observation); t: (B,); cond: phi, what the network takes, and novel, phi_novel (B, M, …).
        """
        if not isinstance(model, ForwardModelDenoiser):
            raise TypeError(f"model is {type(model).__name__}; measurements are explained by a ForwardModelDenoiser")
        if noise.shape != x0.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; the target has {tuple(x0.shape)}")
        cond = dict(cond or {})
        novel, phi_novel = cond.pop("novel", None), cond.pop("phi_novel", None)
        if self.novel and (novel is None or phi_novel is None):
            raise ValueError(f"novel={self.novel} needs further observations: cond with novel and phi_novel; or novel=0")
        anchor = cond.get("anchor") if model.sees_anchor else cond.pop("anchor", None)
        t = float64(t).to(x0.device)
        numbers = model.decoder(t)
        x = model.process.stir(x0, t, noise, anchor)
        scale = None if numbers.scale is None else expand(numbers.scale, x)
        data, (found,) = model.call(x, numbers.time.to(x.dtype), scale, cond)
        square = _square(data, x0)
        each = self.target * square
        for m in range(novel.shape[1] if self.novel and novel is not None else 0):
            seen = model.network.measure(found["signal"], phi_novel[:, m], x0.shape)  # type: ignore[index]
            each = each + self.novel * _square(seen, novel[:, m])  # type: ignore[index]
        each = self.objective.factor(model, t, numbers.n.expand(len(x0))).to(each.dtype) * each
        return each.mean(), {"loss": each.detach(), "data_error": square.detach().double()}


def _square(found: Tensor, truth: Tensor) -> Tensor:
    """Mean square per sample, in float32 at least."""
    return (found.to(truth) - truth).square().flatten(1).mean(1)


def fit_measurements(
    model: ForwardModelDenoiser,
    scenes: Visits,
    loss: MeasurementLoss | None = None,
    *,
    steps: int = 4000,
    batch: int = 128,
    lr: float = 2e-3,
    decay: float = 0.999,
    clip: float = 5.0,
    seed: int = 0,
    progress: Listener | None = None,
) -> ForwardModelDenoiser:
    """The model with averaged weights, trained on measurements alone; `model` itself is trained in place.

    The network is given phi, context (B, K, …) and phi_context (B, K, …). lr falls to 0 along half a cosine (AdamW).
    decay: of the weight average, per step.   clip: largest norm of the gradient.

    Everything random is a function of (seed, number of the visit). Warns of signals that the observations do not determine,
    and of contexts that are the target. Raises ValueError for steps or batch < 1, for an anchored process, and what
    `ForwardModelDenoiser` raises.
    """
    for name, value in {"steps": steps, "batch": batch}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if model.process.anchored:
        raise ValueError(f"{model.process!r} needs an anchor for every target, which scenes do not have; use a process without")
    loss = loss or MeasurementLoss()
    check_views(model, scenes, loss, seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def one(step: int) -> Tensor:
        visits = range(step * batch, (step + 1) * batch)
        seen = Views(*(part.to(device) for part in _visits(scenes, seed, visits)))
        noise = order.noise(seed, visits, tuple(seen.target.shape[1:]), model.process).to(seen.target)
        t = loss.objective.times(model, stratified(batch, order.unit(seed, visits[0])))
        cond = {"context": seen.context}
        if loss.cond_dropout:
            cond = drop(cond, {"context": 0.0}, order.dropped(seed, visits, loss.cond_dropout))
        cond |= {"phi": seen.phi, "phi_context": seen.phi_context, "novel": seen.novel, "phi_novel": seen.phi_novel}
        return loss.loss(model, seen.target, noise, t, cond)[0]

    return descend(model, one, steps=steps, lr=lr, decay=decay, clip=clip, progress=progress)


def _visits(scenes: Visits, seed: int, visits: range) -> Views:
    rows = order.rows(len(scenes), seed, visits)
    return scenes.views(rows, [mix(seed, _VIEWS, n) for n in visits])


# -- what can be known before training --------------------------------------------------------------------------------
def covered(model: ForwardModelDenoiser, signal: Tensor, phi: Tensor, shape: torch.Size) -> Tensor:
    """(B, *signal) booleans: does forward(S, φ), of this shape, depend on this entry of S, at S = `signal` (B, *signal)?

    From the gradient of ⟨r, forward(S, φ)⟩ with a random r.
    """
    with torch.enable_grad():
        signal = signal.detach().requires_grad_(True)
        seen = model.network.measure(signal, phi, shape)
        r = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(seen)
        (slope,) = torch.autograd.grad((r * seen).sum(), signal, allow_unused=True)
    return torch.zeros_like(signal, dtype=torch.bool) if slope is None else slope != 0


def check_views(model: ForwardModelDenoiser, scenes: Visits, loss: MeasurementLoss, seed: int = 0) -> None:
    """Warnings before any training: contexts that are the target, entries of the signal that no observation reaches."""
    size = min(64, len(scenes))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    reached: Tensor | None = None
    for start in range(0, _LOOKED_AT, size):
        seen = Views(*(part.to(device) for part in _visits(scenes, seed, range(start, start + size))))
        if loss.novel and not seen.novel.shape[1]:
            raise ValueError(f"loss.novel={loss.novel} needs novel observations, of which the scenes' visits have none")
        with torch.no_grad():
            shown = {"phi": seen.phi, "context": seen.context, "phi_context": seen.phi_context}
            found: dict[str, Tensor] = model.outputs(torch.zeros_like(seen.target), 0.5, **shown)[1][0]
        signal = torch.randn(found["signal"].shape, generator=torch.Generator().manual_seed(1)).to(found["signal"])
        phis = [seen.phi, *(seen.phi_novel.unbind(1) if loss.novel else ())]
        masks = torch.stack([covered(model, signal, phi, seen.target.shape) for phi in phis])
        if start == 0:
            _warn_of_views(seen, loss, float(masks[0].float().mean()))
        now = masks.flatten(0, 1).any(0)
        reached = now if reached is None else reached | now
        if bool(reached.all()):
            return
    assert reached is not None
    warnings.warn(
        f"{1 - float(reached.float().mean()):.0%} of the signal's entries are seen by none of {_LOOKED_AT} visits: "
        "nothing is learned of them",
        stacklevel=3,
    )


def _warn_of_views(seen: Views, loss: MeasurementLoss, share: float) -> None:
    """share: of a signal that its target sees, on average."""

    def same(many: Tensor, one: Tensor) -> Tensor:
        return (many == one[:, None]).reshape(*many.shape[:2], -1).all(2)

    if bool((same(seen.context, seen.target) & same(seen.phi_context, seen.phi)).any(1).all()):
        warnings.warn("every context contains its target: the network may copy it and learn nothing else", stacklevel=4)
    if not loss.novel and share < 1:
        warnings.warn(
            f"novel=0: {1 - share:.0%} of a signal's entries, those that its target does not see, are left to chance",
            stacklevel=4,
        )
