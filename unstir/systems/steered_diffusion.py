"""Steered Diffusion: A Generalized Framework for Plug-and-Play Conditional Image Synthesis (2023).

For owners of one unconditional model and of any differentiable inverse model, such as a classifier, who want pictures
that agree with a condition at about the price of unconditional ones. The estimate of the clean picture is corrected and
the noise estimate recomputed from it ("implicit"),

    linear condition     D' = D − A⁺ (A D − y)
    inverse model        D' = D − λ σ̂ ∇_x̂ ℓ(D(x, t)),

instead of adding the gradient to the next state ("explicit"); a level may be visited several times.

Parts: `unstir.steer.steered` and `Term`, `posterior(…, "steered")`, and `repaint_plan(plan, 1, N)` for the inner loop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import load
from ..evaluate import frechet, labelled_rows, save_png
from ..plan import Context, Steered, sample
from ..process import VP
from ..solvers import plan
from ..steer import Term, Transform, posterior, repaint_plan, steered
from ._digits import report, trained
from ._restore import judge, table, tasks
from .protocol import Result, at_least, at_most

ROWS = 50


def logistic(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Logits (B, 10) of a logistic regression on clean training pixels: the inverse model."""
    data = load("digits", split="train")
    pixels, labels = data.all().flatten(1), data.labels
    assert labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(64, 10)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(pixels), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    layer.requires_grad_(False)
    return lambda x: layer(x.flatten(1))


def wanted(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The energy of wanting these classes: the cross-entropy, one number a sample."""
    return lambda data: nn.functional.cross_entropy(logits(data), labels.to(data.device), reduction="none")


def explicit(model: Any, energy: Callable[[Tensor], Tensor], weight: float) -> Transform:
    """The baseline, guidance of the row's mean by its variance: X' ← X' − λ c² ∇_x ℓ(D(x, t)); the noise estimate is kept."""

    def rule(x: Tensor, t: Any, ctx: Context | None, cond: dict[str, Any]) -> Steered:
        if ctx is None:
            raise ValueError("explicit needs the variance of a row: use it with unstir.sample, not by a call of its own")
        with torch.enable_grad():
            u = x.detach().requires_grad_(True)
            data = model(u, t, **cond)
            (slope,) = torch.autograd.grad(energy(data).sum(), u)
        data = data.detach()
        move = weight * float(ctx.std) ** 2 * slope
        return Steered(data - move / max(float(model.process.alpha(ctx.to)), 1e-12), data, "noise")  # α' (D' − D) = −move

    return Transform(rule, model)


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Digits of wanted classes from an unconditional model and a logistic regression; two linear conditions.

    large: 1000 samples instead of 200, and a network trained for 4800 steps instead of 1500.
    """
    process, count = VP(), 1000 if large else 200
    model = trained(process, out.parent, 4800 if large else 1500).to(device)
    labels = torch.arange(count) % 10
    energy = wanted(logistic(), labels)
    base = plan("ancestral", process, ROWS)
    runs = {
        "unguided": (model, base),
        "implicit 1": (steered(model, Term(energy)), base),
        "implicit 1, 3 times a level": (steered(model, Term(energy)), repaint_plan(base, 1, 3)),
        **{f"implicit {w:g}": (steered(model, Term(energy, w)), base) for w in (2.0, 3.0, 6.0)},
        **{f"explicit {w:g}": (explicit(model, energy, w), base) for w in (1.0, 3.0, 10.0)},
    }
    real, decide = load("digits").all(), judge()
    found: dict[str, dict[str, float]] = {}
    shown: dict[str, Tensor] = {}
    for name, (guided, rows) in runs.items():
        state = sample(guided, rows, shape=count, full=True, device=device)
        x = state.x.cpu()
        found[name] = {
            "accuracy": float((decide(x) == labels).double().mean()),
            "Fréchet distance": frechet(real, x, "pixel-pca:20").value,
            "forward": state.calls.forward,
            "backward": state.calls.backward,
        }
        shown[name] = x[:10]
    save_png(labelled_rows(shown), out / "classes.png")

    linear: dict[str, dict[str, float]] = {"pseudo-inverse": {}, "steered": {}}
    off = 0.0
    for task in tasks(100, (0.0,), device):
        end = sample(posterior(model, task.operator, task.y, "steered"), base, shape=len(task.x), device=device)
        linear["pseudo-inverse"][task.name], linear["steered"][task.name] = task.psnr(task.pinv), task.psnr(end)
        off = max(off, float((task.operator.A(end) - task.y).abs().max()))
        shown |= {f"{task.name}: pseudo-inverse": task.pinv[:10].cpu(), f"{task.name}: steered": end[:10].cpu()}
    save_png(labelled_rows(shown), out / "steered.png")

    def best(kind: str) -> float:
        """The least Fréchet distance among the strengths with 95 % of the wanted classes: explicit and implicit λ differ."""
        able = [v["Fréchet distance"] for k, v in found.items() if k.startswith(kind) and v["accuracy"] >= 0.95]
        return min(able, default=float("inf"))

    free, one, three = (found[name] for name in list(runs)[:3])
    claims = [
        at_least("implicit, λ = 1: share of wanted classes", one["accuracy"], 0.8),
        at_least("implicit against explicit + 0.1, both λ = 1: share", one["accuracy"], found["explicit 1"]["accuracy"] + 0.1),
        at_most("Fréchet distance at a share of 0.95, implicit against explicit", best("implicit"), best("explicit")),
        at_least("three times a level: share, against once + 0.08", three["accuracy"], one["accuracy"] + 0.08),
        at_most("three times a level: Fréchet distance, against unguided", three["Fréchet distance"], free["Fréchet distance"]),
        at_most("calls a row, forward", one["forward"] / ROWS, 1),
        at_most("calls a row, backward", one["backward"] / ROWS, 1),
        at_most("linear conditions: largest |A x − y|", off, 1e-5),
    ]
    page = report(
        "Steered Diffusion",
        f"A small network of the digits, without its labels; {ROWS} ancestral rows, {count} samples. "
        "The inverse model is a logistic regression, the judge a support vector machine.",
        claims,
    )
    page.table(*table(found)).picture(labelled_rows(shown))
    page.table(*table(linear), caption="PSNR in dB (of samples; the network has seen these digits).")
    page.save(out / "report.html")
    return Result(claims, {"classes": found, "linear": linear})
