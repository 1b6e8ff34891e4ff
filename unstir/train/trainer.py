"""`fit`: the training loop. Every step is a function of (weights, seed, image counter) alone."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..denoiser import Denoiser
from . import ema, order
from .checkpoint import checkpoints, read_state, restore, save, tidy
from .config import TrainConfig, device_of, difference, learning_rate
from .levels import stratified
from .objective import Objective, data_error, drop
from .progress import Event, Listener, Log

PATIENCE = 100  # non-finite steps in a row before a run gives up
_VALIDATION = 256  # samples
_BINS = [float(lam) for lam in range(-4, 6)]  # λ of the validation


@dataclass(frozen=True)
class Result:
    """How a run ended. `model` is the denoiser with the averaged weights."""

    model: Denoiser
    folder: Path
    images: int
    steps: int
    loss: float
    validation: dict[str, float]
    skipped: int
    interrupted: bool
    seconds: float


@dataclass
class _Counters:
    """What changes from step to step, besides weights and moments."""

    images: int = 0
    skipped: int = 0
    in_a_row: int = 0
    losses: list[float] = field(default_factory=list)


def fit(
    model: Denoiser,
    dataset: Dataset,
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    validation: Dataset | None = None,
    objective: Objective | None = None,
    resume: bool | None = None,
    override: bool | None = None,
    progress: Listener | None = None,
) -> Result:
    """Trains `model` in place on `dataset`, and returns it with averaged weights.

    folder, resume, override: instead of config.out, config.resume, config.override.
    validation: samples for the validation error (default: those of `dataset`).
    objective: instead of the one that `config` names (for weights and levels of your own).
    progress: called after every step with {"step", "images", …}.

    The classes are given to the network under the first name in model.meta["null"], which also
    says what replaces a dropped class; without it, training is unconditional.

    The run can be stopped at any moment. Ctrl-C (or SIGTERM) finishes the step, writes a checkpoint
    and returns with `interrupted`; after `kill -9`, `resume` goes on from the last checkpoint. On a
    CPU a resumed run ends with the same bits as one that was never stopped.

    Raises ValueError if the folder holds a run and resume is off, if options or data changed since
    (unless override), or if data and model do not fit; RuntimeError after 100 non-finite steps in a row.
    """
    config.check()
    folder = Path(config.out if folder is None else folder)
    resume = config.resume if resume is None else resume
    override = config.override if override is None else override
    objective = objective or config.objective()
    condition = _condition(model, dataset)
    device = device_of(config.device)
    network = model.network
    if not isinstance(network, nn.Module) or not any(p.requires_grad for p in network.parameters()):
        raise TypeError(f"model.network is {type(network).__name__}; training needs an nn.Module with parameters")

    found = checkpoints(folder)
    if found and not resume:
        raise ValueError(f"out={str(folder)!r} already holds a run; pass resume=True (--resume) or another folder")
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config.lr,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    identity = config.identity() | {"dataset": dataset.fingerprint()}
    counters = _Counters()
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    if found:
        changed = difference(read_state(found[-1]).get("identity", {}), identity)
        if changed and not override:
            raise ValueError(f"the run in {folder} was started otherwise: {changed}; pass override=True (--override) to go on")
        state = restore(found[-1], network, _network(average), optimizer)
        counters = _Counters(state["images"], state["skipped"], state["in_a_row"])

    def checkpoint() -> dict[str, float]:
        state = {"images": counters.images, "skipped": counters.skipped, "in_a_row": counters.in_a_row, "identity": identity}
        save(folder, network, _network(average), optimizer, state, config.keep)
        errors = validate(average, validation or dataset, config.seed)
        log({"images": counters.images, "validation": errors})
        return errors

    started, saved, errors = time.perf_counter(), counters.images if found else -1, {}
    total = config.steps * config.batch
    log = Log(folder / "log.jsonl", counters.images)
    try:
        with _interruptible() as stop, torch.random.fork_rng():
            while counters.images < total and not stop.is_set():
                event = _step(model, average, optimizer, dataset, objective, condition, config, counters)
                if event["step"] % config.log_every == 0 or counters.images >= total:
                    event["loss"] = sum(counters.losses) / max(1, len(counters.losses))
                    event["seconds"] = round(time.perf_counter() - started, 3)
                    log(event)
                    counters.losses.clear()
                if progress is not None:
                    progress(event)
                if event["step"] % config.checkpoint_every == 0:
                    errors, saved = checkpoint(), counters.images
            if saved != counters.images:
                errors = checkpoint()
            elif not errors:  # resumed at the very end
                errors = validate(average, validation or dataset, config.seed)
            interrupted = stop.is_set() and counters.images < total
    finally:
        log.close()
    loss = objective_error(average, validation or dataset, objective, config.seed)
    seconds = time.perf_counter() - started
    average.meta = dict(average.meta) | {
        "training": {
            "options": config.identity(),
            "images": counters.images,
            "validation_loss": loss,
            "validation_data_error": errors,
            "weights": "average",
            "seconds_in_last_process": round(seconds, 1),
        }
    }
    steps = counters.images // config.batch
    return Result(average, folder, counters.images, steps, loss, errors, counters.skipped, interrupted, seconds)


def _step(
    model: Denoiser,
    average: Denoiser,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    objective: Objective,
    condition: tuple[str, Any] | None,
    config: TrainConfig,
    counters: _Counters,
) -> Event:
    """One optimiser step on images n … n + B − 1."""
    n, seed, device = counters.images, config.seed, next(model.parameters()).device
    images = range(n, n + config.batch)
    torch.manual_seed(order.network_seed(seed, n))  # the network's own dropout
    x0, labels = dataset.batch(order.rows(len(dataset), seed, images))
    noise = order.noise(seed, images, dataset.shape).to(device)
    t = objective.times(model, stratified(config.batch, order.unit(seed, n)))
    cond = {}
    if condition is not None and labels is not None:
        name, null = condition
        cond = drop({name: labels.to(device)}, {name: null}, order.dropped(seed, images, objective.cond_dropout))

    rate = learning_rate(config, n)
    for group in optimizer.param_groups:
        group["lr"] = rate
    half = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss, _ = objective.loss(model, x0.to(device), noise, t, cond)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)

    counters.images += config.batch
    event: Event = {"step": counters.images // config.batch, "images": counters.images, "lr": rate}
    if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))):
        counters.skipped += 1
        counters.in_a_row += 1
        if counters.in_a_row >= PATIENCE:
            raise RuntimeError(
                f"{PATIENCE} steps in a row were not finite (until image {counters.images}, lr {rate:.2g}); "
                "lower lr, or look for extreme values in the data; the last checkpoint is untouched"
            )
        return event | {"skipped": counters.skipped}
    counters.in_a_row = 0
    optimizer.step()
    updates = counters.images // config.batch
    if config.ema_half_life:
        decay = ema.half_life(counters.images, config.batch, config.ema_half_life)
    else:
        decay = ema.fixed(config.ema, updates)
    ema.update(average, model, decay)
    counters.losses.append(float(loss.detach()))
    return event | {"grad_norm": float(norm), "skipped": counters.skipped}


@torch.no_grad()
def validate(model: Denoiser, dataset: Dataset, seed: int = 0) -> dict[str, float]:
    """e₀ = ‖D − x0‖² at fixed λ on fixed samples with fixed noise: {"-4": …, …, "5": …}, as far as the process reaches."""
    low, high = float(model.process.logsnr(1.0)), float(model.process.logsnr(0.0))
    times = {f"{lam:g}": float(model.process.time(lam)) for lam in _BINS if low < lam < high}
    x0, noise, cond = _fixed(model, dataset, seed)
    errors = {}
    for name, t in times.items():
        level = torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
        errors[name] = float(data_error(model, x0, noise, level, **cond).mean())
    return errors


@torch.no_grad()
def objective_error(model: Denoiser, dataset: Dataset, objective: Objective, seed: int = 0) -> float:
    """The objective itself on the same fixed samples and noise, at stratified levels."""
    x0, noise, cond = _fixed(model, dataset, seed)
    return float(objective.loss(model, x0, noise, objective.times(model, stratified(len(x0), 0.5)), cond)[0])


def _fixed(model: Denoiser, dataset: Dataset, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    device = next(model.parameters()).device
    count = min(_VALIDATION, len(dataset))
    x0, labels = dataset.batch(range(count))
    condition = _condition(model, dataset)
    cond = {} if condition is None or labels is None else {condition[0]: labels.to(device)}
    return x0.to(device), order.validation_noise(seed, count, dataset.shape).to(device), cond


def _condition(model: Denoiser, dataset: Dataset) -> tuple[str, Any] | None:
    """(keyword of the network, null label) if the model learns classes; checks that data and model fit."""
    if model.shape is not None and model.shape != dataset.shape:
        raise ValueError(f"data has samples of shape {dataset.shape}; the model was made for {model.shape}")
    null: dict[str, Any] = model.meta.get("null", {})
    if not null or dataset.labels is None:
        return None
    classes = model.meta.get("classes", [])
    if classes and len(dataset.classes) != len(classes):
        raise ValueError(f"data has {len(dataset.classes)} classes; the model was made for {len(classes)}")
    return next(iter(null.items()))


def _network(model: Denoiser) -> nn.Module:
    assert isinstance(model.network, nn.Module)
    return model.network


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
