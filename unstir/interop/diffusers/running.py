"""The state of a run inside a scheduler: one per thread, so that one scheduler may serve many."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...process.base import expand
from .convention import Convention
from .limits import Limit
from .schedule import Schedule, Turn


@dataclass
class Run:
    """The state of one run: where it stands, and the F's that later rows read."""

    schedule: Schedule | None
    timesteps: Tensor
    limit: Limit | None = None
    keeps_noise: bool = False  # does clipping leave the noise estimate alone?
    turns: Sequence[Turn] = ()
    first: int = 0  # iteration of turns[0]
    index: int | None = None
    begin: int | None = None
    history: dict[int, Tensor] = field(default_factory=dict)


class Runs(threading.local):
    """The run of every thread."""

    run: Run | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Runs:
        twin = Runs()
        twin.run = copy.deepcopy(self.run, memo)
        return twin


class Running:
    """What a scheduler knows of the run of the calling thread, and noise at the levels of that run."""

    convention: Convention
    alphas_cumprod: Tensor
    config: Any
    _runs: Runs
    _blank: Tensor  # the labels before the first set_timesteps
    _latest: tuple[Any, ...] | None  # of the newest set_timesteps in any thread

    @property
    def _run(self) -> Run:
        run = self._runs.run
        if run is None:
            latest = self._latest  # a schedule made in another thread is followed from its start
            run = Run(*latest) if latest is not None else Run(None, self._blank)
            self._runs.run = run
        return run

    @property
    def timesteps(self) -> Tensor:
        """What the network is told in every iteration."""
        return self._run.timesteps

    @property
    def num_inference_steps(self) -> int | None:
        """The number of iterations; None before set_timesteps."""
        run = self._run
        return None if run.schedule is None else len(run.timesteps)

    @property
    def sigmas(self) -> Tensor:
        """Noise of the state of every iteration and of the end: σ/α, or σ of a flow; float32."""
        schedule = self._run.schedule
        if schedule is None:
            return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        process = schedule.plan.process
        t = torch.tensor(schedule.times, dtype=torch.float64)
        return (process.sigma(t) if schedule.convention.family == "flow" else process.noise_ratio(t)).float()

    @property
    def step_index(self) -> int | None:
        """The iteration that comes next; None before the first."""
        return self._run.index

    @property
    def begin_index(self) -> int | None:
        return self._run.begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this iteration (image-to-image)."""
        self._run.begin = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The iteration that is told `timestep`, or the nearest; of several the first that starts from a node."""
        run, value = self._run, float(timestep if not isinstance(timestep, Tensor) else timestep.flatten()[0])
        told = (run.timesteps if schedule_timesteps is None else schedule_timesteps).tolist()
        gap = [abs(label - value) for label in told]
        nearest = min(gap)
        found = [i for i, distance in enumerate(gap) if distance == nearest] if gap[0] else [0]
        if len(found) > 1 and run.schedule is not None and schedule_timesteps is None:
            rows, turns = run.schedule.plan.rows, run.schedule.turns
            return next((i for i in found if turns[i].number == 0 or rows[turns[i].number - 1].boundary), found[0])
        return found[0]

    def previous_timestep(self, timestep: float | Tensor) -> Any:
        """What the network is told after `timestep`, −1 after the last; outside a run the label below."""
        run = self._run
        if run.schedule is None:
            return timestep - 1
        later = self.index_for_timestep(timestep) + 1
        return run.timesteps[later] if later < len(run.timesteps) else torch.tensor(-1)

    def _start(self, timestep: Any) -> Run:
        """The run, set to begin at its begin index or at the iteration that is told `timestep`."""
        run = self._run
        if run.schedule is None:  # as with the peers, every label is a step
            begin = run.begin
            self.set_timesteps(len(self._blank))
            run = self._run
            run.begin = begin
        assert run.schedule is not None
        run.first = run.index = self.index_for_timestep(timestep) if run.begin is None else run.begin
        run.turns, run.history = run.schedule.begin(run.first), {}
        return run

    # -- training, image-to-image, inpainting ---------------------------------------------------------------
    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α x0 + σ z at the given labels; in a run whose begin is known, at the iteration that comes next."""
        a, s = self._levels(original_samples, timesteps)
        return a * original_samples + s * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor | None = None) -> Tensor:
        """`add_noise`, as the flow pipelines call it."""
        noise = torch.randn_like(sample) if noise is None else noise
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α z − σ x0, the target of v_prediction."""
        a, s = self._levels(sample, timesteps)
        return a * noise - s * sample

    def _levels(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        run, told = self._run, torch.as_tensor(labels, dtype=torch.float64).reshape(-1).tolist()
        process = self.convention.process if run.schedule is None else run.schedule.plan.process
        if run.schedule is not None and run.begin is not None:
            times = [run.schedule.times[run.begin if run.index is None else run.index]] * len(told)
        else:
            known = {} if run.schedule is None else dict(zip(run.timesteps.tolist(), run.schedule.times, strict=False))
            times = [known[label] if label in known else self._time_of_label(label) for label in told]
        t = torch.tensor(times, dtype=torch.float64)
        return expand(process.alpha(t), x), expand(process.sigma(t), x)

    def _time_of_label(self, label: float) -> float:
        kind = self.convention.family
        if kind == "edm":
            raise ValueError(
                f"timesteps={label} is not one of this run's; training labels of this scheduler are functions of σ"
            )
        levels = self.config.num_train_timesteps
        if not 0 <= label <= levels:
            raise ValueError(f"timesteps={label} must lie in 0 … {levels}")
        return label / levels if kind == "flow" else (label + 1) / levels

    # -- copies ----------------------------------------------------------------------------------------------
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_runs", "_latest", "convention")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _runs=Runs(), _latest=None)
        self._read()

    def _read(self) -> None:
        raise NotImplementedError

    def set_timesteps(self, num_inference_steps: int | None = None) -> None:
        raise NotImplementedError
