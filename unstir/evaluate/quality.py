"""How close a restored picture or sound is to the truth, always beside the input it was made from.

A restorer that returns its input scores well on many pictures, so no number here stands alone: a
`Tally` measures the restored sample and the input by the same metrics. Metrics are functions
(estimate, reference) -> one number per sample. SSIM and LPIPS are those of torchmetrics
(`unstir[metrics]`), ESTOI that of pystoi (`unstir[speech]`), PESQ that of pesq (`unstir[pesq]`,
which needs a C compiler); a tally leaves out a metric whose package or weights are not there, and
says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extras import need
from .samples import Score

Metric = Callable[[Tensor, Tensor], Tensor]
ALEXNET = "alexnet-owt-7be5be79.pth"


def _pair(x: Tensor, reference: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU. ValueError or TypeError where they cannot be compared."""
    for name, value in (("x", x), ("reference", reference)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} is {getattr(value, 'dtype', type(value).__name__)}; it must be a tensor of floats")
        if value.ndim < 2 or (axes > 2 and value.ndim != axes) or value.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must have {'at least ' * (axes == 2)}{axes} axes")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} contains NaN or infinite values")
    if x.shape != reference.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and reference {tuple(reference.shape)}; they must be equal")
    return x.detach().cpu().double(), reference.detach().cpu().double()


@dataclass(frozen=True)
class Quality:
    """One metric over n samples: means of the restored samples and of the inputs, in `unit`.

    better: "max" or "min". Samples on which the metric is undefined (silence, equal pictures with
    an infinite PSNR) are not in the means and not in n.
    """

    name: str
    unit: str
    better: str
    restored: float
    input: float
    n: int

    @property
    def gain(self) -> float:
        """restored − input, with the sign turned so that positive is better."""
        return (self.restored - self.input) * (1 if self.better == "max" else -1)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} {self.input:.4g} → {self.restored:.4g}{unit} (n = {self.n})"


# -- pictures ---------------------------------------------------------------------------------------
def psnr(x: Tensor, reference: Tensor, span: float = 2.0) -> Tensor:
    """10 log₁₀(span²/MSE) in dB, (B,); pictures (B, *) whose values span `span` (2 for [−1, 1]). ∞ for equal ones."""
    x, reference = _pair(x, reference, 2)
    return 10 * torch.log10(span**2 / (x - reference).square().flatten(1).mean(1))


def ssim(x: Tensor, reference: Tensor, span: float = 2.0) -> Tensor:
    """Mean structural similarity, (B,), of pictures (B, C, H, W):

        (2 μ μ' + c₁)(2 cov + c₂) / ((μ² + μ'² + c₁)(σ² + σ'² + c₂)),    c₁ = (0.01 span)², c₂ = (0.03 span)²

    with local moments under a Gaussian window of σ = 1.5, 11 × 11 (Image Quality Assessment: From
    Error Visibility to Structural Similarity, 2004); the mean is over channels and those pixels
    whose window lies in the picture, NaN where none does.
    """
    x, reference = _pair(x, reference, 4)
    if min(x.shape[2:]) < 11:
        return torch.full((len(x),), torch.nan, dtype=torch.float64)
    measure = need("torchmetrics.functional.image").structural_similarity_index_measure
    # The full map reaches to the border, by reflection; the paper and scikit-image look at the inner part.
    _, full = measure(x, reference, sigma=1.5, kernel_size=11, data_range=span, reduction="none", return_full_image=True)
    return full[..., 5:-5, 5:-5].flatten(1).mean(1)


def lpips(x: Tensor, reference: Tensor) -> Tensor:
    """Learned perceptual distance on AlexNet, (B,), of pictures (B, 1 or 3, H, W) in [−1, 1].

    (The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018.) ImportError unless
    torchvision's AlexNet weights already lie in the cache of torch.hub: nothing is downloaded.
    """
    if reason := lpips_missing():
        raise ImportError(reason)
    x, reference = (v.float().expand(-1, 3, -1, -1).clamp(-1, 1) for v in _pair(x, reference, 4))
    distance = need("torchmetrics.functional.image").learned_perceptual_image_patch_similarity
    return torch.stack([distance(a[None], b[None], net_type="alex") for a, b in zip(x, reference, strict=True)])


def lpips_missing() -> str:
    """Why LPIPS cannot be measured here; empty if it can."""
    for module in ("torchmetrics", "torchvision"):
        if importlib.util.find_spec(module) is None:
            return f"LPIPS needs {module}, which is not installed"
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    return "" if weights.is_file() else f"LPIPS needs the weights {weights}, which are not there; nothing is downloaded"


# -- sound ------------------------------------------------------------------------------------------
def si_sdr(x: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, (B,), of sounds (B, T), means removed:

        10 log₁₀ ‖a s‖²/‖a s − x‖²,    a = ⟨x, s⟩/⟨s, s⟩,  s the reference

    (SDR – Half-baked or Well Done?, 2019.) NaN where the reference or the estimate is silent.
    """
    x, reference = _pair(x, reference, 2)
    x, s = x - x.mean(1, keepdim=True), reference - reference.mean(1, keepdim=True)
    a = (x * s).sum(1, keepdim=True) / s.square().sum(1, keepdim=True)
    ratio = (a * s).square().sum(1) / (a * s - x).square().sum(1)
    return torch.where(x.any(1), 10 * ratio.log10(), torch.nan)


def estoi(x: Tensor, reference: Tensor, rate: int) -> Tensor:
    """Extended short-time objective intelligibility, (B,), about 0 to 1, of sounds (B, T) at `rate` Hz.

    (An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise Maskers,
    2016.) NaN for less than about 0.4 s of speech, where it is not defined.
    """
    x, reference = _pair(x, reference, 2)
    stoi = need("pystoi").stoi

    def one(a: Any, s: Any) -> float:
        if not s.any():
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pystoi warns "Not enough STFT frames" and returns 1e-5
            try:
                return float(stoi(s, a, rate, extended=True))
            except (RuntimeWarning, ValueError):
                return math.nan

    return torch.tensor([one(a, s) for a, s in zip(x.numpy(), reference.numpy(), strict=True)], dtype=torch.float64)


def pesq(x: Tensor, reference: Tensor, rate: int) -> Tensor:
    """Perceptual evaluation of speech quality (ITU-T P.862), (B,), about 1 to 4.5, of sounds (B, T) at `rate` Hz.

    Wide-band at 16 kHz and above, to which sounds are brought; narrow-band at 8 kHz below. NaN where
    no speech is found.
    """
    x, reference = _pair(x, reference, 2)
    module, (mode, at) = need("pesq"), ("wb", 16000) if rate >= 16000 else ("nb", 8000)
    if rate != at:
        poly = need("scipy.signal").resample_poly
        common = math.gcd(rate, at)
        x, reference = (torch.from_numpy(poly(v.numpy(), at // common, rate // common, axis=-1)) for v in (x, reference))

    def one(a: Any, s: Any) -> float:
        try:
            return float(module.pesq(at, s.astype("float32"), a.astype("float32"), mode))
        except (module.PesqError, ValueError):  # no utterance found, too short
            return math.nan

    return torch.tensor([one(a, s) for a, s in zip(x.numpy(), reference.numpy(), strict=True)], dtype=torch.float64)


# -- records ----------------------------------------------------------------------------------------
class Kind(NamedTuple):
    """A metric with its unit, and whether more ("max") or less ("min") of it is better."""

    metric: Metric
    unit: str = ""
    better: str = "max"


def picture_metrics() -> dict[str, Kind]:
    """Metrics of pictures (B, C, H, W) in [−1, 1]."""
    return {"PSNR": Kind(psnr, "dB"), "SSIM": Kind(ssim), "LPIPS[alex]": Kind(lpips, better="min")}


def sound_metrics(rate: int) -> dict[str, Kind]:
    """Metrics of sounds (B, T) at `rate` Hz."""
    return {
        "SI-SDR": Kind(si_sdr, "dB"),
        "ESTOI": Kind(partial(estoi, rate=rate)),
        "PESQ-WB" if rate >= 16000 else "PESQ-NB": Kind(partial(pesq, rate=rate)),
    }


def paired(x: Tensor, reference: Tensor, metrics: Mapping[str, Kind] | None = None, batch: int = 64) -> list[Score]:
    """PSNR, SSIM and LPIPS (where its weights are there) of pictures (n, C, H, W) in [−1, 1], row i against row i.

    value: the mean over the pairs where the metric is defined and finite, `n_fake` of them; error: its standard error;
    floor: None, since equal pictures have no distance. What could not be measured, and pairs left out, stand in the notes.
    Metrics by `picture_metrics` unless given.
    """
    _pair(x, reference, 4)
    kinds, found = dict(metrics or picture_metrics()), []
    for name, kind in kinds.items():
        try:
            parts = [kind.metric(a, b).double() for a, b in zip(x.split(batch), reference.split(batch), strict=True)]
        except ImportError:
            continue
        values = torch.cat(parts)
        kept = values[values.isfinite()]
        left = len(values) - len(kept)
        notes = (f"undefined or infinite in {left} of {len(values)} pairs",) if left else ()
        if len(kept):
            error = float(kept.std()) / math.sqrt(len(kept)) if len(kept) > 1 else None
            found.append(Score(float(kept.mean()), name, len(kept), len(kept), None, 0, notes=notes, error=error))
    return found


class Tally:
    """Measures samples beside their inputs, and averages at the end.

    `missing` tells, by metric, why it could not be measured (a package, weights).
    """

    def __init__(self, metrics: Mapping[str, Kind]) -> None:
        self.metrics = dict(metrics)
        self.missing: dict[str, str] = {}
        self._values: dict[str, list[tuple[float, float]]] = {name: [] for name in metrics}

    def add(self, restored: Tensor, given: Tensor, reference: Tensor) -> dict[str, tuple[float, float]]:
        """{metric: (restored, input)} of one batch, means over its samples."""
        found = {}
        for name, kind in self.metrics.items():
            try:
                pairs = torch.stack([kind.metric(restored, reference), kind.metric(given, reference)], 1).double()
            except ImportError as error:
                self.missing[name] = str(error)
                continue
            self._values[name] += [(float(a), float(b)) for a, b in pairs]
            found[name] = (float(pairs[:, 0].mean()), float(pairs[:, 1].mean()))
        return found

    def result(self) -> list[Quality]:
        """A `Quality` for every metric that was defined on at least one sample."""
        out = []
        for name, pairs in self._values.items():
            kept = torch.tensor([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=torch.float64)
            if len(kept):
                restored, given = kept.mean(0).tolist()
                kind = self.metrics[name]
                out.append(Quality(name, kind.unit, kind.better, restored, given, len(kept)))
        return out
