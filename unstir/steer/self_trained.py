"""A denoiser without training data: an untrained network that learns the one state it is asked about, call by call.

With a generator g(θ) of samples (it has no input: its noise is fixed within it), every call D(x, t) makes `steps_per_row`
optimiser steps on

    L_t(θ) = mean |α g(θ) − x|²/(α² + σ²) + penalty(g(θ))

and returns the running average of what g gave, a ← ema · a + (1 − ema) g(θ). θ and the optimiser live through the whole
run. A picture is learned before its noise, and x loses noise from row to row, so D stays ahead of x, as a denoiser must; no
measurement is in L: it enters by the steering of the rows alone. The weight is VP's own (α² + σ² = 1), on other processes the
one of equal σ/α: the same λ grid gives the same run on every process, up to the units of x.
(DDS2M: Self-Supervised Denoising Diffusion Spatio-Spectral Model for Hyperspectral Image Restoration, 2023: the evidence lower
bound of a diffusion model with g in the place of its denoiser, one step a row, Adam, ema 0.98.)

It runs with every plan, since it sees times and not coefficients. Of D(x, t) as a function of x it knows nothing: it has no
derivative, so methods that ask for one ("dps", "pigdm") refuse it; and a multistep plan combines outputs of different θ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._calls import count_call
from ..plan.hooks import Context
from ..process import Process

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class SelfTrained(nn.Module):
    """model(x, t) → D (1, *) of a state x (1, *): a denoiser that trains on every call, see the module.

    network: a module, network(**cond) → (1, *): a cube, a picture, a sound in the units of the data.
    steps_per_row: optimiser steps of a call; 0 leaves θ alone.   ema: of the outputs, 0 returns the last one itself.
    rate: of Adam, or give `optimizer`, a function of the parameters.
    clip: (low, high) of the average.   penalty: a function of g(θ) (1, *) → number, such as a total variation.

    A run (`unstir.sample`) begins with the θ that the network had when it was given here, so runs repeat each other; the
    tail of a split plan goes on where its head ended, and so do calls by hand, until `reset`. `updates` counts the steps,
    `loss` is the last L. Outputs are those before their step, as published, which saves a forward call a row.
    The network stays in training mode. One network learns one sample: batches are refused.

    Raises ValueError for a batch, an anchored process, a network without parameters to train or with outputs of another
    shape, and a loss that is not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        *,
        steps_per_row: int = 1,
        ema: float = 0.98,
        rate: float = 5e-4,
        optimizer: Optimizer | None = None,
        clip: tuple[float, float] | None = None,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module) or not any(p.requires_grad for p in network.parameters()):
            raise ValueError("network must be a torch.nn.Module with parameters to train (requires_grad)")
        if process.anchored:
            raise ValueError(f"process={process!r} is anchored; g learns states α x0 + σ z only, such as those of process.VP()")
        if isinstance(steps_per_row, bool) or not isinstance(steps_per_row, int) or steps_per_row < 0:
            raise ValueError(f"steps_per_row={steps_per_row!r} must be an integer of at least 0")
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema} must lie in [0, 1)")
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rate={rate} must be finite and > 0")
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip={clip} must be (low, high) with low < high")
        self.network, self.process, self.shape = network, process, getattr(network, "shape", None)
        self.steps_per_row, self.ema, self.clip, self.penalty = steps_per_row, ema, clip, penalty
        self._make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=rate, fused=True))
        self._first = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.reset()

    def reset(self) -> None:
        """The θ of the beginning, a new optimiser, no average."""
        self.network.load_state_dict(self._first)
        self.optimizer = self._make([p for p in self.network.parameters() if p.requires_grad])
        self.average: Tensor | None = None
        self.loss: float | None = None
        self.updates = 0
        self._keys: list[int] = []  # of the sample that is learned

    def forward(self, x: Tensor, t: Tensor | float, ctx: Context | None = None, **cond: Any) -> Tensor:
        if len(x) != 1:
            raise ValueError(f"x is a batch of {len(x)}; one network learns one sample: run them one by one, a model each")
        if ctx is not None:
            self._begin(ctx)
        self.network.train()
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        # Also for callers in inference mode, whose tensors autograd may not keep.
        with torch.inference_mode(False):
            seen = x.detach().clone()
            for _ in range(self.steps_per_row):
                self._learn(seen, alpha, sigma, cond)
            if self.steps_per_row == 0:
                with torch.no_grad():
                    self._keep(self._made(seen, cond))
            assert self.average is not None
            return self.average.to(x.dtype)

    def _begin(self, ctx: Context) -> None:
        """A run's first call starts anew, unless it is the tail of another; no later one may find that others did so since."""
        if self not in ctx.run.memory:
            ctx.run.memory[self] = True
            if getattr(ctx.plan, "offset", 0) == 0:
                self.reset()
            self._keys = list(ctx.run.keys)
        elif list(ctx.run.keys) != self._keys:
            raise ValueError(
                "the model has begun to learn another sample; one network learns one: give each run a model of its own"
            )

    def _learn(self, x: Tensor, alpha: float, sigma: float, cond: dict[str, Any]) -> None:
        """One step on L_t."""
        with torch.enable_grad():
            made = self._made(x, cond)
            loss = (alpha * made - x).square().mean() / (alpha**2 + sigma**2)
            if self.penalty is not None:
                loss = loss + self.penalty(made)
            self.optimizer.zero_grad()
            loss.backward()
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise ValueError(f"the loss became {self.loss} after {self.updates} steps; take a smaller rate")
        self.optimizer.step()
        self.updates += 1
        self._keep(made.detach())

    def _made(self, x: Tensor, cond: dict[str, Any]) -> Tensor:
        made = self.network(**cond)
        if made.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(made.shape)} for a state of shape {tuple(x.shape)}")
        count_call(made)
        return made

    def _keep(self, made: Tensor) -> None:
        """a ← ema · a + (1 − ema) g, clipped; the first output itself at first."""
        a = made if self.average is None else self.ema * self.average + (1 - self.ema) * made
        self.average = a if self.clip is None else a.clamp(*self.clip)
