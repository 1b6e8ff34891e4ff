"""EBDM: Exemplar-guided Image Translation with Brownian-bridge Diffusion Models (2024).

For people who turn a map of a structure (edges, a mask, key points) into a photograph in the manner of ONE example. A
Brownian bridge runs from the map y to the photograph; what the photograph should look like comes from the exemplar alone:

    x_t = (1 − t) x0 + t y + √(2 s t (1 − t)) z,      x' = r x + (1 − r) D(x, t, e) + √(2 s t' (1 − r)) z,   r = t'/t

y is not given to the network, which learns D = E[x0 | x_t, e]: y cancels in the step, and structure reaches the result
through the state. All of the network's conditions serve the exemplar e: tokens of the whole, and the features of a second
network that every self-attention reads beside its own (`nets.ExemplarUNet`). They are computed once for all steps.

As only the mean over y is learned, the plan has to be the stochastic bridge step, whose marginals are right; the executor
refuses every other one. The published start, y taken for x at t = 0.999, loses part of the first step's variance; here the
first row draws it at t = 1.

Parts: `process.BrownianBridge`, the solver "bridge", the prediction "shift" (x_t − x0), `nets.ExemplarUNet`. `translate` is
the whole of it. Your data: any triples (map, photograph, exemplar), where the exemplar is another picture of the same manner.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import train
from ..data import Pairs
from ..denoiser import Denoiser
from ..evaluate import labelled_rows, save_png
from ..nets import ExemplarUNet
from ..plan import Plan, sample
from ..process import BrownianBridge
from ..solvers import plan
from ._digits import report
from ._kept import Listener, once
from .protocol import Result, at_most

PROCESS = BrownianBridge(max_var=1.0)  # with 0.25 and rate 2e-3 more of the edges stayed, and less came from the exemplar
PHOTOGRAPHS = (
    *("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field"),
    *("immunohistochemistry", "retina", "stereo_motorcycle"),
)
SIDE = 32
RECIPE = 1  # part of the cache's name: raise it when the network or its training changes


def ebdm_plan(process: BrownianBridge = PROCESS, nfe: int = 200, grid: str = "uniform") -> Plan:
    """The published sampler: `nfe` bridge steps on uniform times, from y itself.

    Uniform times end coarsely: with s = 1, of details with a standard deviation of 0.3 they draw 0.27 in 200 steps and 0.19
    in 20, where grid="logsnr" draws 0.25.
    """
    return plan("bridge", process, nfe, grid, rule="vp")


def translate(
    model: Denoiser,
    control: Tensor,
    exemplar: Tensor | None = None,
    *,
    nfe: int = 200,
    grid: str = "uniform",
    seed: int = 0,
    index: Any = None,
) -> Tensor:
    """Photographs with the structure of `control` (B, C, H, W) in the manner of `exemplar` (B or 1, C, H', W').

    model: a denoiser whose network is an `ExemplarUNet`, trained as `network` does; without an exemplar it is a plain bridge.

    Raises ValueError for exemplars that do not fit (`ExemplarUNet`), and TypeError for another network.
    """
    if not isinstance(model.network, ExemplarUNet):
        raise TypeError(f"model.network is {type(model.network).__name__}; an exemplar needs a nets.ExemplarUNet")
    if exemplar is not None and exemplar.ndim == 4 and len(exemplar) not in (1, len(control)):
        raise ValueError(f"exemplar is a batch of {len(exemplar)} for {len(control)} controls; give one for all, or one each")
    with torch.no_grad():
        read = None if exemplar is None else model.network.prepare(exemplar)
    run = ebdm_plan(model.process, nfe, grid)  # type: ignore[arg-type]
    return sample(model, run, anchor=control, exemplar=read, seed=seed, index=index)


# -- data ---------------------------------------------------------------------------------------------------
class Triples(NamedTuple):
    """N targets x, their edges y, and exemplars e: each (N, 3, 32, 32) in [−1, 1]. Row n is of photograph n mod 8."""

    x: Tensor
    y: Tensor
    e: Tensor


@lru_cache(maxsize=1)
def photographs() -> list[Tensor]:
    """The eight photographs that come with scikit-image at half their size, (3, H, W) in [−1, 1]."""
    try:
        from skimage import data
    except ImportError:
        raise ImportError('the photographs come with scikit-image: pip install "unstir[pictures]"') from None
    found = []
    for name in PHOTOGRAPHS:
        image: Any = getattr(data, name)()
        pixels = torch.tensor(image[0] if isinstance(image, tuple) else image).float().movedim(-1, 0)
        found.append(F.avg_pool2d(pixels[None] / 127.5 - 1, 2)[0])
    return found


def edges(x: Tensor) -> Tensor:
    """8 |∇| − 1, at most 1, of Sobel's |∇| of the luminance per pixel: −1 where flat; as three equal channels."""
    grey = torch.einsum("c,bchw->bhw", x.new_tensor([0.299, 0.587, 0.114]), x)[:, None]
    across = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])
    return (8 * slopes.norm(dim=1, keepdim=True) - 1).clamp_max(1).expand(-1, 3, -1, -1)


def triples(count: int, test: bool = False) -> Triples:
    """`count` crops of the photographs' left 70 % (test: right 30 %), each with a disjoint crop of that part as exemplar."""
    g = torch.Generator().manual_seed(1 if test else 0)

    def corner(photo: Tensor) -> tuple[int, int]:
        split, (height, width) = int(0.7 * photo.shape[2]), photo.shape[1:]
        low, high = (split, width - SIDE) if test else (0, split - SIDE)
        top, left = torch.randint(0, height - SIDE + 1, (), generator=g), torch.randint(low, high + 1, (), generator=g)
        return int(top), int(left)

    targets, exemplars = [], []
    for n in range(count):
        photo = photographs()[n % len(PHOTOGRAPHS)]
        one = two = corner(photo)
        while max(abs(one[0] - two[0]), abs(one[1] - two[1])) < SIDE:
            two = corner(photo)
        for (top, left), crops in ((one, targets), (two, exemplars)):
            crops.append(photo[:, top : top + SIDE, left : left + SIDE])
    x = torch.stack(targets)
    return Triples(x, edges(x), torch.stack(exemplars))


# -- training -----------------------------------------------------------------------------------------------
class _Numbered(nn.Module):
    """The network with exemplars given by their numbers, as `train.fit` gives classes."""

    def __init__(self, network: ExemplarUNet, pictures: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("pictures", pictures, persistent=False)

    def forward(self, x: Tensor, time: Tensor, exemplar: Tensor | None = None) -> Tensor:
        return self.network(x, time, None if exemplar is None else self.pictures[exemplar])  # type: ignore[index]


def untrained(seed: int = 0) -> Denoiser:
    """A fresh model: predicts x_t − x0 from x_t, t and an exemplar; 32² pixels as 12 channels of 16², attention at 8²."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ExemplarUNet(3, (32, 48), (False, True), patch=2)
    return Denoiser(net, PROCESS, "shift", time="thousand", shape=(3, SIDE, SIDE))


def network(folder: Path, steps: int, guided: bool = True, device: str = "cpu", seed: int = 0) -> Denoiser:
    """The model trained on 2400 triples, kept in `folder`: mean square, uniform t, batch 16, rate 1e-3, average 0.99.

    guided: False leaves the exemplar away, in training and after: the baseline.
    """
    config = train.TrainConfig(
        data="edges", split="all", steps=steps, batch=16, lr=1e-3, warmup=50, seed=seed, process="bridge", predicts="data",
        levels="uniform", ema=0.99, cond_dropout=0.0, flip=True, device=device, checkpoint_every=steps, keep=1,
    )  # fmt: skip

    def fit(run: Path, bar: Listener) -> train.Result:
        x, y, e = triples(2400)
        fresh = untrained(seed).network
        assert isinstance(fresh, ExemplarUNet)
        if not guided:
            for part in (fresh.reader, fresh.encoder, fresh.project):
                part.requires_grad_(False)
        numbered = Denoiser(
            _Numbered(fresh, e), PROCESS, "shift", time="thousand", meta={"null": {"exemplar": -1}} if guided else None
        )
        labels, names = torch.arange(len(x)), [str(n) for n in range(len(x))]

        def part(count: int) -> Pairs:
            read = {"labels": labels[:count], "classes": names} if guided else {}
            return Pairs(lambda rows: x[list(rows)], lambda rows: y[list(rows)], count, x.shape[1:], name="edges", **read)

        return train.fit(numbered, part(len(x)), config, run, resume=True, progress=bar, validation=part(64))

    path = folder / f"ebdm-v{RECIPE}-{'guided' if guided else 'plain'}-{steps}-{seed}.safetensors"
    model = untrained(seed)
    model.network.load_state_dict(once(path, steps, fit, lambda net: net.network.state_dict()))  # type: ignore[union-attr]
    return model.to(device).eval().requires_grad_(False)


# -- the run ------------------------------------------------------------------------------------------------
def colour_error(found: Tensor, truth: Tensor) -> float:
    """Mean |difference| of the crops' mean colours, in units of [−1, 1]."""
    return float((found.mean((2, 3)) - truth.mean((2, 3))).abs().mean())


def structure(found: Tensor, control: Tensor) -> float:
    """Mean correlation of the edges of `found` with the edges that were asked for."""
    a, b = (v[:, 0].flatten(1) - v[:, 0].flatten(1).mean(1, keepdim=True) for v in (edges(found), control))
    return float(F.cosine_similarity(a, b).mean())


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Edges of unseen crops as photographs: with the right exemplar, with one of another photograph, and with none.

    large: networks trained for 10 000 steps instead of 600.
    """
    steps = 10_000 if large else 600
    guided, plain = (network(out.parent, steps, kind, device) for kind in (True, False))
    x, y, e = (v.to(device) for v in triples(128, test=True))
    other = e.roll(1, 0)  # row n is of photograph n mod 8
    right, wrong, none = names = "right exemplar", "exemplar of another photograph", "no exemplar"
    ways = dict(zip(names, ((guided, e), (guided, other), (plain, None)), strict=True))
    found = {name: translate(model, y, shown, nfe=20) for name, (model, shown) in ways.items()}
    even = {name: translate(model, y, shown, nfe=20, grid="logsnr") for name, (model, shown) in ways.items()}
    found |= {f"{name}, even in λ": v for name, v in even.items()} | {"edges themselves": y}
    colour = {name: colour_error(v, x) for name, v in found.items()}
    square = {name: float((v - x).square().mean()) for name, v in found.items()}
    kept = {name: structure(v.clamp(-1, 1), y) for name, v in found.items()}
    followed = colour_error(found[wrong], other)
    claims = [
        at_most("error of the mean colour: right exemplar, against 0.85 of another's", colour[right], 0.85 * colour[wrong]),
        at_most("mean square error: right exemplar, against 0.9 of another's", square[right], 0.9 * square[wrong]),
        at_most("error of the mean colour: right exemplar, against a network without", colour[right], colour[none]),
    ]
    page = report(
        "Edges to photographs in the manner of an exemplar",
        f"{len(x)} crops of the right 30 % of eight photographs; networks that learned on the left 70 % for {steps} steps. "
        "The exemplar is a disjoint crop of the same photograph. 20 bridge steps on uniform times (published), or even in λ; "
        "the map is not shown to the network.",
        claims,
    )
    rows = [[name, colour[name], square[name], kept[name]] for name in found]
    page.table(rows, ["", "error of the mean colour", "mean square error", "correlation of edges"])
    rows_shown = {"edges": y, "exemplar": e, "its result": found[right], "log-SNR times": even[right]}
    rows_shown |= {"other exemplar": other, "result of the other": found[wrong], "other, log-SNR times": even[wrong]}
    rows_shown |= {"none, log-SNR times": even[none], "truth": x}
    sheet = labelled_rows({n: v[:8].clamp(-1, 1).cpu() for n, v in rows_shown.items()}, value_range=(-1, 1))
    save_png(sheet, out / "crops.png")
    page.picture(sheet, "Crops that the networks have not seen, one of each photograph.")
    page.save(out / "report.html")
    figures = {"colour": colour, "mean square error": square, "correlation of edges": kept}
    return Result(claims, {**figures, "colour of the other exemplar, missed by": followed, "training steps": steps})
