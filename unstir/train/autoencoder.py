"""`fit_autoencoder`: two optimisers take turns, that of the codec and that of the discriminator which judges it.

    L_rec = [ mean |x − x̂| + w_p P(x, x̂) ] / e^s + s         mean over the pixels of a picture, then over the batch
    L     = L_rec + w_code L_code − λ(n ≥ start) mean D_ψ(x̂)
    L_ψ   = ½ [mean relu(1 − D_ψ(x)) + mean relu(1 + D_ψ(x̂))]   from the step `start` on, 0 before

    L_code    KL: Σ ½(μ² + s² − 1 − log s²) of a picture, divided by its C·H·W;    VQ: the codebook's loss, a mean

P is named in the log (`perceptual`), λ and D_ψ are those of `patch_gan`. The published KL objective sums over pixels: it is
this one times C·H·W, a constant that Adam does not see. D_ψ learns from the x̂ that the codec was just judged by; as its
parameters are its own, one Adam with two groups is two Adams, and one set of moments to save.

Which pictures a step sees, their flips and ζ are functions of (seed, image counter), as in `trainer`: a resumed run ends
with the same bits. (High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Taming Transformers for
High-Resolution Image Synthesis, 2021.)
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import codecs, data
from ..codecs.autoencoders import Autoencoder
from ..data import Dataset
from . import ema, order
from .autoencoder_config import AutoencoderConfig
from .checkpoint import check_unchanged, earlier, read_state, restore, save, tidy
from .config import changes, device_of, learning_rate
from .interrupt import interruptible
from .patch_gan import PatchDiscriminator, adaptive_weight, hinge
from .perceptual import perceptual
from .progress import Event, Listener, Log, bar
from .step import PATIENCE

_VALIDATION, _STATS = 64, 1024  # pictures that validate, and pictures whose latents are measured


@dataclass(frozen=True)
class AutoencoderResult:
    """How a run ended. `codec`: frozen, with its shift and scale; psnr: of unseen pictures, in dB."""

    codec: Autoencoder
    folder: Path
    images: int
    steps: int
    psnr: float
    perceptual: str
    skipped: int
    interrupted: bool
    seconds: float


class Beside(nn.Module):
    """What is trained beside the codec, and forgotten with the run: the discriminator, and s."""

    def __init__(self, critic: PatchDiscriminator | None) -> None:
        super().__init__()
        self.critic, self.logvar = critic, nn.Parameter(torch.zeros(()))


def build_codec(config: AutoencoderConfig, shape: tuple[int, ...]) -> Autoencoder:
    """A fresh codec for pictures (C, H, W). ValueError if f = 2^(levels − 1) does not divide the sides."""
    if len(shape) != 3:
        raise ValueError(f"data has samples of shape {shape}; autoencoders are for pictures (C, H, W)")
    options: dict[str, Any] = {"codes": config.codes} if config.kind == "vq" else {}
    kind: Any = codecs.VQ if config.kind == "vq" else codecs.KL
    codec = kind(
        pixels=shape[0], channels=config.latent, widths=config.widths, layers=config.layers, seed=config.seed, **options
    )
    codec.check(torch.zeros(1, *shape))
    return codec


def train_autoencoder(config: AutoencoderConfig, *, show: bool = True) -> AutoencoderResult:
    """Loads the data, builds the codec, trains it and writes the codec folder `config.out`/codec."""
    config.check()
    options: dict[str, Any] = {"size": config.size, "channels": config.channels, "labels": "none"}
    training = data.load(config.data, **options, split=config.split)
    validation = data.load(config.data, **options, split="test") if config.split == "train" else training
    codec = build_codec(config, training.shape)
    if not show:
        return fit_autoencoder(codec, training, config, validation=validation)
    with bar(config.steps, f"autoencoder {config.data}") as listener:
        return fit_autoencoder(codec, training, config, validation=validation, progress=listener)


def fit_autoencoder(
    codec: Autoencoder,
    dataset: Dataset,
    config: AutoencoderConfig,
    *,
    validation: Dataset | None = None,
    progress: Listener | None = None,
) -> AutoencoderResult:
    """Trains `codec` on pictures in place, measures its shift and scale, and writes its folder.

    Ctrl-C finishes the step, writes a checkpoint and the codec so far, and returns with `interrupted`; config.resume goes on.

    Raises ValueError for pictures that do not fit or lie in [0, 1], if the folder holds a run and resume is off, or if
    options or data changed (unless override); RuntimeError after 100 non-finite steps in a row.
    """
    config.check()
    folder, device = Path(config.out), device_of(config.device)
    _check_range(dataset)
    critic = None
    if config.gan_weight:
        critic = PatchDiscriminator(codec.pixels, config.gan_width, config.gan_layers, config.seed)
        if min(dataset.shape[1:]) < critic.smallest and config.gan_start <= config.steps:
            critic(torch.zeros(1, *dataset.shape))  # says what to do
    codec, beside = codec.to(device).train(), Beside(critic).to(device).train()
    beside.logvar.requires_grad_(config.learn_logvar)
    averages = {"ema": copy.deepcopy(codec).requires_grad_(False)} if config.ema else {}
    groups = [{"params": [*codec.parameters(), *([beside.logvar] if config.learn_logvar else [])]}]
    groups += [{"params": list(critic.parameters())}] if critic is not None else []
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=(0.5, 0.9))
    counters: dict[str, int] = {"images": 0, "skipped": 0, "in_a_row": 0}

    found = earlier(folder, config.resume)
    identity = config.identity() | {"dataset": dataset.fingerprint()}
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    if found:
        before = read_state(found[-1])["identity"]
        check_unchanged(folder, changes({**before, **identity}, before, identity), config.override)
        state = restore(found[-1], codec, averages, optimizer, beside)
        counters = {name: state[name] for name in counters}
    return _run(codec, beside, averages, optimizer, counters, dataset, validation or dataset, config, identity, progress)


def _run(
    codec: Autoencoder,
    beside: Beside,
    averages: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    counters: dict[str, int],
    dataset: Dataset,
    validation: Dataset,
    config: AutoencoderConfig,
    identity: dict[str, Any],
    progress: Listener | None,
) -> AutoencoderResult:
    """The loop, from the counters to the end or to a stop; then the codec's scale and its folder."""
    folder, started, total = Path(config.out), time.perf_counter(), config.steps * config.batch
    similar, saved = perceptual(config.perceptual), counters["images"]
    kept = averages.get("ema", codec)
    log = Log(folder / "log.jsonl", counters["images"])

    def checkpoint() -> None:
        score = reconstruction_psnr(kept, validation)
        known = {**counters, "identity": identity, "score": -score if math.isfinite(score) else None}
        save(folder, codec, averages, optimizer, known, config.keep, learned=beside)
        log({"images": counters["images"], "validation": {"psnr": score}})

    try:
        with interruptible() as stop, torch.random.fork_rng():
            while counters["images"] < total and not stop.is_set():
                event = step(codec, beside, optimizer, counters, dataset, config, similar.loss)
                if averages:
                    ema.update(kept, codec, ema.fixed(config.ema, event["step"]))
                if event["step"] % config.log_every == 0 or counters["images"] >= total:
                    log(event | {"perceptual_name": similar.name, "seconds": round(time.perf_counter() - started, 3)})
                if progress is not None:
                    progress(event)
                if event["step"] % config.checkpoint_every == 0:
                    checkpoint()
                    saved = counters["images"]
            if saved != counters["images"]:
                checkpoint()
            interrupted = stop.is_set() and counters["images"] < total
    finally:
        log.close()
    made = copy.deepcopy(kept).eval()
    made.fit_stats(_batches(dataset, _STATS, config.batch)).freeze()
    score = reconstruction_psnr(made, validation)
    training = {"options": config.identity(), "images": counters["images"], "psnr": score, "perceptual": similar.name}
    codecs.save(made, folder / "codec", {"data": dataset.describe(), "training": training})
    steps, seconds = counters["images"] // config.batch, time.perf_counter() - started
    return AutoencoderResult(
        made, folder, counters["images"], steps, score, similar.name, counters["skipped"], interrupted, seconds
    )


def step(
    codec: Autoencoder,
    beside: Beside,
    optimizer: torch.optim.Optimizer,
    counters: dict[str, int],
    dataset: Dataset,
    config: AutoencoderConfig,
    similar: Any,
) -> Event:
    """One step of both optimisers on images n … n + B − 1. RuntimeError after `PATIENCE` non-finite steps in a row."""
    n, critic = counters["images"], beside.critic
    images, device = range(n, n + config.batch), next(codec.parameters()).device
    torch.manual_seed(order.network_seed(config.seed, n))
    x = dataset.batch(order.rows(len(dataset), config.seed, images))[0].to(device)
    if config.flip:
        x = torch.where(order.flipped(config.seed, images).to(device).reshape(-1, 1, 1, 1), x.flip(-1), x)
    small = (codec.channels, x.shape[2] // codec.factor, x.shape[3] // codec.factor)
    rate = learning_rate(config, n)  # type: ignore[arg-type]
    for group in optimizer.param_groups:
        group["lr"] = rate
    judge = critic if n // config.batch + 1 >= config.gan_start else None

    passed = codec(x, order.noise(config.seed, images, small).to(device))
    pixels = (x - passed.x).abs().flatten(1).mean(1)
    like = similar(x, passed.x)
    nll = ((pixels + config.perceptual_weight * like) / beside.logvar.exp() + beside.logvar).mean()
    code = passed.code / (x[0].numel() if config.kind == "kl" else 1)
    loss = nll + config.code * code
    told = {"l1": pixels.mean(), "perceptual": like.mean(), "code": code}
    if judge is not None:
        judge.requires_grad_(False)
        fooled = -judge(passed.x).mean()
        balance = adaptive_weight(nll, fooled, codec.last_layer, config.gan_weight)
        loss = loss + balance * fooled
        judge.requires_grad_(True)
        told |= {"gan": fooled, "gan_weight": balance}
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if judge is not None:
        doubt = hinge(judge(x), judge(passed.x.detach()))
        doubt.backward()
        told["discriminator"] = doubt
    elif critic is not None:  # as published: its loss is 0, so its moments are there from the first step
        for weight in critic.parameters():
            weight.grad = torch.zeros_like(weight)
    norms = [nn.utils.clip_grad_norm_(group["params"], config.clip) for group in optimizer.param_groups]

    counters["images"] += config.batch
    event: Event = {"step": counters["images"] // config.batch, "images": counters["images"], "lr": rate}
    if not all(math.isfinite(float(v)) for v in (loss.detach(), *norms)):
        counters["skipped"] += 1
        counters["in_a_row"] += 1
        if counters["in_a_row"] >= PATIENCE:
            raise RuntimeError(
                f"{PATIENCE} steps in a row were not finite (until image {counters['images']}, lr {rate:.2g}); lower lr"
            )
        return event | {"skipped": counters["skipped"]}
    counters["in_a_row"] = 0
    optimizer.step()
    return event | {
        "loss": float(loss.detach()),
        **{k: float(v.detach()) for k, v in told.items()},
        "skipped": counters["skipped"],
    }


@torch.no_grad()
def reconstruction_psnr(codec: Autoencoder, dataset: Dataset) -> float:
    """Mean over pictures of 10 log₁₀(4/mean (x − x̂)²) dB, x̂ of the mode of the law; on the first 64 pictures."""
    device, was, found = next(codec.parameters()).device, codec.training, []
    codec.eval()
    for x in _batches(dataset, _VALIDATION, 16):
        again = codec.reconstruct(codec.posterior(x.to(device))[0]).cpu()
        found.append(10 * torch.log10(4 / (x - again).square().flatten(1).mean(1).double()))
    codec.train(was)
    return float(torch.cat(found).mean())


def _batches(dataset: Dataset, limit: int, size: int) -> Iterator[Tensor]:
    """Up to `limit` evenly spaced pictures, in batches."""
    rows = dataset._spaced(limit)
    for start in range(0, len(rows), size):
        yield dataset.batch(rows[start : start + size])[0]


def _check_range(dataset: Dataset) -> None:
    """ValueError if pictures leave [−1, 1], or never go below 0: then they were mapped to [0, 1]."""
    x = torch.cat(list(_batches(dataset, _VALIDATION, 16)))
    low, high = float(x.min()), float(x.max())
    if not (low >= -1 - 1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"{dataset.name}: values from {low:.4g} to {high:.4g}; an autoencoder learns pictures in [−1, 1]")
    if low >= 0:
        raise ValueError(
            f"{dataset.name}: values from {low:.4g} to {high:.4g}, as if in [0, 1]; pictures are in [−1, 1]: 2x − 1"
        )
