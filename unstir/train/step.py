"""One training step as a function of (weights, seed, image counter): the batch, the loss, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data import Dataset, Pairs
from ..denoiser import Denoiser
from . import ema, order, power_ema
from .config import TrainConfig, learning_rate
from .levels import stratified
from .objective import Objective, drop
from .parallel import World, whole
from .progress import Event

PATIENCE = 100  # non-finite steps in a row before a run gives up
FIRST_SCALE = 2.0**16  # of a float16 loss
GROW = 2000  # finite steps after which that scale doubles


class Batch(NamedTuple):
    """What the loss of some images is a function of, besides the weights."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    cond: dict[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        cond = {name: value.to(device) for name, value in self.cond.items()}
        return Batch(self.x0.to(device), self.noise.to(device), self.t.to(device), cond)

    def parts(self, count: int) -> Iterator[Batch]:
        """`count` equal parts, in order."""
        size = len(self.x0) // count
        for i in range(0, len(self.x0), size):
            cond = {name: value[i : i + size] for name, value in self.cond.items()}
            yield Batch(self.x0[i : i + size], self.noise[i : i + size], self.t[i : i + size], cond)


@dataclass
class Counters:
    """What changes from step to step, besides weights and moments; all of it but `losses` is in a checkpoint."""

    images: int = 0
    skipped: int = 0
    in_a_row: int = 0
    scale: float = 1.0  # of a float16 loss
    grown: int = 0  # finite steps since the scale changed
    losses: list[float] = field(default_factory=list)


@dataclass
class Run:
    """Everything a step works on. `averages`: the model's average "ema", and power-function ones by name."""

    model: Denoiser
    averages: dict[str, Denoiser]
    optimizer: torch.optim.Optimizer
    loss: nn.Module
    draw: Callable[[int], Batch]
    config: TrainConfig
    counters: Counters
    world: World
    device: torch.device


class Loss(nn.Module):
    """The objective as a module, so that DistributedDataParallel can watch its gradients."""

    def __init__(self, model: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.loss(self.model, batch.x0, batch.noise, batch.t, batch.cond)[0]


def drawer(
    model: Denoiser,
    dataset: Dataset,
    objective: Objective,
    config: TrainConfig,
    condition: tuple[str, Any] | None,
    world: World,
) -> Callable[[int], Batch]:
    """n -> this process's part of the batch of images n … n + B − 1."""

    def draw(n: int) -> Batch:
        images, seed = range(n, n + config.batch), config.seed
        part = world.part(images)
        own = images[part]
        rows = order.rows(len(dataset), seed, images if config.pairing != "none" else own)
        x0, labels = dataset.batch(rows)
        noise = order.noise(seed, images if config.pairing != "none" else own, dataset.shape, model.process)
        if config.pairing != "none":
            # A pairing is of the whole batch, whoever computes which part of it.
            noise = paired(x0, noise)
            x0, noise, labels = x0[part], noise[part], None if labels is None else labels[part]
        if config.flip:
            mirrored = order.flipped(seed, own).reshape(-1, *[1] * (x0.ndim - 1))
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        t = objective.times(model, stratified(config.batch, order.unit(seed, n)))[part]
        cond = {}
        if condition is not None and labels is not None:
            name, null = condition
            cond = drop({name: labels}, {name: null}, order.dropped(seed, own, objective.cond_dropout))
        if isinstance(dataset, Pairs):
            y = dataset.anchors(rows)
            cond["anchor"] = torch.where(mirrored, y.flip(-1), y) if config.flip else y
        return Batch(x0, noise, t, cond)

    return draw


def paired(x0: Tensor, noise: Tensor) -> Tensor:
    """The noises in the order that minimises Σ ‖x0_i − z_i‖² over the batch; the same order is the target's.

    (Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, 2024.)
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x0.flatten(1).double(), noise.flatten(1).double()) ** 2
    return noise[torch.as_tensor(linear_sum_assignment(cost.numpy())[1])]


@contextmanager
def ahead(draw: Callable[[int], Batch], config: TrainConfig) -> Iterator[Callable[[int], Batch]]:
    """`draw`, with the next batches made by `config.workers` threads while the network works; 0: made when asked for.

    A batch is a function of its number, so nothing depends on the threads.
    """
    if not config.workers:
        yield draw
        return
    made: dict[int, Future[Batch]] = {}
    last = config.steps * config.batch
    with ThreadPoolExecutor(config.workers, "unstir-data") as pool:

        def take(n: int) -> Batch:
            for later in range(n, min(last, n + (config.workers + 1) * config.batch), config.batch):
                if later not in made:
                    made[later] = pool.submit(draw, later)
            return made.pop(n).result()

        try:
            yield take
        finally:
            for future in made.values():
                future.cancel()


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
    total = torch.zeros((), device=run.device)
    for i, part in enumerate(batch.parts(config.accumulate)):
        with _gathered_later(run.loss, model, i < config.accumulate - 1), _autocast(config, run.device):
            loss = run.loss(part) / config.accumulate
            (loss * counters.scale if counters.scale != 1 else loss).backward()
        total = total + loss.detach().float()
    if counters.scale != 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(counters.scale)
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), config.clip))
    seen = run.world.mean(torch.stack([total, torch.tensor(float(stop), device=run.device)]))

    counters.images += config.batch
    event: Event = {"step": counters.images // config.batch, "images": counters.images, "lr": rate}
    if not (bool(torch.isfinite(seen[0])) and bool(torch.isfinite(norm))):
        _skip(counters, rate)
        return event | {"skipped": counters.skipped}, bool(seen[1] > 0)
    counters.in_a_row = 0
    counters.grown += 1
    if config.precision == "float16" and counters.grown >= GROW:
        counters.scale, counters.grown = counters.scale * 2, 0
    run.optimizer.step()
    _average(run)
    counters.losses.append(float(seen[0]))
    return event | {"grad_norm": float(norm), "skipped": counters.skipped}, bool(seen[1] > 0)


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
