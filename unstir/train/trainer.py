"""`fit`: the training loop. Every step is a function of (weights, seed, image counter) alone (`step`)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Buckets, Dataset
from ..denoiser import Denoiser
from .batch import ahead, drawer
from .checkpoint import check_unchanged, earlier, read_state, restore, save, snapshot, tidy
from .config import TrainConfig, device_of, difference
from .interrupt import interruptible
from .objective import Objective
from .parallel import World, gather, share, world
from .progress import Event, Listener, Log, adapter
from .step import FIRST_SCALE, Counters, Loss, Run, step
from .validate import check_data, check_shapes, check_validation, objective_error, validate


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


def fit(
    model: Denoiser,
    dataset: Dataset | Buckets,
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    validation: Dataset | Buckets | None = None,
    objective: Objective | None = None,
    auxiliary: Mapping[str, Any] | None = None,
    resume: bool | None = None,
    override: bool | None = None,
    progress: Listener | None = None,
) -> Result:
    """Trains `model` in place on `dataset`, and returns it with averaged weights.

    folder, resume, override: instead of config.out, config.resume, config.override.
    validation: samples for the validation error (default: those of `dataset`).
    objective: instead of the one that `config` names (for weights and levels of your own).
    auxiliary: {name: loss or (loss, weight)} over what the network returns besides its prediction, see `auxiliary`.
    progress: called after every step with {"step", "images", …}.

    The classes are given to the network under the first name in model.meta["null"], which also says what replaces a dropped
    class; without it, training is unconditional. Named conditions (`Dataset.beside`) are given under their own names.
    The samples may be dicts (`data.Fields`) for a network of dicts. Of `data.Buckets` every batch has the pictures of one
    bucket, for a network that takes any size; the validation error is the mean over samples of all buckets.

    Under `torchrun` every process calls this with the same arguments (`parallel`); files are written by the first.

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
    objective = replace(objective or config.objective(), **({} if auxiliary is None else {"auxiliary": auxiliary}))
    check_data(model, dataset, objective, config)
    check_validation(model, dataset, validation or dataset)
    device = device_of(config.device, local=True)
    network = model.network
    if not isinstance(network, nn.Module) or not any(p.requires_grad for p in network.parameters()):
        raise TypeError(f"model.network is {type(network).__name__}; training needs an nn.Module with parameters")
    check_shapes(model.to(device), dataset, validation or dataset)

    with world(device) as where:
        found = earlier(folder, resume)
        run = _prepare(model, dataset, objective, config, where, device)
        identity = config.identity() | {"dataset": dataset.fingerprint(), "objective": objective.described}
        if objective.described == config.objective().described:
            identity["objective"] = None  # the options say it
        if objective.auxiliary:
            identity["auxiliary"] = {name: a.described for name, a in objective.auxiliary.items()}
        if where.first:
            folder.mkdir(parents=True, exist_ok=True)
            tidy(folder)
        where.wait()
        if found:
            check_unchanged(folder, difference(read_state(found[-1]).get("identity", {}), identity), override)
            averages = {name: _network(a) for name, a in run.averages.items()}
            state = restore(found[-1], network, averages, run.optimizer, run.learned)
            run.counters = Counters(**{name: state.get(name, value) for name, value in _saved(run.counters).items()})
        return _train(run, validation or dataset, objective, folder, identity, bool(found), progress)


def _prepare(
    model: Denoiser,
    dataset: Dataset | Buckets,
    objective: Objective,
    config: TrainConfig,
    where: World,
    device: torch.device,
) -> Run:
    """The model and its averages on their device (cut in parts with fsdp), the optimiser, and the maker of batches."""
    where.part(range(config.batch // config.accumulate))  # fails if the batch cannot be shared
    model.to(device).train()
    names = ["ema", *(f"ema-{std:g}" for std in config.ema_std)]
    averages = {name: copy.deepcopy(model).eval().requires_grad_(False) for name in names}
    network = _network(model)
    if config.save_memory:
        inner = next((m for m in network.modules() if hasattr(m, "enable_gradient_checkpointing")), None)
        if inner is None:
            raise ValueError(
                f"save_memory is for networks of diffusers; {type(network).__name__} cannot recompute its activations"
            )
        inner.enable_gradient_checkpointing()  # type: ignore[operator]
    whole = Loss(model, objective, objective.parts(dataset.shape)).to(device)
    networks = [network, *map(_network, averages.values())]
    loss = share(config.strategy, whole, networks, where, device, bool(objective.auxiliary))
    if config.compile:
        network.compile()
    trained: list[dict[str, Any]] = [{"params": list(module.parameters())} for module in (network, *whole.learned.children())]
    if whole.uncertainty is not None:
        trained[-1]["weight_decay"] = 0.0  # which would draw expected losses towards 1
    optimizer = torch.optim.AdamW(
        [group for group in trained if group["params"]],
        lr=config.lr,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    counters = Counters(scale=FIRST_SCALE if config.precision == "float16" else 1.0)
    draw = drawer(model, dataset, objective, config, where)
    return Run(model, averages, optimizer, loss, whole.parts, whole.learned, draw, config, counters, where, device)


def _train(
    run: Run,
    validation: Dataset | Buckets,
    objective: Objective,
    folder: Path,
    identity: dict[str, Any],
    resumed: bool,
    progress: Listener | None,
) -> Result:
    """The loop itself, from the run's counters to the end or to a stop."""
    config, counters, average, first = run.config, run.counters, run.averages["ema"], run.world.first
    networks = {name: _network(a) for name, a in run.averages.items()}
    started, saved = time.perf_counter(), counters.images if resumed else -1
    found: tuple[dict[str, float], float] | None = None  # errors by λ, and the objective, at the last checkpoint
    total = config.steps * config.batch
    log = Log(folder / "log.jsonl", counters.images) if first else None
    others = [adapter(name, folder, config) for name in config.log_to] if first else []

    def tell(event: Event) -> None:
        for listener in [log, *others]:
            if listener is not None:
                listener(event)

    def measure() -> tuple[dict[str, float], float]:
        return validate(average, validation, config.seed), objective_error(average, validation, objective, config.seed)

    def checkpoint() -> tuple[dict[str, float], float]:
        errors, score = measure()
        state = {**_saved(counters), "identity": identity, "score": score if math.isfinite(score) else None}
        keep, best = config.keep, config.keep_best
        save(folder, _network(run.model), networks, run.optimizer, state, keep, best, run.world, run.learned)
        tell({"images": counters.images, "validation": errors, "validation_loss": score})
        return errors, score

    try:
        with interruptible() as stop, torch.random.fork_rng(), ahead(run.draw, config) as run.draw:
            stopping = stop.is_set()
            while counters.images < total and not stopping:
                event, agreed = step(run, stop.is_set())
                number = event["step"]
                if number % config.log_every == 0 or counters.images >= total:
                    event |= _means(run)
                    event["seconds"] = round(time.perf_counter() - started, 3)
                    tell(event)
                    counters.losses.clear()
                if progress is not None and first:
                    progress(event)
                if config.ema_std and _due(number, config):
                    snapshot(folder, networks, counters.images, run.world)
                if number % config.checkpoint_every == 0:
                    found, saved = checkpoint(), counters.images
                # Several processes stop at the same step: when all have heard of it.
                stopping = agreed if run.world.size > 1 else stop.is_set()
            if saved != counters.images:
                found = checkpoint()
            interrupted = stopping and counters.images < total
    finally:
        for listener in [log, *others]:
            if listener is not None:
                listener.close()
    errors, loss = found or measure()  # none if resumed at the very end
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
    gather(_network(average))
    return Result(average, folder, counters.images, steps, loss, errors, counters.skipped, interrupted, seconds)


def _due(step: int, config: TrainConfig) -> bool:
    """Is this step one of the `snapshots` that are spread over the run, its end included?"""
    return step * config.snapshots // config.steps > (step - 1) * config.snapshots // config.steps


def _means(run: Run) -> Event:
    """The mean loss since the last line of the log; and, of several parts, each under its name."""
    rows = run.counters.losses or [[0.0] * (1 + len(run.parts))]
    loss, *parts = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {"loss": loss} | ({"parts": dict(zip(run.parts, parts, strict=True))} if len(parts) > 1 else {})


def _saved(counters: Counters) -> dict[str, Any]:
    return {f.name: getattr(counters, f.name) for f in fields(counters) if f.name != "losses"}


def _network(model: Denoiser) -> nn.Module:
    assert isinstance(model.network, nn.Module)
    return model.network
