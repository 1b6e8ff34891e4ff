"""Guidance against exact answers: mixtures whose guided posterior is known, and identities between the rules."""

import math

import pytest
import torch

import unstir
from unstir import steer
from unstir.denoiser import Denoiser, Gaussian, GaussianMixture
from unstir.process import EDM, VP, Flow

PROCESSES = [VP(), EDM(), Flow()]


class Labelled(torch.nn.Module):
    """Exact denoiser of a two-class mixture: label 0 or 1 gives the class, label 2 (null) the mixture."""

    def __init__(self, process) -> None:
        super().__init__()
        self.process, self.shape, self.meta = process, (1,), {"null": {"label": 2}}
        self.laws = [Gaussian(process, [-1.0], std=[0.3]), Gaussian(process, [1.0], std=[0.5])]
        self.laws.append(GaussianMixture(process, [0.5, 0.5], [-1.0, 1.0], [0.09, 0.25]))

    def forward(self, x, t, label=2):
        return self.laws[label](x, t)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["auto", "dpmpp-2m", "ancestral"])
def test_scale_one_is_the_conditional_model_and_zero_the_unconditional(process, plan) -> None:
    model, run = Labelled(process), {"shape": (3, 1), "dtype": torch.float64}
    table = unstir.plan(plan, process, nfe=6)
    one = unstir.sample(steer.cfg(model, 1.0), table, label=0, **run)
    assert torch.equal(one, unstir.sample(model, table, label=0, **run))
    zero = unstir.sample(steer.cfg(model, 0.0), table, label=0, **run)
    torch.testing.assert_close(zero, unstir.sample(model, table, **run))


def test_cfg_is_the_line_through_both_predictions_and_counts_its_calls() -> None:
    model = Labelled(VP())
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    guided = steer.cfg(model, 4.0)
    torch.testing.assert_close(guided(x, 0.5, label=1), model(x, 0.5) + 4 * (model(x, 0.5, 1) - model(x, 0.5)))
    end = unstir.sample(guided, unstir.plan("ddim", model.process, nfe=5), shape=(2, 1), label=1, full=True)
    assert (end.calls.forward, end.calls.rows, end.calls.nested) == (10, 5, 5)


def test_an_interval_saves_calls_and_a_schedule_is_a_function_of_the_log_snr() -> None:
    model = Labelled(EDM())
    plan = unstir.plan("euler", model.process, nfe=10, grid="karras")
    inside = sum(0.5 <= float(model.process.noise_ratio(row.t)) <= 5 for row in plan)
    end = unstir.sample(steer.cfg(model, 3.0, interval=(0.5, 5.0)), plan, shape=(2, 1), label=0, full=True)
    assert end.calls.forward == 10 + inside
    assert 0 < inside < 10
    seen = []
    unstir.sample(steer.cfg(model, lambda lam: seen.append(lam) or 1.0), plan, shape=(2, 1), label=0)
    assert seen == pytest.approx([float(model.process.logsnr(row.t)) for row in plan])


def test_cfg_plus_plus_keeps_the_unconditional_noise() -> None:
    """x' = α' D' + σ' ε̂_u with D' = D_u + w (D_c − D_u): the published step, on DDIM rows."""
    model, process = Labelled(VP()), VP()
    plan = unstir.plan("ddim", process, nfe=4)
    x = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = next(unstir.steps(steer.cfg(model, 0.6, plus=True), plan, x, label=0))
    blunt, sharp = model(x, 1.0), model(x, 1.0, 0)
    noise = (x - process.alpha(1.0) * blunt) / process.sigma(1.0)
    data = blunt + 0.6 * (sharp - blunt)
    torch.testing.assert_close(step.x, process.alpha(step.to) * data + process.sigma(step.to) * noise)


def test_autoguidance_uses_the_weaker_model_with_the_same_conditions() -> None:
    process = VP()
    good, bad = Labelled(process), Labelled(process)
    bad.laws = [Gaussian(process, [-1.0], std=[0.6]), Gaussian(process, [1.0], std=[1.0]), bad.laws[2]]
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        steer.cfg(good, 2.0, base=bad)(x, 0.4, label=1), bad(x, 0.4, 1) + 2 * (good(x, 0.4, 1) - bad(x, 0.4, 1))
    )


def test_rescale_gives_the_conditional_spread() -> None:
    model = Denoiser(lambda x, t, label=0: x * (1 + label), VP(), "data", meta={"null": {"label": 0}})
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    plain, full = (steer.cfg(model, 3.0, rescale=r)(x, 0.5, label=1) for r in (0.0, 1.0))
    torch.testing.assert_close(full.std(1), (2 * x).std(1))
    torch.testing.assert_close(steer.cfg(model, 3.0, rescale=0.7)(x, 0.5, label=1), 0.7 * full + 0.3 * plain)


def test_apg_without_its_changes_is_cfg_and_forgets_between_runs() -> None:
    model = Labelled(VP())
    plan, run = unstir.plan("ddim", model.process, nfe=6), {"shape": (4, 1), "dtype": torch.float64, "label": 1}
    same = unstir.sample(steer.apg(model, 3.0, momentum=0.0, parallel=1.0), plan, **run)
    torch.testing.assert_close(same, unstir.sample(steer.cfg(model, 3.0), plan, **run))
    moving = steer.apg(model, 3.0, momentum=-0.5, parallel=1.0)
    first = unstir.sample(moving, plan, **run)
    assert torch.equal(first, unstir.sample(moving, plan, **run)), "the momentum lives for one run"
    assert not torch.allclose(first, same)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_classifier_guidance_towards_a_class_is_the_class(process) -> None:
    """With the exact log p(c | x_t) of a mixture and scale 1, the guided model is the conditional one."""
    model = Labelled(process)

    def log_prob(x, t):
        return model.laws[0].log_prob(x, t) + math.log(0.5) - model.laws[2].log_prob(x, t)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for t in (0.2, 0.5, 0.8):
        torch.testing.assert_close(steer.classifier(model, log_prob)(x, t), model(x, t, 0), rtol=1e-8, atol=1e-9)


def test_loss_guidance_is_a_gradient_step_through_the_network_and_counts_backward_calls() -> None:
    process = VP()
    model = Denoiser(lambda x, t: torch.tanh(x), process, "data")
    pull = steer.energy(model, lambda d: (d - 0.5).square().sum(1), 0.1)
    x = torch.tensor([[0.3], [-0.7]], dtype=torch.float64)
    d = torch.tanh(x)
    slope = 2 * (d - 0.5) * (1 - d**2)
    factor = float(process.sigma(0.5) ** 2 / process.alpha(0.5))
    torch.testing.assert_close(pull(x, 0.5), d - 0.1 * factor * slope)
    end = unstir.sample(pull, unstir.plan("ddim", process, nfe=4), shape=(2, 1), full=True)
    assert (end.calls.forward, end.calls.backward) == (4, 4)


def test_thresholding_bounds_each_sample_for_itself_and_leaves_small_ones() -> None:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 3, 9]).reshape(4, 1, 1, 1)
    cut = steer.threshold(lambda x, t: x)
    out = cut(x, 0.5)
    assert float(out.abs().max()) <= 1
    assert torch.equal(out[0], x[0])
    assert torch.equal(cut(out, 0.5), out)
    torch.testing.assert_close(cut(x[2:3], 0.5), out[2:3])
    assert torch.equal(steer.threshold(lambda x, t: x, quantile=None)(x, 0.5), x.clamp(-1, 1))
    assert cut(x.half(), 0.5).dtype == torch.float16


def test_transforms_compose() -> None:
    model = Labelled(VP())
    both = steer.threshold(steer.cfg(model, 8.0), quantile=None)
    x = torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None]
    assert torch.equal(both(x, 0.3, label=1), steer.cfg(model, 8.0)(x, 0.3, label=1).clamp(-1, 1))
    unstir.sample(both, nfe=4, shape=(2, 1), label=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: steer.cfg(m, math.nan), "scale=nan"),
        (lambda m: steer.cfg(m, 2.0, rescale=2.0), "rescale=2"),
        (lambda m: steer.cfg(m, 2.0, interval=(3.0, 1.0)), "interval"),
        (lambda m: steer.cfg(Gaussian(VP(), [0.0], std=[1.0]), 2.0), "null="),
        (lambda m: steer.apg(m, 2.0, cap=0.0), "cap=0"),
        (lambda m: steer.threshold(m, quantile=2), "quantile=2"),
        (lambda m: steer.classifier(lambda x, t: x, lambda x, t: x), "process"),
    ],
    ids=["scale", "rescale", "interval", "null", "cap", "quantile", "process"],
)
def test_wrong_settings_are_named(make, words) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make(Labelled(VP()))


def test_guidance_inside_guidance_has_branches_of_its_own():
    """A network that remembers by branch must not be handed what another branch found; the context is left as it was."""
    seen: list[str] = []

    class Net(torch.nn.Module):
        process, meta = VP(), {"null": {"class_labels": 9}}

        def forward(self, x, t, ctx=None, class_labels=0):
            seen.append(ctx.branch)
            ctx.give(label=class_labels)
            return x

    inner = steer.cfg(Net(), 2.0)
    outer = steer.cfg(inner, 3.0, null={"class_labels": 8})
    state = unstir.sample(outer, unstir.plan("ddim", VP(), nfe=1), x=torch.ones(1, 2), class_labels=1, full=True)
    assert seen == ["conditional", "unconditional", "unconditional/conditional", "unconditional/unconditional"]
    assert state.aux["label"] == 1
