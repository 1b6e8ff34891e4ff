"""High-Resolution Image Synthesis with Latent Diffusion Models (2022): compress once, then diffuse what is left.

For whoever trains a generator on more than tiny pictures. An autoencoder with f = 4 keeps what is seen of a picture in a
sixteenth of its places (`codecs`, `train.fit_autoencoder`: pixels + perceptual + patch-GAN loss, a nearly free latent law);
a denoiser then learns the latents, each channel with mean 0 and standard deviation 1:

    z = (ℓ − shift) · scale,   ℓ ~ N(μ(x), s(x)²);       x̂ = decode(z_0),   z_0 sampled as ever

Everything below (processes, plans, guidance) sees latents only. Seven tasks differ in what the network is given beside
them (`nets.Conditioned`): nothing, a class, a text, a layout, a semantic map, a small picture, a masked one.

The claim in miniature: on 32 × 32 crops of photographs, the same kind of network, trained for the same seconds of CPU time,
is better in latents than in pixels, and many times as fast to sample; what the autoencoder loses is not what limits it. As
in the paper, the autoencoder's own training is not counted: it serves many models.

Parts: `codecs.KL`, `train.fit_autoencoder`, `codecs.cache`, `train.fit`, any plan; `unstir autoencoder DATA`, then
`unstir train DATA --codec FOLDER`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import codecs, interop, train
from .._extras import need
from ..codecs import KL, Codec
from ..data import Dataset
from ..denoiser import Denoiser
from ..evaluate import frechet_moments, labelled_rows, save_png
from ..plan import sample
from ..process import VP
from ..solvers import plan
from ._digits import report
from ._latent import BETAS, TASKS, known, ldm, schedule
from .ebdm import photographs
from .protocol import Result, at_least, at_most

__all__ = ["BETAS", "TASKS", "known", "ldm", "reproduce", "schedule"]  # of `_latent`, beside the claim

SIDE = 32
RECIPE = 2  # part of the caches' names: raise it when a network or its training changes
STEPS, SECONDS = 450, 45.0  # of the autoencoder, and of CPU time for either diffusion model
CALLS, COUNT = 20, 400  # DDIM steps, and samples


# -- data and features ----------------------------------------------------------------------------------------------
def patches(count: int, test: bool = False) -> Tensor:
    """`count` crops (3, 32, 32) of the left 80 % of seven photographs at half their size; test: of the right 20 %."""
    g = torch.Generator().manual_seed(1 if test else 0)
    found = []
    for n in range(count):
        photo = photographs()[n % 7]  # without the stereo pair
        split = int(0.8 * photo.shape[2])
        low, high = (split, photo.shape[2] - SIDE) if test else (0, split - SIDE)
        top = int(torch.randint(0, photo.shape[1] - SIDE + 1, (), generator=g))
        left = int(torch.randint(low, high + 1, (), generator=g))
        found.append(photo[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(found)


def dataset(x: Tensor) -> Dataset:
    """Pictures in memory as a data set."""
    return Dataset(lambda rows: x[list(rows)], len(x), x.shape[1:], name="crops of photographs")


def features(x: Tensor) -> Tensor:
    """(B, 102) of crops (B, 3, 32, 32): their mean over 4 × 4 blocks of places, and of every channel at three scales

    the root mean square, the products of neighbours across and down, the mean |·| of the three bands of Haar details.
    """
    a, found = x.double(), [F.adaptive_avg_pool2d(x.double(), 4).flatten(1)]
    for _ in range(3):
        c = a - a.mean((2, 3), keepdim=True)
        found += [
            c.square().mean((2, 3)).sqrt(),
            (c[..., 1:] * c[..., :-1]).mean((2, 3)),
            (c[..., 1:, :] * c[..., :-1, :]).mean((2, 3)),
        ]
        p, q, r, s = a[..., ::2, ::2], a[..., ::2, 1::2], a[..., 1::2, ::2], a[..., 1::2, 1::2]
        found += [(band / 4).abs().mean((2, 3)) for band in (p - q + r - s, p + q - r - s, p - q - r + s)]
        a = (p + q + r + s) / 4
    return torch.cat(found, 1)


def distances(reference: Tensor, spread: Tensor, sets: dict[str, Tensor]) -> dict[str, float]:
    """Fréchet distances of sets of crops to `reference`, in `features` divided by their deviation over `spread`."""
    unit = features(spread).std(0)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        f = features(x.clamp(-1, 1)) / unit
        return f.mean(0), torch.cov(f.T)

    goal = moments(reference)
    return {name: frechet_moments(*goal, *moments(x)) for name, x in sets.items()}


# -- the models -----------------------------------------------------------------------------------------------------
class Trained(NamedTuple):
    """A model, the seconds that its training took, and its steps."""

    model: Any
    seconds: float
    steps: int


def autoencoder(folder: Path, steps: int, device: str, clock: Callable[[], float]) -> Trained:
    """A KL codec (f = 4, d = 4, widths 16, 32, 48) of the crops, kept in `folder`.

    ℓ1 and its pyramid, 10⁻⁶ KL, no discriminator; batch 16, rate 2e-3 falling as a cosine.
    """
    path = folder / f"ldm-v{RECIPE}-codec-{steps}"
    work = path.with_name(path.name + ".run")
    config = train.AutoencoderConfig(
        data="crops", split="all", out=work, steps=steps, gan_weight=0.0, perceptual="pyramid", device=device,
        checkpoint_every=steps, keep=1,
    )  # fmt: skip
    if not path.is_dir():
        shutil.rmtree(work, ignore_errors=True)  # seconds are of one run, from its beginning
        started = clock()
        with train.bar(steps, "autoencoder") as progress:
            run = train.fit_autoencoder(KL(), dataset(patches(400)), config, progress=progress)
        if run.interrupted:
            raise KeyboardInterrupt
        codecs.save(run.codec, path, {"seconds": clock() - started})
        shutil.rmtree(work)
    spent = interop.folder.read_json(path / "config.json")["meta"]["seconds"]
    return Trained(codecs.load(path).to(device), spent, steps)


def unet(channels: int, side: int) -> Denoiser:
    """A fresh velocity model of states (channels, side, side): a UNet2DModel of widths 32, 64, 64, two halvings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = need("diffusers").UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
            add_attention=False,
        )
    return Denoiser(network, VP(), "velocity", time="thousand", shape=(channels, side, side))


def diffusion(
    path: Path,
    data: Dataset,
    batch: int,
    seconds: float,
    device: str,
    clock: Callable[[], float],
    codec: Any = None,
) -> Trained:
    """The model that `seconds` of training make of `data`, kept in the model folder `path`, with its codec.

    Rate 2e-3 falling as a cosine (for pixels the best of 1e-3, 2e-3, 4e-3 after 45 steps), weight average 0.99. How many
    steps fit is measured first, on a copy, in 12 of them.
    """
    name = "latents" if codec is not None else "pixels"

    def fit(steps: int, run: Path) -> tuple[Any, list[float]]:
        config = train.TrainConfig(
            data=name, split="all", steps=steps, batch=batch, lr=2e-3, warmup=20, predicts="velocity", ema=0.99,
            flip=codec is None, device=device, workers=0, checkpoint_every=steps, keep=1,
        )  # fmt: skip
        shutil.rmtree(run, ignore_errors=True)  # seconds are of one run, from its beginning
        times = [clock()]
        with train.bar(steps, f"diffusion of {name}") as bar:

            def progress(event: dict[str, Any]) -> None:
                times.append(clock())
                bar(event)

            net, few = unet(data.shape[0], data.shape[1]), data.subset(range(16))  # a validation that costs nothing
            found = train.fit(net, data, config, run, validation=few, progress=progress)
        if found.interrupted:
            raise KeyboardInterrupt
        shutil.rmtree(run)
        return found.model, times

    if not path.is_dir():
        tried = fit(12, path.with_name(path.name + ".trial"))[1]
        steps = max(1, round(seconds / ((tried[-1] - tried[4]) / (len(tried) - 5))))
        model, times = fit(steps, path.with_name(path.name + ".run"))
        model.codec = codec
        model.meta |= {"seconds": times[-1] - times[0], "steps": steps}
        interop.save_model(model, path)
    found = interop.load_model(path, device=device)
    return Trained(found, found.meta["seconds"], found.meta["steps"])


def draw(model: Denoiser, count: int, clock: Callable[[], float]) -> tuple[Tensor, float]:
    """(`count` crops, the seconds they took): 20 DDIM steps on uniform times, decoded if the model has a codec."""
    table, parts, started = plan("ddim", model.process, CALLS, "uniform"), [], clock()
    with torch.no_grad():
        for rows in torch.arange(count).split(100):
            x = sample(model, table, shape=len(rows), index=rows.tolist())
            parts.append((x if model.codec is None else model.codec.decode(x)).cpu())
    return torch.cat(parts), clock() - started


# -- the run --------------------------------------------------------------------------------------------------------
def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """An autoencoder, then the same kind of network on its latents and on pixels, for the same seconds of CPU time (on pixels
    for a tenth more).

    large: ten times as long. On other devices than the CPU seconds are those of a clock on the wall.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds, steps = (10 * SECONDS, 10 * STEPS) if large else (SECONDS, STEPS)
    learn, test = patches(400), patches(100, test=True)
    first = autoencoder(out.parent, steps, device, clock)
    codec: Codec = first.model
    latents = codecs.cache(dataset(learn), codec, out.parent / f"ldm-v{RECIPE}-latents")
    with torch.no_grad():
        again = codec.decode(codec.encode(test.to(device), sample=False)).cpu()
        raw = codec.posterior(learn.to(device))[0].std((0, 2, 3))
    psnr = float(10 * torch.log10(4 / (test - again).square().flatten(1).mean(1).double()).mean())
    spread = latents.batch(range(len(latents)))[0].std((0, 2, 3))

    places = [out.parent / f"ldm-v{RECIPE}-{name}-{seconds:g}" for name in ("latent", "pixel")]
    small = diffusion(places[0], latents, 64, seconds, device, clock, codec)
    # A tenth more, so that an error in the estimate of the steps is to the good of the baseline.
    big = diffusion(places[1], dataset(learn), 16, 1.1 * small.seconds, device, clock)
    (ours, our_seconds), (theirs, their_seconds) = (draw(trained.model, COUNT, clock) for trained in (small, big))
    found = distances(
        test,
        learn,
        {"latent": ours, "pixel": theirs, "reconstructions of the test crops": again, "training crops": learn},
    )
    claims = [
        at_least("PSNR of the autoencoder on unseen crops, dB", psnr, 22),
        at_most("standard deviation of the normalised latents, largest distance from 1", (spread - 1).abs().max(), 0.05),
        at_most(
            f"Fréchet distance at {seconds:g} s of training: latents, against 0.75 of pixels",
            found["latent"],
            0.75 * found["pixel"],
        ),
        at_least("sampling with decoding: seconds in pixels over seconds in latents", their_seconds / our_seconds, 5),
        at_most(
            "Fréchet distance of reconstructions, against 0.6 of the latent model's",
            found["reconstructions of the test crops"],
            0.6 * found["latent"],
        ),
    ]
    page = report(
        "Latent diffusion",
        f"{len(learn)} crops of the left 80 % of seven photographs, tested on {len(test)} of the right 20 %. An autoencoder of "
        f"{steps} steps ({first.seconds:.0f} s, not counted), then one UNet on latents 8 × 8 × 4, one on pixels 32 × 32 × 3, "
        f"{seconds:g} s of CPU time each; {CALLS} DDIM steps, {COUNT} samples each.",
        claims,
    )
    rows = [
        ["latents", small.steps, small.seconds, our_seconds, found["latent"]],
        ["pixels", big.steps, big.seconds, their_seconds, found["pixel"]],
    ]
    rows += [[name, None, None, None, value] for name, value in found.items() if name not in ("latent", "pixel")]
    page.table(rows, ["", "steps", "seconds of training", "seconds of sampling", "Fréchet distance"])
    shown = {"crops": test[:16], "their reconstructions": again[:16], "latent model": ours[:16], "pixel model": theirs[:16]}
    sheet = labelled_rows({name: x.clamp(-1, 1) for name, x in shown.items()}, value_range=(-1, 1))
    save_png(sheet, out / "crops.png")
    page.picture(sheet, "Unseen crops, the same through the autoencoder, and samples.").save(out / "report.html")
    figures = {
        "Fréchet distance": found,
        "standard deviation of raw latents": raw,
        "training seconds": {"autoencoder": first.seconds, "latent": small.seconds, "pixel": big.seconds},
        "training steps": {"autoencoder": steps, "latent": small.steps, "pixel": big.steps},
        "sampling seconds": {"latent": our_seconds, "pixel": their_seconds},
    }
    return Result(claims, figures)
