"""Denoiser = network + process + what the network predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._calls import count_call
from ..process import Process
from ..process.base import EDGE, expand, float64
from ..process.frames import enter
from ..process.table import label_count
from .parts import accepts, check_output, combine, split_output, tree
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
        are given by `outputs`; training may hang losses on them (`train.auxiliary`).
    process: the forward process it was trained on.
    predicts: "data", "noise", "velocity", "flow", "score", "shift" or "edm", see `PREDICTIONS`.
    time: what the network is told: "unit" (t itself), "label" (T·t − 1), "thousand" (1000 t),
        "logsnr", "sigma" (σ̂), "c_noise" (¼ log σ̂), or a callable (process, t) -> tensor.
    sigma_data: standard deviation of the data, used by "edm".
    sees_anchor: the network is given the anchor of an anchored process: as keyword `anchor`, or, if its signature
        has none, as further channels of its input.
    frame: the state that the network is given and whose data it predicts (`process.frames`). "residual" (x − y, and
        D = y + its data) suits restoration. By default "raw" for "data" and "shift", which need no β, else "centred".
    sees_previous: the network is given the D of the call before (zeros in the first), as keyword `previous`, or, if its
        signature has none, as further channels of its input (Analog Bits: Generating Discrete Data using Diffusion Models
        with Self-Conditioning, 2023). The sampler hands it on by itself; guidance has one D for each branch.
    clip: (low, high) to which D is clipped; off unless you ask for it.

    x is (B, *), or a dict of such leaves, then the network is given and returns a dict; t a number or (B,). The result has
    x's shape and dtype.
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
        sees_previous: bool | None = None,
        clip: tuple[float, float] | None = None,
        shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_parts(network, process, time)
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip={clip} must be (low, high) with low < high")
        self.network, self.process, self.time, self.clip = network, process, time, clip
        self.prediction = Prediction(predicts, sigma_data)
        self.sees_anchor = sees_anchor
        self.shape: Any = tree(tuple, shape) if shape is not None else None  # of one sample, without the batch
        self.meta: dict[str, Any] = dict(meta or {})
        self.frame = frame_of(process, predicts, sees_anchor, frame or self.meta.get("frame"))
        if frame is not None:
            self.meta["frame"] = frame  # which model folders keep
        self.sees_previous = bool(self.meta.get("sees_previous") if sees_previous is None else sees_previous)
        if self.sees_previous or "sees_previous" in self.meta:
            self.meta["sees_previous"] = self.sees_previous
        beside = {"anchor": sees_anchor, "previous": self.sees_previous}
        self._joins = [name for name, seen in beside.items() if seen and not accepts(network, name, any_keyword=True)]
        self._names_ctx = accepts(network, "ctx")
        self._wants_ctx = self._names_ctx or self.sees_previous  # asks the executor for it
        self._decoders: dict[Any, Decoder] = {}
        self.plans: dict[int, Any] = {}  # NFE -> plan shipped with the model
        self.codec: Any = None  # of a model of latents: codec.decode(x) makes pictures of its samples (`unstir.codecs`)

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

    def call(self, x: Any, time: Tensor, scale: Any, cond: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """The raw network output and its further outputs, for a ready-made time and input scale (a dict for a dict state)."""
        if type(x) is dict:
            seen: Any = x if scale is None else {leaf: value * scale[leaf] for leaf, value in x.items()}
        else:
            seen = x if scale is None else x * scale
        if self.sees_previous and cond.get("previous") is None:
            cond = {**cond, "previous": tree(torch.zeros_like, x)}
        if self._joins:
            cond = dict(cond)
            for name in self._joins:
                beside = cond.pop(name, None)
                seen = tree(lambda s, b: torch.cat([s, b], 1), seen, self.process._need(beside) if name == "anchor" else beside)
        out = self.network(seen, time, **cond)
        raw, extras = (out, ()) if type(out) is Tensor else split_output(out)
        check_output(raw, x)
        count_call(raw if type(raw) is not dict else next(iter(raw.values())))
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

    def outputs(self, x: Any, t: Tensor | float, ctx: Any = None, **cond: Any) -> tuple[Any, tuple[Any, ...]]:
        """(D, extras): the data prediction and whatever else the network returned; ctx: of a run, see `forward`."""
        if ctx is not None and self._names_ctx:
            cond["ctx"] = ctx
        if ctx is None or not self.sees_previous:
            return self._outputs(x, t, cond)
        memory, key = ctx.run.memory, (self, ctx.branch)  # a run's own, permuted with its samples
        cond.setdefault("previous", memory.get(key))
        data, extras = self._outputs(x, t, cond)
        memory[key] = data
        return data, extras

    def _outputs(self, x: Any, t: Tensor | float, cond: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        if type(x) is dict:
            return self._leaves(x, t, cond)
        m, n, time, scale = self._at(t, x)
        anchor = cond.get("anchor")
        if self.frame != "raw":
            x = enter(self.process, self.frame, x, t, anchor)
        raw, extras = self.call(x, time, scale, cond)
        data = combine(((m, x), (n, raw)))
        if self.frame == "residual":
            data = data + anchor  # type: ignore[operator]
        return (data if self.clip is None else data.clamp(*self.clip)), extras

    def _leaves(self, x: dict[str, Tensor], t: Tensor | float, cond: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """`_outputs` of a dict state: every leaf is stirred by the one process, to the one time."""
        if self.process.anchored or isinstance(t, Mapping):
            raise ValueError("a dict state needs a process without an anchor and one time for all leaves")
        like = next(iter(x.values()))
        m, n, time, scale = self.decoder(float64(t).to(like.device).expand(len(like)))
        scales = None if scale is None else {leaf: expand(scale, value) for leaf, value in x.items()}
        raw, extras = self.call(x, time.to(like.dtype), scales, cond)
        data = {k: combine(((expand(m, v), v), (expand(n, v), raw[k]))) for k, v in x.items()}
        return (data if self.clip is None else {k: v.clamp(*self.clip) for k, v in data.items()}), extras

    def forward(self, x: Any, t: Tensor | float, ctx: Any = None, **cond: Any) -> Any:
        """The data prediction D(x, t), of x's shape and dtype.

        The row context goes to a network that asks for it; of a run, a network that `sees_previous` is given the last D.
        """
        return (self._outputs(x, t, cond) if ctx is None else self.outputs(x, t, ctx, **cond))[0]  # a row counts in µs

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
