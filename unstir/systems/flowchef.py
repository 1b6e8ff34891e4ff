"""Steering Rectified Flow Models in the Vector Field for Controlled Image Generation (2025): FlowChef.

For owners of a flow model who want inverse problems and edits without differentiating the network, without inverting,
without training. With v = net(x, t) and D = x − t v a row is

    x ← x − s ∇_D L(D),  K times with the same v,      then  x ← x + (t' − t) v,      the last row free:

the Jacobian ∂D/∂x, near a scaled identity on straight flows, is left out. In the table the shift of x is a shift of D,
D* = D − s ∇L, carried over with the velocity kept.

Parts: `unstir.steer.posterior(…, "flowchef")` for measurements, `unstir.steer.flowchef` for any energy, here `edit`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import load
from ..evaluate import labelled_rows, save_png
from ..plan import Context, Plan, Steered, sample
from ..process import Flow
from ..solvers import plan
from ..steer import Transform, posterior
from ._digits import report
from ._restore import judge, prior, table, tasks
from .protocol import Result, at_least, at_most

START = 0.99  # the bundled network's own process ends there
STEPS = {"box": 0.15, "sr": 0.4}  # s of the two measurements, of norms 1 and 1/2


def euler(nfe: int) -> Plan:
    """Euler's method on the straight process, uniform in t."""
    return plan("euler", Flow(), nfe, "uniform", START, 0.0)


def through(model: Any, operator: Any, y: Tensor, step: float) -> Transform:
    """The same row with the true gradient, x ← x − s ∇_x ½‖y − A D(x, t)‖²: one backward call a row, the baseline."""

    def rule(x: Tensor, t: Any, ctx: Context | None, cond: dict[str, Any]) -> Any:
        with torch.enable_grad():
            u = x.detach().requires_grad_(True)
            data = model(u, t, **cond)
            (slope,) = torch.autograd.grad(0.5 * (y - operator.A(data)).square().sum(), u)
        data = data.detach()
        last = ctx is not None and ctx.last
        return data if last else Steered(data - step * slope, data, "velocity")

    return Transform(rule, model)


def edit(
    model: Any,
    reference: Tensor,
    region: Tensor,
    source: dict[str, Any],
    target: dict[str, Any],
    *,
    scale: float = 2.0,
    step: float = 0.055,
    inner: int = 1,
    layout: int = 0,
) -> Transform:
    """Editing without inversion: D = D⁺ + w M (D⁺ − D⁻), then `inner` steps D ← D − s K (D − reference).

    source, target: keywords of the network for D⁻ and D⁺.   region: M, 1 where the picture may change.
    K = 1 everywhere in the first `layout` rows, which take over the layout, then 1 − M. Two calls a row. The larger
    step · inner, the more is kept and the less becomes what was wanted; the default was chosen on training digits.
    """
    if not bool(((region == 0) | (region == 1)).all()):
        raise ValueError("region has values other than 0 and 1; give a mask that is 1 where the picture may change")
    if not 0 < step < 2:
        raise ValueError(f"step={step} must lie in (0, 2), beyond which the steps diverge")

    def rule(x: Tensor, t: Any, ctx: Context | None, cond: dict[str, Any]) -> Any:
        if ctx is None:
            raise ValueError("edit counts rows: use it with unstir.sample, not by a call of its own")
        wanted, had = model(x, t, **target), model(x, t, **source)
        base = wanted + scale * region * (wanted - had)
        if ctx.last:
            return base
        keep = torch.ones_like(region) if ctx.index < layout else 1 - region
        left = (1 - step) ** inner  # of K (D − reference) after the steps
        return Steered(base - (1 - left) * keep * (base - reference), base, "velocity")

    return Transform(rule, model)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Two measurements of held-out digits, with and without noise, and an edit: the right half becomes the next digit.

    large: all 297 held-out digits instead of 40.
    """
    flow, table_ = Flow(), euler(60)
    model = prior(device).on(flow)
    found: dict[str, dict[str, float]] = {"pseudo-inverse": {}, "true gradient": {}, "FlowChef": {}}
    seconds, calls, saved, shown = {"true gradient": 0.0, "FlowChef": 0.0}, {}, {}, {}
    for task in tasks(297 if large else 40, (0.0, 0.1), device):
        name, step = f"{task.name}, σ_y = {task.noise}", STEPS[task.name]
        steered = {
            "true gradient": through(model, task.operator, task.y, step),
            "FlowChef": posterior(model, task.operator, task.y, "flowchef", task.noise, step=step),
        }
        found["pseudo-inverse"][name] = task.psnr(task.pinv)
        for method, post in steered.items():
            kept_bytes = _SavedBytes()
            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(kept_bytes.pack, lambda held: held):
                state = sample(post, table_, shape=len(task.x), full=True, device=device)
            seconds[method] += time.perf_counter() - started
            found[method][name], calls[method], saved[method] = task.psnr(state.x), state.calls, kept_bytes.total
            if task.noise == 0:
                shown |= {f"{task.name}: truth": task.x[:10].cpu(), f"{task.name}: pseudo-inverse": task.pinv[:10].cpu()}
                shown[f"{task.name}: {method}"] = state.x[:10].cpu()
    save_png(labelled_rows(shown), out / "restored.png")

    edited, kept, right = _edits(model, 297 if large else 60, device, out)
    quiet = [n for n in found["FlowChef"] if n.endswith("0.0")]
    gain = {n: found["FlowChef"][n] - found["pseudo-inverse"][n] for n in quiet}
    claims = [
        at_least(f"PSNR at {quiet[1]}, against the true gradient less 0.3 dB", found["FlowChef"][quiet[1]],
                 found["true gradient"][quiet[1]] - 0.3),
        at_least("PSNR over the pseudo-inverse without noise, both measurements, dB", min(gain.values()), 1.5),
        at_most("backward calls through the network", calls["FlowChef"].backward, 0),
        at_most("calls a row", calls["FlowChef"].forward / len(table_), 1),
        at_most("seconds, against 0.8 of the true gradient's", seconds["FlowChef"], 0.8 * seconds["true gradient"]),
        at_most("bytes kept for gradients, against the true gradient's", saved["FlowChef"], 0.01 * saved["true gradient"]),
        at_most("edit: mean square change outside the region", kept, 0.05),
        at_least("edit: share that a classifier takes for the wanted digit", right, 0.7),
    ]  # fmt: skip
    page = report("FlowChef", f"The bundled digits network seen as a flow; {len(table_)} Euler rows.", claims)
    rows, columns = table(found)
    page.table(rows, columns, best=dict.fromkeys(columns[1:], "max"), caption="PSNR in dB, held-out digits.")
    page.picture(labelled_rows(shown)).text("## Edits: the right half shall turn each digit into the next").picture(edited)
    page.save(out / "report.html")
    return Result(claims, {"PSNR": found, "seconds": seconds, "saved bytes": saved, "edit": {"kept": kept, "right": right}})


class _SavedBytes:
    """All bytes that autograd kept for backward passes in a run."""

    def __init__(self) -> None:
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        self.total += tensor.numel() * tensor.element_size()
        return tensor


def _edits(model: Any, count: int, device: str, out: Path) -> tuple[Any, float, float]:
    """(picture, mean square change of the left half, share judged to be the next digit)."""
    data = load("digits", split="test")
    assert data.labels is not None
    x, had = data.all()[:count].to(device), data.labels[:count].to(device)
    wanted = (had + 1) % 10
    region = torch.zeros(8, 8, device=device)
    region[:, 4:] = 1
    post = edit(model, x, region, {"class_labels": had}, {"class_labels": wanted})
    end = sample(post, euler(30), shape=count, device=device)
    sheet = labelled_rows({"held-out": x[:12].cpu(), "edited": end[:12].cpu()})
    save_png(sheet, out / "edits.png")
    outside = (1 - region).bool()
    return (
        sheet,
        float((end - x)[..., outside].square().mean()),
        float((judge()(end) == wanted.cpu()).double().mean()),
    )
