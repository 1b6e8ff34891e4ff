"""Denoiser = network + process + what the network predicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._calls import count_call
from ..process import Process
from ..process.base import EDGE, expand, float64
from ..process.frames import enter
from ..process.table import label_count
from .prediction import Prediction, frame_of


def _label(process: Process, t: Tensor) -> Tensor:
    own = getattr(process, "label", None)
    return own(t) if own is not None else (label_count(process) * t - 1).clamp_min(0)


TIMES: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "unit": lambda process, t: t,
    "label": _label,  # the process's own label, else T·t − 1, at least 0 (T = 1000 unless the process is a table)
    "thousand": lambda process, t: 1000 * t,
    "logsnr": lambda process, t: process.logsnr(t),
    "sigma": lambda process, t: process.noise_ratio(t),
    "c_noise": lambda process, t: -0.25 * process.logsnr(t),  # ¼ log σ̂
}


class Decoder(NamedTuple):
    """Numbers of one evaluation time: D = m x + n · network(scale · x, time)."""

    m: Any
    n: Any
    time: Tensor
    scale: Any


class Denoiser(nn.Module):
    """A network that, through its process, predicts the data: model(x, t, **cond) -> D ≈ E[x0 | x_t].

    network: any callable network(x, t, **cond); the output may be a tensor, a tuple whose first
        entry is the prediction, or an object or dict with `sample` (diffusers). Further outputs
        are given by `outputs`.
    process: the forward process it was trained on.
    predicts: "data", "noise", "velocity", "flow", "score", "shift" or "edm", see `PREDICTIONS`.
    time: what the network is told: "unit" (t itself), "label" (T·t − 1), "thousand" (1000 t),
        "logsnr", "sigma" (σ̂), "c_noise" (¼ log σ̂), or a callable (process, t) -> tensor.
    sigma_data: standard deviation of the data, used by "edm".
    sees_anchor: the network is given the anchor of an anchored process: as keyword `anchor`, or, if its signature
        has none, as further channels of its input.
    frame: the state that the network is given and whose data it predicts (`process.frames`). "residual" (x − y, and
        D = y + its data) suits restoration. By default "raw" for "data" and "shift", which need no β, else "centred".
    clip: (low, high) to which D is clipped; off unless you ask for it.

    x is (B, *); t a number or (B,). The result has x's shape and dtype.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        process: Process,
        predicts: str = "noise",
        *,
        time: str | Callable[[Process, Tensor], Tensor] = "unit",
        sigma_data: float = 0.5,
        sees_anchor: bool = False,
        frame: str | None = None,
        clip: tuple[float, float] | None = None,
        shape: tuple[int, ...] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_parts(network, process, time)
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip={clip} must be (low, high) with low < high")
        self.network, self.process, self.time, self.clip = network, process, time, clip
        self.prediction = Prediction(predicts, sigma_data)
        self.sees_anchor = sees_anchor
        self.shape = tuple(shape) if shape is not None else None  # of one sample, without the batch
        self.meta: dict[str, Any] = dict(meta or {})
        self.frame = frame_of(process, predicts, sees_anchor, frame or self.meta.get("frame"))
        if frame is not None:
            self.meta["frame"] = frame  # which model folders keep
        self._joins = sees_anchor and not accepts(network, "anchor", any_keyword=True)
        self._wants_ctx = accepts(network, "ctx")
        self._decoders: dict[Any, Decoder] = {}
        self.plans: dict[int, Any] = {}  # NFE -> plan shipped with the model

    def decoder(self, t: Tensor) -> Decoder:
        """The numbers of evaluations at times t (any shape), in float64."""
        t = float64(t)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        if self.prediction.kind in ("noise", "score") and bool((alpha == 0).any()):
            raise ValueError(
                f"a network that predicts {self.prediction.kind} says nothing about the data where α = 0 "
                f"(t = {float(t[alpha == 0].flatten()[0]) if t.ndim else float(t):g}); "
                "start the plan at a smaller t, or train with predicts='velocity', 'flow' or 'data'"
            )
        if bool(((alpha == 0) & (sigma == 0)).any()):  # a bridge at its anchor: the limit
            alpha, sigma = self.process.alpha(t.clamp_max(1 - EDGE)), self.process.sigma(t.clamp_max(1 - EDGE))
        m, n = self.prediction.decode(alpha, sigma)
        time = TIMES[self.time](self.process, t) if isinstance(self.time, str) else self.time(self.process, t)
        return Decoder(m, n, time, self.prediction.input_scale(alpha, sigma))

    def call(self, x: Tensor, time: Tensor, scale: Any, cond: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """The raw network output and its further outputs, for a ready-made time and input scale."""
        seen = x if scale is None else x * scale
        if self._joins:
            cond = dict(cond)
            seen = torch.cat([seen, self.process._need(cond.pop("anchor", None))], 1)
        out = self.network(seen, time, **cond)
        raw, extras = (out, ()) if type(out) is Tensor else split_output(out)
        if isinstance(raw, Tensor) and raw.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(raw.shape)} for a state of shape {tuple(x.shape)}; "
                "return a tensor of the state's shape (extra outputs as further entries of a tuple)"
            )
        count_call(raw)
        return raw, extras

    def _at(self, t: Tensor | float, x: Tensor) -> Decoder:
        """`decoder`, in the form in which one call needs it: numbers for a common t, (B, 1, …) tensors else.

        A run asks for the same few times over and over (every sample, guidance branch and row), so
        the numbers of a common time are kept. Concurrent writers write equal values. A time that the
        network changed in place (its version counter says so) is made again.
        """
        if isinstance(t, Tensor) and t.ndim > 0:
            m, n, time, scale = self.decoder(t.to(x.device))
            return Decoder(expand(m, x), expand(n, x), time.to(x.dtype, copy=True), None if scale is None else expand(scale, x))
        key = (float(t), x.dtype, x.device, x.shape[0])
        known = self._decoders.get(key)
        if known is None or known.time._version:
            with torch.inference_mode(False):  # whose tensors count no versions, nor serve autograd later
                m, n, time, scale = self.decoder(float64(key[0]))
                time = time.to(x.device, x.dtype).expand(x.shape[0]).clone()
            known = Decoder(float(m), float(n), time, None if scale is None else float(scale))
            if len(self._decoders) > 10_000:
                self._decoders.clear()
            self._decoders[key] = known
        return known

    def outputs(self, x: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """(D, extras): the data prediction and whatever else the network returned."""
        m, n, time, scale = self._at(t, x)
        anchor = cond.get("anchor")
        if self.frame != "raw":
            x = enter(self.process, self.frame, x, t, anchor)
        raw, extras = self.call(x, time, scale, cond)
        data = combine(((m, x), (n, raw)))
        if self.frame == "residual":
            data = data + anchor  # type: ignore[operator]
        return (data if self.clip is None else data.clamp(*self.clip)), extras

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Tensor:
        """The data prediction D(x, t), of x's shape and dtype. The row context goes to a network that asks for it."""
        if ctx is not None and self._wants_ctx:
            cond["ctx"] = ctx
        return self.outputs(x, t, **cond)[0]

    def on(self, process: Process) -> ConvertedDenoiser:
        """This model as a denoiser of another process.

        The same λ gives the same scaled state x/α on every (α, σ) path, so
        D'(x, t) = D(x · α(s)/α'(t), s) with λ(s) = λ'(t): the conversion is exact and free.
        """
        return ConvertedDenoiser(self, process)

    def extra_repr(self) -> str:
        return f"process={self.process!r}, predicts={self.prediction.kind!r}, time={self.time!r}"


def check_parts(network: Any, process: Any, time: Any) -> None:
    """TypeError or ValueError unless these are a callable network, a process, and a name in `TIMES` or a callable."""
    if not callable(network):
        raise TypeError(f"network is {type(network).__name__}; it must be callable as network(x, t)")
    if not isinstance(process, Process):
        raise TypeError(f"process is {type(process).__name__}; it must be an unstir.process.Process")
    if isinstance(time, str) and time not in TIMES:
        raise ValueError(f"time={time!r} is unknown; one of {', '.join(TIMES)} or a callable")


class ConvertedDenoiser(nn.Module):
    """A denoiser seen from another process; see `Denoiser.on`."""

    def __init__(self, model: Any, process: Process) -> None:
        super().__init__()
        if model.process.anchored or process.anchored:
            raise ValueError("only processes without an anchor can be exchanged")
        if model.process.tails != process.tails:
            raise ValueError(
                f"the model was trained on {model.process!r} and the other process is {process!r}: the noise must be of one "
                "law; wrap the other in process.Poisson with the same D"
            )
        self.model, self.process = model, process
        self.shape, self.hooks = getattr(model, "shape", None), getattr(model, "hooks", ())

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Any:
        from .inner import call  # which builds on this module

        source = self.model.process
        t = float64(t).to(x.device)
        s = source.time(self.process.logsnr(t))
        lam = self.process.logsnr(t)
        if bool((lam < source.logsnr(1.0) - 1e-9).any()):
            raise ValueError(
                f"λ = {float(lam.min()):.3f} is noisier than the model's process reaches "
                f"(λ = {float(source.logsnr(1.0)):.3f} at t = 1); start the plan at a smaller t"
            )
        # x/α' · α, by way of σ where α' vanishes: α/α' = (σ/σ') at equal λ.
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        ratio = torch.where(alpha > sigma, source.alpha(s) / alpha, source.sigma(s) / sigma)
        return call(self.model, expand(ratio, x) * x, s, ctx, cond)


def split_output(out: Any) -> tuple[Any, tuple[Any, ...]]:
    """(prediction, further outputs) of whatever a network returned."""
    if isinstance(out, Tensor):
        return out, ()
    if isinstance(out, tuple | list):
        return out[0], tuple(out[1:])
    if hasattr(out, "sample") and isinstance(out.sample, Tensor):
        return out.sample, ()
    if isinstance(out, Mapping):
        if isinstance(out.get("sample"), Tensor):
            return out["sample"], tuple(v for k, v in out.items() if k != "sample")
        return dict(out), ()
    raise TypeError(f"the network returned {type(out).__name__}; return a tensor, a tuple or an object with .sample")


def combine(terms: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """Σ w · x over (w, x) pairs with weights that are numbers or broadcasting tensors.

    Weights 0 are skipped and a weight 1 is not multiplied, so that a row which returns its
    prediction returns it exactly. What is given is never changed; a sum of its own grows in place,
    unless autograd is watching.
    """
    total: Tensor | None = None
    free = not torch.is_grad_enabled()
    own = False  # is `total` ours to change?
    for weight, x in terms:
        if type(weight) is not float:
            return _combine_tensors(terms)
        if own:
            total.add_(x, alpha=weight)  # type: ignore[union-attr]
        elif weight == 0.0:
            continue
        elif total is not None:
            total, own = torch.add(total, x, alpha=weight), free
        elif weight == 1.0:
            total = x
        else:
            total, own = x * weight, free
    return torch.zeros_like(terms[0][1]) if total is None else total


def _combine_tensors(terms: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """`combine` where weights may be tensors or any numbers; never in place."""
    total: Tensor | None = None
    for weight, x in terms:
        if isinstance(weight, Tensor):
            w = weight.to(x)
            total = x * w if total is None else torch.addcmul(total, x, w)
        elif float(weight) != 0:
            part = x if float(weight) == 1 else x * float(weight)
            total = part if total is None else total + part
    return torch.zeros_like(terms[0][1]) if total is None else total


def accepts(function: Callable[..., Any], name: str, any_keyword: bool = False) -> bool:
    """Does a network or transform ask for the keyword `name` by naming it in its signature (or, any_keyword, by **)?"""
    if isinstance(function, nn.Module):
        return _names(type(function).forward, name, any_keyword)
    try:
        return _names(function, name, any_keyword)
    except TypeError:  # not hashable
        return False


@lru_cache(maxsize=1024)
def _names(function: Callable[..., Any], name: str, any_keyword: bool = False) -> bool:
    try:
        known = inspect.signature(function).parameters
        return name in known or (any_keyword and any(p.kind is p.VAR_KEYWORD for p in known.values()))
    except (TypeError, ValueError):
        return False
