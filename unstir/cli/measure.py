"""What `sample`, `eval` and `demo` share: models with their classes, timed runs, the long reference, the measured row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import interop, sample
from .. import plan as make_plan
from ..codecs import Codec
from ..data import Dataset
from ..evaluate import Score, energy_distance, frechet, mmd, trajectory_error
from ..plan import Plan
from ..plan.sample import choose
from ..process import Process
from ..steer import cfg
from ..train.config import device_of
from ..train.validate import check_shape

BATCH = 256  # samples in one network call; a sample does not depend on it but for the rounding of the network


@dataclass(frozen=True)
class Run:
    """Samples of one plan, the seconds they took, and the seconds of those that the network took."""

    samples: Tensor
    seconds: float
    network: float

    @property
    def overhead(self) -> float:
        """Our time over the network's: (seconds − network)/network."""
        return (self.seconds - self.network) / self.network


def load(model: str, device: str = "cpu") -> Any:
    """The model of a folder or a bundled name, on a device."""
    return interop.load_model(model, device=device_of(device))


def plan_for(model: Any, solver: str | None, nfe: int | None, file: Path | None = None) -> Plan:
    """The plan of a file, of a solver, or the model's own for this number of calls."""
    if file is None:
        return choose(model, solver, nfe)
    if solver is not None:
        raise ValueError(f"--solver {solver} has no effect on the plan in {file}; give one of both")
    return choose(model, Plan.load(file), nfe)


def on_process(model: Any, process: Process) -> Any:
    """The model as a denoiser of `process`, itself if it is that already."""
    return model if model.process == process else model.on(process)


def labels_of(model: Any, wanted: Sequence[str], count: int) -> Tensor:
    """(count,) class numbers: the wanted classes, by name or number, in turn."""
    names = [str(name) for name in model.meta.get("classes", [])]
    if not names:
        raise ValueError("the model has no classes; leave out --label and --labels")
    numbers = []
    for label in wanted:
        if label not in names and not (label.isdigit() and int(label) < len(names)):
            raise ValueError(f"--label {label!r} is unknown; the model's classes are {', '.join(names)}")
        numbers.append(names.index(label) if label in names else int(label))
    return torch.tensor([numbers[i % len(numbers)] for i in range(count)])


def reference_labels(model: Any, data: Dataset, count: int) -> Tensor | None:
    """(count,) class numbers in the shares of the data; None for a model without classes, or with others."""
    if data.labels is None or list(data.classes) != [str(name) for name in model.meta.get("classes", [])]:
        return None
    return data.labels[torch.arange(count) * len(data) // count]


def condition(model: Any, labels: Tensor | None) -> dict[str, Any]:
    """Keywords of the network that ask for these classes."""
    return {} if labels is None else {next(iter(model.meta["null"])): labels}


@contextmanager
def network_clock(network: nn.Module) -> Iterator[Callable[[], float]]:
    """Yields a function that tells the seconds spent inside `network` since the block began."""
    spent, begun = 0.0, 0.0

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(*_: Any) -> None:
        nonlocal begun
        begun = now()

    def after(*_: Any) -> None:
        nonlocal spent
        spent += now() - begun

    handles = [network.register_forward_pre_hook(before, prepend=True), network.register_forward_hook(after)]
    try:
        yield lambda: spent
    finally:
        for handle in handles:
            handle.remove()


def timed(
    model: Any,
    plan: Plan,
    count: int,
    seed: int,
    labels: Tensor | None = None,
    on_step: Callable[[Any], None] | None = None,
    guidance: float = 1.0,
    shape: tuple[int, ...] | None = None,
) -> Run:
    """`count` samples with a plan, in batches; sample i is a function of (model, plan, seed, i, label, guidance, shape).

    shape: of one sample of the network, instead of the model's own.
    """
    seen = on_process(model, plan.process)
    if guidance != 1:
        seen = cfg(seen, guidance, null=model.meta["null"])
    parts = []
    with network_clock(model.network) as network:
        started = time.perf_counter()
        for rows in torch.arange(count).split(BATCH):
            cond = condition(model, None if labels is None else labels[rows])
            size = len(rows) if shape is None else (len(rows), *shape)
            drawn = sample(seen, plan, shape=size, seed=seed, index=rows.tolist(), on_step=on_step, **cond)
            parts.append(pictures(model, drawn).cpu())
        seconds = time.perf_counter() - started
    return Run(torch.cat(parts), seconds, network())


@torch.no_grad()
def pictures(model: Any, samples: Tensor) -> Tensor:
    """Samples of a model of latents decoded, 16 at a time; those of another model as they are."""
    codec = getattr(model, "codec", None)
    return torch.cat([codec.decode(z) for z in samples.split(16)]) if isinstance(codec, Codec) else samples


def shape_of(model: Any) -> Any:
    """The shape of one sample as `pictures` gives it."""
    codec = getattr(model, "codec", None)
    if not isinstance(codec, Codec):
        return model.shape
    return (codec.pixels, *(side * codec.factor for side in model.shape[1:]))


def sized(model: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of one sample of the network for pictures of (height, width). ValueError unless it takes such."""
    codec, own = getattr(model, "codec", None), model.shape
    if not isinstance(own, tuple) or len(own) != 3:
        raise ValueError(f"--size {size[0]} {size[1]} is for pictures; this model makes samples of shape {own}")
    factor = codec.factor if isinstance(codec, Codec) else 1
    if min(size) < 1 or size[0] % factor or size[1] % factor:
        raise ValueError(f"--size {size[0]} {size[1]} must be HEIGHT WIDTH, positive multiples of {factor}")
    shape = (own[0], size[0] // factor, size[1] // factor)
    check_shape(model, shape, {})
    return shape


def reference(model: Any, count: int, seed: int, calls: int, labels: Tensor | None = None) -> Tensor:
    """Ends of a long trajectory ("auto" with `calls` calls) of the first `count` samples: what solver errors refer to."""
    plan = make_plan("auto", model.process, nfe=calls)
    return timed(model, plan, count, seed, None if labels is None else labels[:count]).samples


def scores(samples: Tensor, real: Tensor, features: str) -> dict[str, Score]:
    """Fréchet distance, MMD² and energy distance of the samples to the real data."""
    return {
        "frechet": frechet(real, samples, features),
        "mmd": mmd(real, samples, features),
        "energy": energy_distance(real, samples, features),
    }


def solver_error(plan: Plan, samples: Tensor, exact: Tensor | None) -> float | None:
    """Mean RMS error to the reference from the same starts; None where the plan adds noise, or without a reference."""
    if exact is None or plan.stochastic:
        return None
    return trajectory_error(samples[: len(exact)], exact).mean


def score_record(score: Score) -> Mapping[str, Any]:
    """A score as JSON has it."""
    return {"value": score.value, "floor": score.floor, "floor_n": score.floor_n, "name": score.name, "n": score.n_fake}
