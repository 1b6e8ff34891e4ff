"""One training step as a function of (weights, seed, image counter): the batch, the loss, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from . import ema, order, power_ema
from .batch import Batch
from .config import TrainConfig, learning_rate
from .objective import Objective
from .parallel import World, whole
from .progress import Event
from .uncertainty import Uncertainty

PATIENCE = 100  # non-finite steps in a row before a run gives up
FIRST_SCALE = 2.0**16  # of a float16 loss
GROW = 2000  # finite steps after which that scale doubles


@dataclass
class Counters:
    """What changes from step to step, besides weights and moments; all of it but `losses` is in a checkpoint."""

    images: int = 0
    skipped: int = 0
    in_a_row: int = 0
    scale: float = 1.0  # of a float16 loss
    grown: int = 0  # finite steps since the scale changed
    losses: list[list[float]] = field(default_factory=list)  # of each step: the sum, and every part


@dataclass
class Run:
    """Everything a step works on. `averages`: the model's average "ema", and power-function ones by name."""

    model: Denoiser
    averages: dict[str, Denoiser]
    optimizer: torch.optim.Optimizer
    loss: nn.Module
    parts: tuple[str, ...]  # of the loss
    learned: nn.Module  # what is trained besides the network
    draw: Callable[[int], Batch]
    config: TrainConfig
    counters: Counters
    world: World
    device: torch.device


class Loss(nn.Module):
    """The objective as a module, so that DistributedDataParallel can watch its gradients.

    learned: what is trained besides the network and never sampled with: learned weights of the parts, and those auxiliary
    losses that are modules.
    """

    def __init__(self, model: Denoiser, objective: Objective, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.objective, self.parts = model, objective, parts
        losses = {name: a.loss for name, a in objective.auxiliary.items() if isinstance(a.loss, nn.Module)}
        self.learned = nn.ModuleDict({"losses": nn.ModuleDict(losses)} if losses else {})
        self.uncertainty = Uncertainty(parts, objective.uncertainty) if objective.uncertainty != "none" else None
        if self.uncertainty is not None:
            self.learned["uncertainty"] = self.uncertainty

    def forward(self, batch: Batch) -> Tensor:
        """(L, the sum without learned weights, and every part of it); only L has gradients."""
        x0, noise, t, cond, targets, present, twice = batch
        loss, details = self.objective.loss(
            self.model, x0, noise, t, cond, targets=targets, present=present, twice=twice, uncertainty=self.uncertainty
        )
        parts = [details["parts"][name].to(loss.dtype) for name in self.parts]
        return torch.stack([loss, torch.stack(parts).sum() if len(parts) > 1 or self.uncertainty else loss.detach(), *parts])


def step(run: Run, stop: bool = False) -> tuple[Event, bool]:
    """One optimiser step on images n … n + B − 1; (event, does any process want to stop?).

    RuntimeError after `PATIENCE` non-finite steps in a row.
    """
    n, config, counters, model = run.counters.images, run.config, run.counters, run.model
    torch.manual_seed(order.network_seed(config.seed, n) + run.world.rank)  # the network's own dropout
    batch = run.draw(n).to(run.device)
    rate = learning_rate(config, n)
    for group in run.optimizer.param_groups:
        group["lr"] = rate

    run.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(2 + len(run.parts), device=run.device)
    for i, part in enumerate(batch.parts(config.accumulate)):
        with _gathered_later(run.loss, model, i < config.accumulate - 1), _autocast(config, run.device):
            found = run.loss(part) / config.accumulate
            (found[0] * counters.scale if counters.scale != 1 else found[0]).backward()
        total = total + found.detach().float()
    if config.strategy == "fsdp":
        run.world.mean_gradients(run.learned)  # which are whole everywhere; ddp has seen to it
    if counters.scale != 1:
        for parameter in (*model.parameters(), *run.learned.parameters()):
            if parameter.grad is not None:
                parameter.grad.div_(counters.scale)
    # Two norms: what is learned besides does not shorten the network's step.
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), config.clip))
    others = list(run.learned.parameters())
    beside = nn.utils.clip_grad_norm_(others, config.clip) if others else norm
    stops = torch.tensor([float(stop)], device=run.device)
    seen = run.world.mean(torch.cat([total, stops]))

    counters.images += config.batch
    event: Event = {"step": counters.images // config.batch, "images": counters.images, "lr": rate}
    if not (bool(torch.isfinite(seen[0])) and bool(torch.isfinite(norm)) and bool(torch.isfinite(beside))):
        _skip(counters, rate)
        return event | {"skipped": counters.skipped}, bool(seen[-1] > 0)
    counters.in_a_row = 0
    counters.grown += 1
    if config.precision == "float16" and counters.grown >= GROW:
        counters.scale, counters.grown = counters.scale * 2, 0
    run.optimizer.step()
    _average(run)
    counters.losses.append(seen[1:-1].tolist())
    return event | {"grad_norm": float(norm), "skipped": counters.skipped}, bool(seen[-1] > 0)


def _skip(counters: Counters, rate: float) -> None:
    counters.skipped += 1
    if counters.scale > 1:  # float16 overflowed: the usual cause, and cured by a smaller scale
        counters.scale, counters.grown = counters.scale / 2, 0
        return
    counters.in_a_row += 1
    if counters.in_a_row >= PATIENCE:
        raise RuntimeError(
            f"{PATIENCE} steps in a row were not finite (until image {counters.images}, lr {rate:.2g}); "
            "lower lr, or look for extreme values in the data; the last checkpoint is untouched"
        )


def _average(run: Run) -> None:
    """Moves every average towards the model."""
    config, images = run.config, run.counters.images
    for name, average in run.averages.items():
        if name != "ema":
            decay = power_ema.decay(images, config.batch, float(name.removeprefix("ema-")))
        elif config.ema_half_life:
            decay = ema.half_life(images, config.batch, config.ema_half_life)
        else:
            decay = ema.fixed(config.ema, images // config.batch)
        ema.update(average, run.model, decay)


def _autocast(config: TrainConfig, device: torch.device) -> Any:
    kinds: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    kind = kinds.get(config.precision) or (torch.bfloat16 if config.precision == "auto" and device.type == "cuda" else None)
    return torch.autocast(device.type, kind) if kind else nullcontext()


@contextmanager
def _gathered_later(loss: nn.Module, model: Denoiser, later: bool) -> Iterator[None]:
    """Keeps gradients to this process until the last part of a batch."""
    network = model.network
    if hasattr(network, "set_requires_gradient_sync"):  # fsdp
        network.set_requires_gradient_sync(not later)  # type: ignore[operator,union-attr]
    with loss.no_sync() if later and hasattr(loss, "no_sync") else nullcontext():  # type: ignore[operator]
        yield
