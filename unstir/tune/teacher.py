"""The teacher: start noises of numbered samples, their conditions, and the ends of their exact trajectories.

Sample i has its own random stream (seed, i), so the noises need not be stored, and training, validation and held-out
samples are index ranges. Ends are computed `batch` at a time and kept on the CPU: one state a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import read_tensors, write_tensors
from .._random import PRIOR, draw, sample_keys
from ..plan.plan import Plan
from ..plan.sample import sample
from ..process import Process
from ..process.base import expand

Cond = Mapping[str, Any] | Callable[[Tensor], Mapping[str, Any]] | None


@dataclass(frozen=True)
class Chunk:
    """Samples that are run together: centred start states x and teacher ends, both (B, *), and their conditions.

    weight: (B,), of the samples in every mean, float64 on the CPU; None where all weigh 1.
    """

    x: Tensor
    goal: Tensor
    cond: Mapping[str, Any]
    weight: Tensor | None = None

    def rows(self, index: Tensor) -> Chunk:
        """Some of the samples; conditions with one row a sample are taken along."""
        size = len(self.x)
        cond = {
            k: v[index.to(v.device)] if isinstance(v, Tensor) and v.ndim and len(v) == size else v for k, v in self.cond.items()
        }
        weight = None if self.weight is None else self.weight[index.cpu()]
        index = index.to(self.x.device)
        return Chunk(self.x[index], self.goal[index], cond, weight)


def weights(chunks: Sequence[Chunk]) -> Tensor:
    """Of all samples, float64 (S,) with sum 1."""
    each = [torch.ones(len(c.x), dtype=torch.float64) if c.weight is None else c.weight for c in chunks]
    total = torch.cat(each)
    return total / total.sum()


@dataclass(frozen=True)
class Source:
    """All that decides what samples are: model, process, shape of one sample, seed, conditions, where they live."""

    model: Any
    process: Process
    shape: tuple[int, ...]
    seed: int
    cond: Cond
    start: float
    batch: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls, model: Any, process: Any, shape: Any, seed: int, cond: Cond, start: float, batch: int, dtype: Any, device: Any
    ) -> Source:
        """Fills in what the model knows: its process, the shape of a sample, the dtype and device of its parameters."""
        own = getattr(model, "process", None)
        if not callable(model):
            raise TypeError(f"model is {type(model).__name__}; give a denoiser, or a callable model(x, t, **cond)")
        if process is None and own is None:
            raise TypeError(f"model {type(model).__name__} has no process; give process=")
        if process is not None and own is not None and process != own:
            raise ValueError(f"process={process!r} is not the model's, {own!r}; give model.on(process)")
        shape = getattr(model, "shape", None) if shape is None else shape
        if shape is None:
            raise ValueError("shape is not known to this model; give shape=, that of one sample without the batch")
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        where = torch.device(device if device is not None else parameter.device if parameter is not None else "cpu")
        kind = dtype or (torch.float64 if parameter is None else torch.float32)
        return cls(
            model,
            own if process is None else process,  # pyright: ignore[reportArgumentType]
            tuple(shape),
            seed,
            cond,
            float(start),
            batch,
            kind,
            where,
        )

    def conditions(self, index: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the network for samples `index`; tensors are read in turn, i modulo their length."""
        if self.cond is None:
            return {}
        rows = torch.as_tensor(list(index))
        given = self.cond(rows) if callable(self.cond) else self.cond
        if not isinstance(given, Mapping):
            raise TypeError(
                f"cond is {type(given).__name__}; give a dict of tensors, or a function of indices that returns one"
            )
        if callable(self.cond):
            return dict(given)
        return {k: v[rows % len(v)].to(self.device) if isinstance(v, Tensor) and v.ndim else v for k, v in given.items()}

    def start_state(self, index: Sequence[int]) -> Tensor:
        """σ(start) z of samples `index`: the centred start."""
        z = draw(sample_keys(len(index), self.seed, index), self.shape, PRIOR, self.dtype, self.device)
        return expand(self.process.sigma(self.start), z) * z

    def run(self, plan: Plan, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The end of `plan` from centred start states x."""
        more = dict(cond)
        anchor = more.pop("anchor", None)
        return sample(self.model, plan, x=self.process.uncentre(x, self.start, anchor), anchor=anchor, **more)

    def signature(self, teacher: Plan) -> str:
        """A text that differs when the model, its conditions, the samples or the teacher do.

        The model is known by its answers: the end of a two-row DDIM run of sample 0, five digits of it.
        """
        from ..solvers import plan

        probe = plan("ddim", self.process, nfe=2, start=self.start)
        end = self.run(probe, self.start_state([0]), self.conditions([0])).double().flatten()[:64]
        digits = [f"{v:.4e}" for v in end.tolist()]
        facts = [self.process.spec(), teacher.fingerprint(), list(self.shape), self.seed, str(self.dtype), digits]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def chunks(self, index: Sequence[int]) -> Iterator[Sequence[int]]:
        """`index` in pieces of `batch`."""
        return (index[i : i + self.batch] for i in range(0, len(index), self.batch))

    def teach(self, teacher: Plan, index: Sequence[int], folder: Path | None = None) -> list[Chunk]:
        """The chunks of samples `index` with the teacher's ends; in `folder` these are kept and found again."""
        known = _Cache(self, teacher, folder)
        out = []
        for part in self.chunks(index):
            x, cond = self.start_state(part), self.conditions(part)
            goal = known.get(part)
            if goal is None:
                goal = self.run(teacher, x, cond)
                known.put(part, goal)
            out.append(Chunk(x, goal.to(x), cond))
        return out


class _Cache:
    """Teacher ends as safetensors, one file a chunk, named by all that decides them (the model by what it predicts)."""

    def __init__(self, source: Source, teacher: Plan, folder: Path | None) -> None:
        self.folder, self.source, self.teacher = folder, source, teacher
        self.key = "" if folder is None else source.signature(teacher)

    def _file(self, index: Sequence[int]) -> Path:
        assert self.folder is not None
        name = hashlib.sha256(json.dumps([self.key, list(index)]).encode()).hexdigest()[:16]
        return self.folder / f"teacher-{name}.safetensors"

    def get(self, index: Sequence[int]) -> Tensor | None:
        if self.folder is None or not self._file(index).exists():
            return None
        return read_tensors(self._file(index))["goal"]

    def put(self, index: Sequence[int], goal: Tensor) -> None:
        if self.folder is not None:
            write_tensors(self._file(index), {"goal": goal})
