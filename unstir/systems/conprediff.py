"""ConPreDiff: Improving Diffusion-Based Image Synthesis with Context Prediction (2023).

For people who train on pictures, series, volumes or graphs and want their parts to fit together better without paying for
it when they sample. While it learns, the network also foretells what surrounds each of its points:

    L = E ‖D − x0‖² w(λ) + c min(SNR, 1) · W₂²(neighbours of i, what a small decoder draws from the feature h_i)

The decoder (`train.context.ContextHead`) is thrown away; what is left is the same network with the same weights' names, so
plans, steering and speed do not change. For graphs and other grids only the rings differ (`grid_rings`, `graph_rings`).

Parts: the auxiliary losses of `train.fit`, `train.context`, `nets.Tapped`. `trained` is the whole of it. Your data: any
`Dataset`. No code was published with the paper; the targets here are clean data, its "pixels".

What is claimed below is modest, as the dossier asks at this size: that the context does no harm to local statistics and on
average of three seeds helps, that it is learned, and that nothing changes in sampling.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import train
from .._random import normal
from ..data import Dataset
from ..denoiser import Denoiser
from ..evaluate import frechet, labelled_rows, save_png
from ..nets import Tapped
from ..plan import sample
from ..process import VP
from ..solvers import plan
from ..train.auxiliary import Record, named
from ..train.context import ContextHead, fading, grid_rings
from ..train.objective import evaluate
from ._digits import report
from ._kept import once
from .protocol import Result, at_least, at_most

PHOTOGRAPHS = ("camera", "coins", "brick", "grass", "gravel", "moon")
SIDE, RADIUS, LEVELS = 16, 2, (-1.0, 0.0, 1.0)
FEATURES = "conv_act"  # the last feature of diffusers' UNet2DModel, before conv_out
RECIPE = 1  # part of the cache's name: raise it when the networks or their training change


def trained(
    dataset: Dataset,
    folder: Path,
    steps: int,
    *,
    context: float = 0.1,
    side: int = SIDE,
    batch: int = 32,
    width: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Denoiser, ContextHead]:
    """A denoiser trained on pictures (C, side, side) with a context loss of weight `context`, or 0: without; and the decoder.

    The denoiser's network is a plain UNet2DModel: the tap and the decoder are gone. Kept in `folder` for the next call.
    """
    model, head = untrained(dataset, side, width, seed)
    config = train.TrainConfig(
        data=dataset.name, split="all", steps=steps, batch=batch, lr=1e-3, warmup=50, seed=seed, process="vp",
        predicts="velocity", levels="uniform", ema=0.99, device=device, checkpoint_every=steps, keep=1,
    )  # fmt: skip
    auxiliary = {"context": (head, fading(context))} if context else None
    found = once(
        folder / f"conprediff-v{RECIPE}-{dataset.name}-{context:g}-{steps}-{seed}.safetensors",
        steps,
        lambda run, bar: train.fit(model, dataset, config, run, resume=True, progress=bar, auxiliary=auxiliary),
        lambda tapped: nn.ModuleDict({"network": tapped.network, "head": head}).state_dict(),
    )
    plain = untapped(model)
    nn.ModuleDict({"network": plain.network, "head": head}).load_state_dict(found)  # type: ignore[dict-item]
    return plain.to(device).eval().requires_grad_(False), head.to(device).eval().requires_grad_(False)


def untrained(dataset: Dataset, side: int = SIDE, width: int = 16, seed: int = 0) -> tuple[Denoiser, ContextHead]:
    """A fresh model whose network returns its last feature too, and a fresh decoder of a 5 × 5 neighbourhood."""
    from diffusers import UNet2DModel  # type: ignore[attr-defined]

    values = dataset.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet2DModel(
            sample_size=side, in_channels=values, out_channels=values, block_out_channels=(width, 2 * width),
            layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
        )  # fmt: skip
        head = ContextHead(width, values, grid_rings((side, side), RADIUS), variance=dataset.std() ** 2)
    tapped = Tapped(net, FEATURES)
    return Denoiser(tapped, VP(), "velocity", time="thousand", shape=(values, side, side)), head


def untapped(model: Denoiser) -> Denoiser:
    """The same denoiser with the network inside the tap: what is sampled with, saved and shipped."""
    assert isinstance(model.network, Tapped)
    return Denoiser(model.network.network, model.process, model.prediction.kind, time=model.time, shape=model.shape)


# -- data ---------------------------------------------------------------------------------------------------
class Patches(NamedTuple):
    """Patches to learn from, (N, 1, 16, 16) in [−1, 1], of the left 80 % of the photographs; others, of the right 20 %."""

    train: Tensor
    test: Tensor


@lru_cache(maxsize=1)
def patches(count: int = 10_000, tested: int = 1_000, side: int = SIDE) -> Patches:
    """Random patches of six grey photographs that come with scikit-image, at half their size: textures, mostly."""
    try:
        from skimage import data
    except ImportError:
        raise ImportError('the photographs come with scikit-image: pip install "unstir[pictures]"') from None
    photos = [F.avg_pool2d(torch.tensor(getattr(data, name)()).float()[None] / 127.5 - 1, 2)[0] for name in PHOTOGRAPHS]

    def cut(count: int, test: bool, seed: int) -> Tensor:
        g, found = torch.Generator().manual_seed(seed), []
        for n in range(count):
            photo = photos[n % len(photos)]
            height, width = photo.shape
            low, high = (int(0.8 * width), width - side) if test else (0, int(0.8 * width) - side)
            top = int(torch.randint(0, height - side + 1, (), generator=g))
            left = int(torch.randint(low, high + 1, (), generator=g))
            found.append(photo[top : top + side, left : left + side])
        return torch.stack(found)[:, None]

    return Patches(cut(count, False, 0), cut(tested, True, 1))


def dataset_of(x: Tensor) -> Dataset:
    """Pictures in memory as a data set."""
    return Dataset(lambda rows: x[list(rows)], len(x), tuple(x.shape[1:]), name=f"patches-{len(x)}-{x.shape[-1]}")


# -- the run ------------------------------------------------------------------------------------------------
def neighbourhoods(x: Tensor) -> Tensor:
    """All 3 × 3 neighbourhoods of pictures without their means, in the 8 directions in which they vary: (B · places, 8 C)."""
    vectors = F.unfold(x, 3).movedim(1, 2).reshape(-1, x.shape[1], 9)
    basis = torch.linalg.qr(torch.cat([torch.ones(9, 1), torch.eye(9)[:, :8]], 1)).Q[:, 1:]  # all that is orthogonal to 1
    return (vectors @ basis.to(vectors)).flatten(1)


def local_distance(x: Tensor, test: Tensor) -> float:
    """Fréchet distance of the 3 × 3 neighbourhoods of two sets of pictures."""
    return frechet(neighbourhoods(test.double()), neighbourhoods(x.double()), "pixel").value


def record_at(model: Denoiser, x0: Tensor, logsnr: float, seed: int = 0) -> Record:
    """What a context loss sees of pictures at one noise level."""
    t = model.process.time(torch.full((len(x0),), logsnr, dtype=torch.float64))
    t = t + torch.linspace(0, 1e-9, len(t), dtype=t.dtype)  # a sample's draws are a function of its t
    noise = normal(x0.shape, seed=seed)
    found = evaluate(model, x0, noise, t, {})
    data = x0 + found.n.reshape(-1, 1, 1, 1).to(x0) * found.error
    return Record(x0, noise, found.x, t, model.process.logsnr(t), data, {}, {}, {}, named(found.extras))


class Foretold(NamedTuple):
    """Context losses of held-out patches, mean over λ = 0, 1, 2: of the decoder; before training; of D_i for all neighbours."""

    learned: float
    before: float
    copied: float


@torch.no_grad()
def foretold(model: Denoiser, head: ContextHead, dataset: Dataset, test: Tensor) -> Foretold:
    """How well the decoder foretells neighbours of pictures that it has not seen."""
    fresh, untaught = untrained(dataset)
    tapped = Denoiser(Tapped(model.network, FEATURES), model.process, "velocity", time=model.time)  # type: ignore[arg-type]
    rings = grid_rings(test.shape[2:], RADIUS)
    found: list[tuple[float, float, float]] = []
    for lam in (0.0, 1.0, 2.0):
        own, begin = record_at(tapped, test, lam), record_at(fresh, test, lam)
        same = ContextHead(test.shape[1], test.shape[1], rings, source=None, variance=head.variance)
        copied = same.distance(own, lambda ring, h, xi: h[:, :, None].expand(-1, -1, head.samples, -1))
        found.append((float(head(own).mean()), float(untaught(begin).mean()), float(copied.mean())))
    return Foretold(*torch.tensor(found).mean(0).tolist())


@torch.no_grad()
def one_step(model: Denoiser, test: Tensor) -> list[float]:
    """Mean square error of D of held-out patches at λ = −1, 0, 1."""
    return [float((record_at(model, test, lam).data - test).square().mean()) for lam in LEVELS]


def weights_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Three pairs of networks, with and without the context loss: same seeds, same data in the same order.

    large: 8000 steps instead of 400.
    """
    steps, seeds = (8000 if large else 400), (0, 1, 2)
    x, test = patches()
    dataset = dataset_of(x)
    run = plan("auto", VP(), nfe=20)
    found: dict[str, list[float]] = {"with": [], "without": []}
    errors: dict[str, list[list[float]]] = {"with": [], "without": []}
    shown: dict[str, Tensor] = {"held-out patches": test[:12]}
    told: list[Foretold] = []
    sizes: dict[str, int] = {}
    for seed in seeds:
        for name, context in (("with", 0.1), ("without", 0.0)):
            model, head = trained(dataset, out.parent, steps, context=context, seed=seed, device=device)
            pictures = sample(model, run, shape=(len(test), *test.shape[1:]), seed=seed).cpu()
            found[name].append(local_distance(pictures, test))
            errors[name].append(one_step(model.cpu(), test))
            sizes[name] = weights_of(model.network)  # type: ignore[arg-type]
            if context:
                told.append(foretold(model, head.cpu(), dataset, test))
            if seed == 0:
                shown[f"{name} context"] = pictures[:12]
    ratios = [a / b for a, b in zip(found["with"], found["without"], strict=True)]
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    learned, before, copied = (sum(part) / len(told) for part in zip(*told, strict=True))
    claims = [
        at_most("distance of 3 × 3 neighbourhoods: with context, against without, largest ratio of three", max(ratios), 1.02),
        at_most("mean over three seeds: with context, against without", mean["with"], mean["without"]),
        at_least("context loss of held-out patches: the part that is learned away", 1 - learned / before, 0.3),
        at_most("context loss: the decoder, against the denoised point for all its neighbours", learned, copied),
        at_most("weights of the network for sampling: with context, against without", sizes["with"], sizes["without"]),
    ]
    page = report(
        "A network that also foretells what surrounds its points",
        f"Three seeds; networks of {sizes['with']} weights that learned {len(x)} patches for {steps} steps of 32; {len(test)} "
        f"samples of 20 calls; distance to {len(test)} patches of parts of the photographs that were not learned from.",
        claims,
    )
    rows = [[seed, *(found[n][i] for n in found), ratios[i]] for i, seed in enumerate(seeds)]
    page.table(rows, ["seed", "FD with", "FD without", "ratio"], caption="Fréchet distance of 3 × 3 neighbourhoods.")
    rows = [[n, i, *errors[n][i]] for n in errors for i in range(len(seeds))]
    page.table(rows, ["context", "seed", *(f"λ = {lam:g}" for lam in LEVELS)], caption="Mean square error of D, held out.")
    sheet = labelled_rows(shown, value_range=(-1, 1))
    save_png(sheet, out / "patches.png")
    page.picture(sheet, "Samples of seed 0.")
    page.save(out / "report.html")
    figures = {"distances": found, "one-step errors": errors, "context": [t._asdict() for t in told], "steps": steps}
    figures["floor: two halves of the held-out patches"] = local_distance(test[::2], test[1::2])
    return Result(claims, figures)
