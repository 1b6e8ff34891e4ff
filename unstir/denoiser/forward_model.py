"""Denoisers of what can be measured, which predict what cannot: a signal network, then a known forward model.

An unknown signal S is seen only through O = forward(S, φ): a scene in a photograph of camera φ, a map in a partial scan. The
observation is stirred, the network answers with a signal, and the forward model takes it back to an observation:

    x_t = α O + σ z,        Ŝ = network(x_t, t, φ, context),        D = forward(Ŝ, φ)

So D is an ordinary data prediction of observations whose bottleneck is a signal, and every process, plan and guidance serves
it as it is; the Ŝ of the last call is a sample of the signal.
(Diffusion with Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision, 2023.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..process import Process
from ..process.base import float64
from .denoiser import Decoder, Denoiser, accepts
from .prediction import Prediction


class Measured(nn.Module):
    """A signal network and its forward model as one network of observations: (x, time, phi=φ, …) -> (D, {"signal": Ŝ})."""

    def __init__(self, signal_net: Callable[..., Tensor], forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.signal_net, self.forward_model = signal_net, forward
        self._tells_phi = accepts(signal_net, "phi", any_keyword=True)

    def forward(self, x: Tensor, time: Tensor, phi: Tensor | None = None, **cond: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(phi, Tensor):
            raise ValueError(f"phi={phi!r} must be a tensor, the parameters of the forward model: model.bind(phi=…), or phi=…")
        phi = _shared(phi, x, "phi")
        cond = {name: _shared(value, x, name) if isinstance(value, Tensor) else value for name, value in cond.items()}
        signal = self.signal_net(x, time, phi=phi, **cond) if self._tells_phi else self.signal_net(x, time, **cond)
        if not isinstance(signal, Tensor):
            raise TypeError(f"signal_net returned {type(signal).__name__}; it must return the signal, a tensor (B, …)")
        return self.measure(signal, phi, x.shape), {"signal": signal}

    def measure(self, signal: Tensor, phi: Tensor, shape: torch.Size) -> Tensor:
        """forward(S, φ), if it is an observation of this shape and, where S has a graph, has one too."""
        seen = self.forward_model(signal, phi)
        if not isinstance(seen, Tensor) or seen.shape != shape:
            form = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise ValueError(f"forward returned {form}; it must return observations, a tensor of shape {tuple(shape)}")
        if torch.is_grad_enabled() and signal.requires_grad and not seen.requires_grad:
            raise ValueError("forward is not differentiable: its result has no graph; use torch operations on the signal")
        return seen


def _shared(value: Tensor, x: Tensor, name: str) -> Tensor:
    """A condition (B, …), or one (1, …) for the whole batch."""
    if value.ndim and len(value) == 1 < len(x):
        return value.expand(len(x), *value.shape[1:])
    if value.ndim and len(value) != len(x) and name == "phi":
        raise ValueError(f"phi is for {len(value)} observations and the state has {len(x)}; give one for all, or one for each")
    return value


class ForwardModelDenoiser(Denoiser):
    """D = forward(Ŝ, φ) with Ŝ = signal_net(x, time, phi=φ, context=…): model(x, t, phi=…, …) -> D.

    signal_net: network(x, time, **cond) -> signal (B, *signal). It is given all conditions, and φ if its signature has `phi`.
    forward: a differentiable function (signal, φ) -> observation, for signals (B, *signal) and φ (B, …), of x's shape.
    process: of the observations; the anchor of an anchored one is an observation (sees_anchor: keyword `anchor`).
    time: what the network is told of t, as in `Denoiser`.
    sigma_data: overall standard deviation of observations; then the network sees x/√(α² σ_d² + σ²), of unit variance on every
        process. None: x as it is.
    shape: of one observation.

    Conditions are keywords of the call: phi, which has to be given, and whatever signal_net takes, by custom `context` and
    `phi_context`, the observations at hand and their parameters. `bind` fixes them.

    A run hands out the signal of its last evaluation, with guidance that of the conditional branch:

        state = unstir.sample(model.bind(context=c, phi_context=k, phi=p), plan, shape=8, full=True)
        state.x, state.aux["signal"]                                    # and step.aux["signal"] of every step

    Without guidance and threshold, state.x = forward(signal, φ) at the end of a plan that leads to σ = 0.

    Raises ValueError in a call without phi, for one of another batch size, for a forward model that returns another shape or
    loses the graph; TypeError for parts that cannot be called and signals that are no tensors.
    """

    network: Measured

    def __init__(
        self,
        signal_net: Callable[..., Tensor],
        forward: Callable[[Tensor, Tensor], Tensor],
        process: Process,
        *,
        time: str | Callable[[Process, Tensor], Tensor] = "unit",
        sigma_data: float | None = None,
        sees_anchor: bool = False,
        shape: tuple[int, ...] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        for name, part in (("signal_net(x, time, …)", signal_net), ("forward(signal, phi)", forward)):
            if not callable(part):
                raise TypeError(f"{name.split('(')[0]} is {type(part).__name__}; it must be callable as {name}")
        if sees_anchor and not accepts(signal_net, "anchor", any_keyword=True):
            raise TypeError("sees_anchor=True gives the anchor to signal_net as keyword `anchor`, which its signature lacks")
        super().__init__(
            Measured(signal_net, forward), process, "data", time=time, sees_anchor=sees_anchor, shape=shape, meta=meta
        )
        self.unit = None if sigma_data is None else Prediction("edm", sigma_data)
        self.bound: dict[str, Any] = {}
        self._wants_ctx = True  # to hand out the signal

    def bind(self, **cond: Any) -> ForwardModelDenoiser:
        """This model with conditions that need not be given in a call, and may be: bind(context=…, phi=…).

        The weights are shared. A bound `context` makes its zeros the null condition, so `steer.cfg(bound, w)` works.
        """
        net = self.network
        bound = ForwardModelDenoiser(
            net.signal_net, net.forward_model, self.process, time=self.time, sees_anchor=self.sees_anchor, shape=self.shape,
            sigma_data=None if self.unit is None else self.unit.sigma_data, meta=self.meta,
        )  # fmt: skip
        bound.bound, bound.plans, bound.training = {**self.bound, **cond}, self.plans, self.training
        if isinstance(context := bound.bound.get("context"), Tensor):
            bound.meta["null"] = {"context": torch.zeros_like(context)}
        return bound

    def decoder(self, t: Tensor) -> Decoder:
        """m = 0, n = 1, and the input scale 1/√(α² σ_d² + σ²) if there is one."""
        numbers = super().decoder(t)
        if self.unit is None:
            return numbers
        t = float64(t)
        return numbers._replace(scale=self.unit.input_scale(self.process.alpha(t), self.process.sigma(t)))

    def call(self, x: Tensor, time: Tensor, scale: Any, cond: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """(D, ({"signal": Ŝ},)), with the bound conditions."""
        return super().call(x, time, scale, {**self.bound, **cond})

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Tensor:
        """D(x, t); a run is given the signal, too."""
        data, (found,) = self.outputs(x, t, ctx, **cond)
        if ctx is not None:
            ctx.give(**found)
        return data
