"""What a pipeline is asked for, numbered: prompts, classes, or nothing; and its denoiser at the guidance of its calls.

    asked = conditions_of(model, ["a cat", "two dogs"])             # model = unstir.load("folder")
    guided = asked.on(model)                                        # classifier-free guidance as in the pipeline's call
    x = unstir.sample(guided, nfe=6, shape=2, condition=asked.numbers)

Sample i is told a number instead of embeddings, so that tuning can read the conditions in turn and pick samples, whatever
keywords the network has: guided(x, t, condition=k) is D_u + w (D_c − D_u) with c the condition k.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser.inner import call
from ...steer import cfg
from .prompts import Conditions, prompt_conditions

ENCODED = 8  # prompts that a text encoder reads together


@dataclass(frozen=True)
class Asked:
    """Named conditions, their keywords (B first in every tensor), those of the unconditional call, and the guidance scale.

    names is empty for an unconditional pipeline; guidance is None without classifier-free guidance.
    """

    names: Sequence[str]
    given: Conditions
    free: Conditions
    guidance: float | None

    @property
    def numbers(self) -> Tensor:
        """0, 1, …: one number a condition."""
        return torch.arange(len(self.names))

    def on(self, model: Any) -> Any:
        """The denoiser as the pipeline calls it, told numbers: condition=(B,). The model itself without conditions."""
        if not self.names:
            return model
        told = Told(model, self)
        out: Any = told if self.guidance is None else cfg(told, self.guidance, null={"free": True})
        out.plans = getattr(model, "plans", {})
        return out


class Told(nn.Module):
    """A denoiser that is told numbers of conditions."""

    def __init__(self, model: Any, asked: Asked) -> None:
        super().__init__()
        self.model, self.asked, self.process, self.shape = model, asked, model.process, model.shape
        self.plans: dict[int, Any] = {}

    def forward(self, x: Tensor, t: Any, ctx: Any = None, *, condition: Tensor, free: bool = False) -> Any:
        """D for condition numbers (B,); free: that of the unconditional call."""
        keywords = self.asked.free if free else self.asked.given
        return call(self.model, x, t, ctx, _rows(keywords, condition))


def conditions_of(model: Any, prompts: Sequence[str] | None = None, guidance: float | None = None, negative: str = "") -> Asked:
    """What the pipeline behind a loaded denoiser is asked for.

    prompts: of a pipeline that reads text, and of no other.   guidance: the scale w, by default that of the pipeline's own
    calls; up to 1 there is no guidance.   negative: the prompt of the unconditional call.

    Raises ValueError if the pipeline needs prompts and there are none, takes none, has no guidance to scale, or is told
    something else (a control picture, a video's motion) that cannot be numbered here.
    """
    pipe = getattr(model, "pipeline", None)
    if pipe is None:
        raise TypeError(f"model is {type(model).__name__}; give a denoiser loaded from a diffusers pipeline")
    name, network = type(pipe).__name__, model.network.module
    if getattr(pipe, "controlnet", None) is not None:
        raise ValueError(f"{name} also tells its network a control picture; give unstir.tune.learn your own conditions")
    scale = _guidance(pipe, guidance)
    if hasattr(pipe, "encode_prompt"):
        if not prompts:
            raise ValueError(f"{name} draws what a text says: give prompts")
        if getattr(pipe, "text_encoder", None) is None:
            raise ValueError(f"{name} was saved without its text encoder and cannot read prompts")
        if getattr(network.config, "time_cond_proj_dim", None) is not None:
            raise ValueError(f"the network of {name} is told its guidance scale, which cannot be done here yet")
        pairs = [prompt_conditions(pipe, prompts[i : i + ENCODED], negative) for i in range(0, len(prompts), ENCODED)]
        given, free = (_joined([pair[k] for pair in pairs]) for k in (0, 1))
        return Asked(list(prompts), given, free, scale)
    if prompts is not None:
        raise ValueError(f"{name} reads no prompts; leave them out")
    if "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        count = int(network.config.num_embeds_ada_norm)
        names = [str(k) for k in range(count)]
        for word, k in reversed(list((getattr(pipe, "labels", None) or {}).items())):
            names[k] = word
        numbers = torch.arange(count)
        return Asked(names, {"class_labels": numbers}, {"class_labels": torch.full_like(numbers, count)}, scale)
    return Asked([], {}, {}, None)


def _guidance(pipe: Any, wanted: float | None) -> float | None:
    """The scale of the pipeline's calls, or the wanted one; None where there is no guidance."""
    known = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
    if known is None and wanted not in (None, 1.0):
        raise ValueError(f"guidance={wanted:g}: {type(pipe).__name__} has no guidance; leave it out")
    scale = wanted if wanted is not None or known is None else float(known.default)
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"guidance={scale} must be a number of at least 0")
    return None if scale is None or scale <= 1 else scale


def _rows(given: Any, numbers: Tensor) -> Any:
    """The rows `numbers` of every tensor in nested keywords."""
    if isinstance(given, dict):
        return {key: _rows(value, numbers) for key, value in given.items()}
    return given[numbers.to(given.device)] if isinstance(given, Tensor) else given


def _joined(parts: Sequence[Any]) -> Any:
    """Nested keywords of several batches as those of one."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return torch.cat(list(parts)) if isinstance(first, Tensor) else first
