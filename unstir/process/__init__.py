"""Forward processes: x_t = α(t) x0 + β(t) y + σ(t) z. See `Process` for what every one of them offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .anchored import OUVE, Anchored, MeanReverting
from .base import Process
from .frames import FRAMES
from .interpolant import GAMMAS, Interpolant, Marginal, Mirror, OneSided
from .poisson import Poisson
from .residual import RDDM, BrownianBridge, ResShift
from .schedules import EDM, VE, VP, Cosine, Flow, SubVP
from .table import Shifted, Table, from_betas, resolution_shift, shifted, zero_terminal

KINDS: dict[str, type[Process]] = {kind.__name__: kind for kind in (VP, Cosine, SubVP, VE, EDM, Flow, Table, Shifted)}
KINDS |= {kind.__name__: kind for kind in (Interpolant, Mirror, OneSided, Marginal, Poisson)}
KINDS |= {kind.__name__: kind for kind in (MeanReverting, ResShift, RDDM, BrownianBridge, OUVE)}


def from_spec(spec: Mapping[str, Any]) -> Process:
    """The process that `Process.spec` described.

    Raises ValueError for an unknown kind or unknown parameters.
    """
    options = dict(spec)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown process kind {kind!r}; known: {', '.join(KINDS)}")
    if "base" in options:
        options["base"] = from_spec(options["base"])
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise ValueError(f"process {kind}: {error}") from None


__all__ = [
    "EDM",
    "FRAMES",
    "GAMMAS",
    "KINDS",
    "OUVE",
    "RDDM",
    "VE",
    "VP",
    "Anchored",
    "BrownianBridge",
    "Cosine",
    "Flow",
    "Interpolant",
    "Marginal",
    "MeanReverting",
    "Mirror",
    "OneSided",
    "Poisson",
    "Process",
    "ResShift",
    "Shifted",
    "SubVP",
    "Table",
    "from_betas",
    "from_spec",
    "resolution_shift",
    "shifted",
    "zero_terminal",
]
