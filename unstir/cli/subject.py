"""What `unstir tune` tunes: a model folder, or a pipeline of diffusers, with the conditions that its plan will be used with."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import interop
from ..denoiser import Denoiser
from ..plan import Plan
from . import measure

ENTRIES = 65536  # of the states that run together by default: 4 of Stable Diffusion's latents


class Sizes(NamedTuple):
    """How much is learned from unless the options say otherwise."""

    samples: int
    validation: int
    focus: int
    steps: int
    batch: int


@dataclass(frozen=True)
class Subject:
    """A denoiser to tune, and what surrounds it.

    cond: its conditions, read in turn by the samples; names: what the pictures show.   told: says at what guidance and for
    what it is tuned.   work: names these conditions, so that what is kept for resuming never serves others.
    seen: pictures of end states.   own: end states of its own scheduler (steps, start noise, conditions) and their name.
    store: puts plans where the model's user finds them.   options: of `tune.learn`.
    """

    model: Any
    sizes: Sizes
    cond: Mapping[str, Tensor] | None
    names: Sequence[str]
    told: str
    seen: Callable[[Tensor], Tensor]
    store: Callable[[Mapping[int, Plan]], str] | None
    own: tuple[str, Callable[[int, Tensor, Mapping[str, Tensor]], Tensor]] | None
    options: Mapping[str, Any]

    @property
    def work(self) -> str:
        facts = json.dumps([self.told, list(self.names), {k: v.tolist() for k, v in (self.cond or {}).items()}])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def subject_of(
    model: str, device: str, guidance: float | None, prompts: Path | None, negative: str, save: bool, seed: int
) -> Subject:
    """The subject that the options describe."""
    if (Path(model) / "model_index.json").is_file():
        if save:
            raise ValueError("--save is for model folders; plans of a pipeline are always written beside it")
        return _pipeline(Path(model), device, guidance, prompts, negative, seed)
    known = model in interop.BUNDLED or Path(model).exists()  # else loading says what is missing
    if known and (prompts is not None or negative):
        raise ValueError(f"--prompts and --negative are for pipelines of diffusers; {model!r} is none")
    if save and guidance not in (None, 1.0):
        raise ValueError("--save stores plans that every sampling run of the model will use; it is for --guidance 1")
    if save and not (Path(model) / "config.json").is_file():
        raise ValueError(f"--save: {model!r} is no model folder that can be written to")
    return _model(model, device, guidance, save)


# -- a model folder -----------------------------------------------------------------------------------------
def _model(name: str, device: str, guidance: float | None, save: bool) -> Subject:
    model, scale = measure.load(name, device), 1.0 if guidance is None else guidance
    labels = _labels(model) if scale != 1 else None

    def store(plans: Mapping[int, Plan]) -> str:
        model.plans.update(plans)
        interop.save_model(model, name)
        return f"{name} now samples with these plans: unstir sample {name} --nfe {next(iter(plans))}"

    return Subject(
        model=model if labels is None else Guided(model, scale, len(labels)),
        sizes=Sizes(512, 256, 192, 12, 256),
        cond=None if labels is None else {"class_labels": labels},
        names=[] if labels is None else [str(c) for c in model.meta["classes"]],
        told=f"guidance {scale:g}",
        seen=lambda x: x,
        store=store if save else None,
        own=None,
        options={},
    )


class Guided(nn.Module):
    """D_u + w (D_c − D_u) of a class-conditional network whose label `null` means any class."""

    def __init__(self, model: Denoiser, scale: float, null: int) -> None:
        super().__init__()
        self.model, self.scale, self.null = model, scale, null
        self.process, self.shape = model.process, model.shape

    def forward(self, x: Tensor, t: Any, class_labels: Tensor) -> Tensor:
        labels = torch.cat([class_labels, torch.full_like(class_labels, self.null)])
        conditional, free = self.model(torch.cat([x, x]), t, class_labels=labels).chunk(2)
        return free + self.scale * (conditional - free)


def _labels(model: Denoiser) -> Tensor:
    classes = model.meta.get("classes")
    null = model.meta.get("null", {}).get("class_labels")
    if not classes or null != len(classes):
        raise ValueError("--guidance needs a class-conditional model with a null class (meta: classes, null)")
    return torch.arange(len(classes))


# -- a pipeline ---------------------------------------------------------------------------------------------
def _pipeline(folder: Path, device: str, guidance: float | None, prompts: Path | None, negative: str, seed: int) -> Subject:
    from ..interop.diffusers import PlanScheduler, conditions_of, sample_as_pipeline, save_plans

    words = None if prompts is None else _lines(prompts)
    _quiet()
    model: Any = measure.load(str(folder), device)
    if words is None and hasattr(model.pipeline, "encode_prompt"):
        raise ValueError(f"{type(model.pipeline).__name__} draws what a text says: give --prompts, a file with one a line")
    asked = conditions_of(model, words, guidance, negative)
    name, scheduler = type(model.pipeline).__name__, type(model.pipeline.scheduler).__name__
    order = asked.numbers
    if words is None and len(order):  # more classes than samples, perhaps: any of them may come first
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    if model.shape is None:
        raise ValueError(f"{name}: the shape of its latents is not in its network's config; use unstir.tune.learn with shape=")

    def store(plans: Mapping[int, Plan]) -> str:
        for plan in plans.values():
            PlanScheduler.from_plan(plan, model.pipeline.scheduler)  # refuses what its loop could not run
        first, *_ = save_plans(plans, folder)
        return f'In the pipeline: pipe.scheduler = PlanScheduler.from_plan("{first}")'

    def own(steps: int, noise: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        generator = torch.Generator(noise.device).manual_seed(seed)
        return sample_as_pipeline(model.pipeline, steps, noise, generator=generator, guidance=asked.on, **cond)

    def seen(x: Tensor) -> Tensor:
        """Pictures, decoded one by one to bound the memory."""
        return x if model.codec is None else torch.cat([model.codec.decode(one[None]) for one in x])

    told = "no guidance" if asked.guidance is None else f"guidance {asked.guidance:g}"
    if words is not None:
        told += f", {len(words)} prompts" + (f", against {negative!r}" if negative else "")
    entries = int(torch.tensor(model.shape).prod())
    return Subject(
        model=asked.on(model),
        sizes=Sizes(64, 32, 24, 12, max(1, min(256, ENTRIES // entries))),
        cond={"condition": order} if len(order) else None,
        names=[asked.names[int(k)] for k in order],
        told=told,
        seen=seen,
        store=store,
        own=(scheduler, own),
        options={"constant": False},  # a pipeline calls its network in every row
    )


def _quiet() -> None:
    """No bars and warnings of the libraries that load pipelines, between ours."""
    for name in ("diffusers", "transformers"):
        with suppress(ImportError):
            logging = importlib.import_module(f"{name}.utils.logging")
            logging.disable_progress_bar()
            logging.set_verbosity_error()


def _lines(file: Path) -> list[str]:
    """The prompts in a text file, one a line; empty lines are skipped."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"--prompts {str(file)!r} is missing; give a text file with one prompt a line") from None
    except UnicodeDecodeError:
        raise ValueError(f"--prompts {str(file)!r} is no text in UTF-8") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"--prompts {str(file)!r} holds no prompt; write one a line")
    return lines


def own_ends(subject: Subject, steps: int, noise: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{caption: end states} of the subject's own scheduler; empty where there is none, or no plan equals it."""
    if subject.own is not None:
        name, run = subject.own
        with suppress(ValueError):
            return {f"{steps} steps, {name.removesuffix('Scheduler')}": run(steps, noise, cond)}
    return {}
