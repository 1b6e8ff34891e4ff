"""unstir: one engine for diffusion-type generative models.

Stirring (adding noise) destroys structure; a network learns to see through it; a sampler un-stirs.

    p = unstir.process.VP()
    model = unstir.Denoiser(network, p, predicts="noise")
    plan = unstir.plan("dpmpp-3m", p, nfe=10)
    x = unstir.sample(model, plan, shape=(16, 3, 32, 32), seed=0)
"""

from __future__ import annotations

from typing import Any

from . import denoiser, process, solvers
from .denoiser import Calls, Denoiser, count_calls
from .plan import NonFiniteError, Plan, Row, State, Step, brownian, sample, steps, trace
from .solvers import plan

__version__ = "0.1.0"

_ROOMS = (
    "codecs",
    "compress",
    "data",
    "distill",
    "evaluate",
    "interop",
    "nets",
    "physics",
    "steer",
    "systems",
    "train",
    "tune",
)


def __getattr__(name: str) -> Any:
    # Heavier rooms are imported when they are first named.
    import importlib

    if name in _ROOMS:
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    elif name in ("load", "save"):
        return getattr(importlib.import_module(".interop", __name__), f"{name}_model")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Calls",
    "Denoiser",
    "NonFiniteError",
    "Plan",
    "Row",
    "State",
    "Step",
    "brownian",
    "count_calls",
    "denoiser",
    "plan",
    "process",
    "sample",
    "solvers",
    "steps",
    "trace",
]
