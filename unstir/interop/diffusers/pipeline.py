"""A pipeline of diffusers as a `Denoiser`: its network, its process, its conditions, its latent codec."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ...denoiser import Denoiser
from ...denoiser.denoiser import split_output
from ...plan import Plan, Steered
from ...plan.sample import sample
from ...process import Shifted, shifted
from .convention import Convention
from .limits import limit_of
from .schedule import keeps_noise
from .scheduler import PlanScheduler

library: Any = diffusers  # whose names are made when they are asked for
PLAN = "unstir_plan.json"  # a plan learned for a pipeline, beside its model_index.json; more of them in unstir_plan_N.json
NETWORKS = ("unet", "transformer", "prior", "decoder")


@dataclass(frozen=True)
class Codec:
    """The latent space of a pipeline: z = (encode(picture) − shift) · scale."""

    vae: Any
    scale: float = 1.0
    shift: float = 0.0

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures in [−1, 1]: the mode of the encoder's law."""
        out = self.vae.encode(pictures)
        z = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in about [−1, 1] of latents."""
        return self.vae.decode(latents / self.scale + self.shift).sample


class PipelineNetwork(nn.Module):
    """A pipeline's network as network(x, label, **conditions), whatever its arguments are called.

    module: of diffusers; its conditions (encoder_hidden_states, class_labels, added_cond_kwargs, …) keep
    their names. A second half of the channels, a learned variance, is cut off. divide: Flux is told σ.
    """

    def __init__(self, module: nn.Module, divide: float = 1.0) -> None:
        super().__init__()
        names = list(inspect.signature(type(module).forward).parameters)
        self.module, self.divide = module, divide
        self.state_name, self.time_name = names[1], next((n for n in ("timestep", "timesteps") if n in names), names[2])

    def forward(self, x: Tensor, label: Tensor, **conditions: Any) -> Tensor:
        label = label / self.divide if self.divide != 1.0 else label
        out, _ = split_output(self.module(**{self.state_name: x, self.time_name: label, **conditions}, return_dict=False))
        return out[:, : x.shape[1]] if out.ndim == x.ndim and out.shape[1] == 2 * x.shape[1] else out


class PipelineDenoiser(Denoiser):
    """A pipeline's network as a denoiser.

    codec: of its latents, None for pixels.   scheduler: the pipeline's own, as we read it.
    pipeline: the pipeline itself, which encodes prompts (`prompt_conditions`).
    """

    codec: Codec | None = None
    scheduler: PlanScheduler | None = None
    pipeline: Any = None


def is_pipeline_folder(path: Any) -> bool:
    """Is this a folder that `DiffusionPipeline.from_pretrained` reads?"""
    return isinstance(path, str | Path) and (Path(path) / "model_index.json").is_file()


def is_pipeline(value: Any) -> bool:
    """Is this a live pipeline: something with a scheduler and a network?"""
    return hasattr(value, "scheduler") and _network_name(value) is not None


def load_pipeline(source: Any, *, device: str | torch.device | None = None) -> PipelineDenoiser:
    """The denoiser of a live pipeline, or of a folder that `DiffusionPipeline.from_pretrained` reads.

    Weights of a folder must be safetensors: nothing is unpickled. The network is the pipeline's own
    (not a copy), so moving the one moves the other. Conditions are the network's own keywords:

        model = unstir.load(pipe)
        x = unstir.sample(model, nfe=8, shape=4, encoder_hidden_states=text)
        pictures = model.codec.decode(x)

    process: the table of the scheduler's ᾱ, or the flow with the config's shift. predicts and clip are
    the scheduler's. `model.codec` is None for pixels. The plans beside the pipeline (`save_plans`) are `model.plans`.
    """
    folder = None
    if is_pipeline_folder(source):
        folder = Path(source)
        source = _read(folder)
    if not is_pipeline(source):
        raise TypeError(f"source is {type(source).__name__}; give a diffusers pipeline or a folder with a model_index.json")
    network = getattr(source, _network_name(source))  # pyright: ignore[reportArgumentType]
    own = PlanScheduler.from_config(source.scheduler)
    heard: Convention = own.convention
    if heard.sign != 1.0:
        raise ValueError("this scheduler's network predicts a velocity with the other sign, which a Denoiser cannot say yet")
    process, time = heard.process, "label"
    if heard.family == "flow":
        levels, s = own.config.num_train_timesteps, own.read["flow_shift" if own.read["use_flow_sigmas"] else "shift"]
        process = shifted(process, s) if s != 1.0 and not own.read["use_dynamic_shifting"] else process
        time = "thousand" if levels == 1000 and not isinstance(process, Shifted) else _flow_label(levels)
    elif heard.family == "edm":
        time = "c_noise" if not type(source.scheduler).__name__.startswith("Cosine") else lambda p, t: heard.label(t)
    limit = own.read["clip_sample_range"] if own.read["clip_sample"] else None
    flux = "Flux" in type(network).__name__
    model = PipelineDenoiser(
        PipelineNetwork(network, 1000.0 if flux else 1.0),
        process,
        heard.prediction.kind,
        time=time,
        sigma_data=heard.prediction.sigma_data,
        clip=None if limit is None else (-float(limit), float(limit)),
        shape=_shape(network),
        meta={"pipeline": type(source).__name__, "scheduler": type(source.scheduler).__name__},
    )
    model.codec, model.scheduler, model.pipeline = codec_of(source), own, source
    if folder is not None:
        model.plans = plans_beside(folder)
    if device is not None and isinstance(source, library.DiffusionPipeline):
        source.to(device)  # the text encoders and the codec come along
    return (model if device is None else model.to(device)).eval()


def plan_files(folder: Path) -> list[Path]:
    """unstir_plan_N.json and, after them, unstir_plan.json."""
    stem = Path(PLAN).stem
    more = [file for file in folder.glob(f"{stem}_*.json") if file.stem.removeprefix(f"{stem}_").isdigit()]
    return [*sorted(more), *([folder / PLAN] if (folder / PLAN).is_file() else [])]


def plans_beside(folder: Path) -> dict[int, Plan]:
    """{calls: plan} of the files beside a pipeline; of two with the same number of calls that in unstir_plan.json."""
    return {len(plan): plan for plan in map(Plan.load, plan_files(folder))}


def save_plans(plans: Mapping[int, Plan], folder: str | Path) -> list[Path]:
    """Writes plans beside a pipeline: the first as unstir_plan.json, the others as unstir_plan_N.json, N their calls.

    Plans that lie there keep their place under their number, unless one of the new ones has as many calls.
    """
    folder = Path(folder)
    if not is_pipeline_folder(folder):
        raise ValueError(f"folder={str(folder)!r} holds no pipeline (model_index.json)")
    all_plans = {**plans, **{n: plan for n, plan in plans_beside(folder).items() if n not in plans}}
    written = [folder / PLAN, *(folder / f"{Path(PLAN).stem}_{n}.json" for n in list(all_plans)[1:])]
    for plan, file in reversed(list(zip(all_plans.values(), written, strict=True))):  # what gives way is kept first
        plan.save(file)
    for file in set(plan_files(folder)) - set(written):
        file.unlink()
    return written[: len(plans)]


def sample_as_pipeline(
    source: Any,
    steps: int,
    noise: Tensor,
    *,
    generator: Any = None,
    guidance: Callable[[Any], Any] | None = None,
    **conditions: Any,
) -> Tensor:
    """What the pipeline's own loop makes of its first noise (its latents=) in `steps` steps, by our executor.

    The scheduler's own method on its own nodes and labels, with its limits on the data prediction.
    generator: of the rows' noise, drawn as the pipeline draws it.   guidance: denoiser -> denoiser, such as
    classifier-free guidance.   conditions: keywords of the network.
    """
    model = load_pipeline(source)
    own = PlanScheduler.from_config(source.scheduler, solver="config")
    own.set_timesteps(steps)
    plan, limit, keeps = own.plan, limit_of(own.read), keeps_noise(own.read)
    assert plan is not None
    told = dict(zip([row.t for row in plan.rows if row.evaluate], own.timesteps.tolist(), strict=False))

    def label(process: Any, t: Tensor) -> Tensor:
        return torch.as_tensor(told[float(t)], dtype=torch.float64)

    sigma_data = model.prediction.sigma_data
    exact: Any = Denoiser(model.network, plan.process, model.prediction.kind, time=label, sigma_data=sigma_data)
    guided = exact if guidance is None else guidance(exact)

    def limited(x: Tensor, t: Any, **given: Any) -> Any:
        base = guided(x, t, **given)
        if limit is None:
            return base
        return Steered(limit(base), base, "noise") if keeps else limit(base)

    def draw(row: int) -> Tensor:
        return randn_tensor(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)

    return sample(limited, plan, x=noise * own.init_noise_sigma, noise=draw if plan.stochastic else None, **conditions)


def codec_of(pipeline: Any) -> Codec | None:
    """The latent codec of a pipeline; None where it works on pixels."""
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    if vae is None:
        return None
    config = vae.config
    return Codec(vae, float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0))


def _read(folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, value in index.items() if value == [None, None]}
    try:
        return library.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **absent)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read as a pipeline: {' '.join(str(error).split())}") from None


def _network_name(pipeline: Any) -> str | None:
    return next((name for name in NETWORKS if isinstance(getattr(pipeline, name, None), nn.Module)), None)


def _flow_label(levels: int) -> Callable[[Any, Tensor], Tensor]:
    return lambda process, t: levels * process.sigma(t)


def _shape(network: Any) -> tuple[int, ...] | None:
    """One sample's shape, if the network's config tells."""
    config = network.config
    channels, size = config.get("in_channels"), config.get("sample_size")
    if not isinstance(channels, int) or size is None:
        return None
    sizes: Sequence[int] = (size, size) if isinstance(size, int) else tuple(size)
    return (channels, *sizes)
