"""Edits: what must come back exactly does, on every process; noises are Gaussian where the picture is typical."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from unstir import steer
from unstir.denoiser import Denoiser, Gaussian, GaussianMixture
from unstir.plan import sample
from unstir.process import EDM, VP, Flow
from unstir.solvers import compile_plan, plan
from unstir.solvers.invertible import two_step
from unstir.solvers.transforms import churn
from unstir.steer import EDITS, decode, edit, edit_plan, encode
from unstir.steer.editing import vp_times

PROCESSES = [VP(), EDM(), Flow()]
MEANS = torch.tensor([[-1.5, 0.5, 0.0], [1.0, -1.0, 1.5]], dtype=torch.float64)
EXACT = ["bdia", "obelm", "edict", "cyclediffusion"]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditional(process):
    """Two classes, each a mixture of two Gaussians round its mean; one network of both, exact."""
    parts = [GaussianMixture(process, [0.6, 0.4], torch.stack([m, m + 0.4]), 0.09) for m in MEANS]

    def network(x, t, label):
        both = torch.stack([part(x, t) for part in parts])
        return both[label, torch.arange(len(x))]

    parts = [part.double() for part in parts]
    return Denoiser(network, process, "data", shape=(3,))


X0 = MEANS[0] + 0.3 * randn(12, 3, seed=1)
FIRST, SECOND = ({"label": torch.full((12,), k)} for k in (0, 1))


# -- there and back ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize(("strength", "nfe"), [(0.6, 20), (0.95, 31)])
def test_round_trips_are_exact(process, method, strength, nfe) -> None:
    options = {"exact": True} if method == "cyclediffusion" else {}
    back = edit(conditional(process), X0, FIRST, FIRST, method, strength, nfe=nfe, **options)
    torch.testing.assert_close(back, X0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_ddim_inversion_is_not(process) -> None:
    errors = [float((edit(conditional(process), X0, FIRST, FIRST, "ddim", nfe=n) - X0).abs().max()) for n in (20, 80)]
    assert 1e-4 < errors[1] < 0.6 * errors[0]


PLANS = {
    "sdedit": ["ancestral", "dpmpp-2m"],
    "ddim": ["ddim", "euler"],
    "bdia": ["bdia", "obelm"],
    "obelm": ["obelm", "heavy-ball"],
    "edict": ["ddim", "dpmpp-2m"],
    "cyclediffusion": ["ancestral", "dpmpp-2m-sde", "dpmpp-sde", "er-sde"],
}


def plan_of(process, method, solver, n=24, strength=0.7):
    process = VP() if solver == "bdia" else process  # where α = 1 it is the leapfrog; the model is converted
    ends = (0.0 if EDITS[method].clean else 0.005) if method != "edict" else 0.005
    nodes = vp_times(process, torch.linspace(strength, ends, n + 1, dtype=torch.float64))
    if solver == "heavy-ball":  # positive momentum can be undone as well
        return two_step(process, nodes, momentum="heavy-ball", gamma=0.9)
    return compile_plan(solver, process, nodes)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(("method", "solver"), [(m, s) for m, solvers in PLANS.items() for s in solvers])
def test_every_method_moves_to_the_target_with_any_of_its_plans(process, method, solver) -> None:
    """Nearer to the target's mean than half way, and nearer to the picture than a new sample of the target is."""
    model, table = conditional(process), plan_of(process, method, solver)
    found = edit(model, X0, FIRST, SECOND, method, plan=table)
    assert bool(torch.isfinite(found).all())
    assert float((found - MEANS[1] - 0.16).norm(dim=1).mean()) < 0.5 * float((X0 - MEANS[1] - 0.16).norm(dim=1).mean())


@pytest.mark.parametrize("method", EDITS)
def test_the_same_edit_on_every_process(method) -> None:
    vp = edit(conditional(VP()), X0, FIRST, SECOND, method, 0.5, nfe=16)
    for process in PROCESSES[1:]:
        torch.testing.assert_close(edit(conditional(process), X0, FIRST, SECOND, method, 0.5, nfe=16), vp, rtol=0, atol=1e-8)
        converted = edit(conditional(VP()).on(process), X0, FIRST, SECOND, method, 0.5, nfe=16)
        torch.testing.assert_close(converted, vp, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", [m for m in EDITS if m != "sdedit"])
def test_an_edit_keeps_more_of_the_picture_than_chance(method) -> None:
    """What distinguishes the pictures within their class is kept: edits go with their own picture, not another."""
    found = edit(conditional(VP()), X0, FIRST, SECOND, method, 0.6)
    own = torch.nn.functional.cosine_similarity(found - found.mean(0), X0 - X0.mean(0)).mean()
    other = torch.nn.functional.cosine_similarity(found - found.mean(0), (X0 - X0.mean(0)).roll(1, 0)).mean()
    assert own > other + 0.4


@pytest.mark.parametrize("method", EDITS)
@pytest.mark.parametrize("nfe", [6, 11])
def test_calls(method, nfe) -> None:
    from unstir._calls import count_calls, counting

    model, seen = conditional(VP()), {"up": 0, "down": 0}

    def counted(where):
        def network(x, t, label):
            seen[where] += 1
            return model.network(x, t, label)

        return Denoiser(network, VP(), "data", shape=(3,))

    with count_calls() as calls, counting(calls):
        edit(counted("up"), X0, FIRST, SECOND, method, nfe=nfe, into=counted("down"))
    assert (seen["up"], seen["down"]) == EDITS[method].calls(nfe)
    assert calls.backward == 0


def test_strength_goes_from_the_picture_to_the_target() -> None:
    model = conditional(VP())
    moved = [float((edit(model, X0, FIRST, SECOND, "sdedit", s) - X0).norm(dim=1).mean()) for s in (0.05, 0.3, 0.6)]
    assert 3 * moved[0] < moved[1] + moved[2]
    assert moved[0] < moved[1] < moved[2]


# -- the encoder ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", ["ancestral", "ddpm-large", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde", "renoise"])
def test_decoding_replays_the_trajectory(process, solver) -> None:
    model, table, states = conditional(process), plan_of(process, "cyclediffusion", solver), []
    encoded = encode(model, table, X0, **FIRST)
    assert sorted(encoded.noises) == [i for i, row in enumerate(table.rows) if row.noisy]
    sample(model, table, x=encoded.x, noise=encoded.noises, on_step=lambda s: states.append(s.x), **FIRST)
    torch.testing.assert_close(states[-1] + encoded.residual, X0, rtol=0, atol=1e-10)
    torch.testing.assert_close(decode(model, table, encoded, exact=True, **FIRST), X0, rtol=0, atol=1e-10)
    if solver in ("ancestral", "renoise"):  # every state is the picture, stirred
        for i, x in enumerate(states[:-1]):
            xi = (x - process.alpha(table.rows[i].to) * X0) / process.sigma(table.rows[i].to)
            assert 0.5 < float(xi.std()) < 1.6


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("trajectory", ["posterior", "independent"])
def test_the_noises_are_those_of_the_definition(process, trajectory) -> None:
    """Two routes: the states of the trajectory by hand, then z = (X' − M)/c from the model's own rows."""
    model = Gaussian(process, torch.zeros(3, dtype=torch.float64), std=0.5)
    table = plan_of(process, "cyclediffusion", "ancestral", 6)
    encoded = encode(model, table, X0, trajectory=trajectory)
    seen = [encoded.x]
    sample(model, table, x=encoded.x, noise=encoded.noises, on_step=lambda s: seen.append(s.x))
    for i, z in encoded.noises.items():
        row = table.rows[i]
        torch.testing.assert_close(z, (seen[i + 1] - row.a * seen[i] - row.b[0] * model(seen[i], row.t)) / row.c)
    drift = [(x - process.alpha(t) * X0) / process.sigma(t) for x, t in zip(seen[:-1], table.times[:-1], strict=True)]
    follow = torch.stack([(a * b).mean() for a, b in pairwise(drift)]).mean()
    assert (float(follow) > 0.4) if trajectory == "posterior" else (abs(float(follow)) < 0.4)


def test_noises_of_typical_pictures_are_standard_normal() -> None:
    """Of draws of the model itself, with small steps: mean 0, variance 1, no correlation from row to row."""
    process = VP()
    model, table = (
        Gaussian(process, torch.zeros(4, dtype=torch.float64), std=1.0),
        plan("ancestral", process, 60, "uniform", 0.9),
    )
    z = torch.stack(list(encode(model, table, randn(60, 4, seed=2)).noises.values()))
    early = z[:50]  # later the prediction's error is divided by a small c
    assert abs(float(early.mean())) < 0.05
    assert float(early.var()) == pytest.approx(1.0, abs=0.08)
    assert abs(float((early[1:] * early[:-1]).mean())) < 0.05


def test_churned_plans_encode_too() -> None:
    model = conditional(VP())
    table = churn(plan("ddim", VP(), 12, vp_times(VP(), torch.linspace(0.7, 0, 13, dtype=torch.float64))))
    encoded = encode(model, table, X0, **FIRST)
    torch.testing.assert_close(decode(model, table, encoded, exact=True, **FIRST), X0, rtol=0, atol=1e-10)
    assert any(not row.evaluate for row in table.rows)
    for i, row in enumerate(table.rows):
        if not row.evaluate:  # pure stirring: the noise is the one that was drawn
            assert 0.6 < float(encoded.noises[i].std()) < 1.4


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = conditional(VP())
    whole = edit(model, X0, FIRST, SECOND, "cyclediffusion")
    part = edit(
        model, X0[[7, 2]], {"label": torch.zeros(2, dtype=torch.long)}, {"label": torch.ones(2, dtype=torch.long)}, index=[7, 2]
    )
    torch.testing.assert_close(part, whole[[7, 2]], rtol=0, atol=1e-12)


def test_two_models_translate_between_their_domains() -> None:
    """No conditions at all: one model goes up, the other comes down; refining follows the second more closely."""
    one, two = (Gaussian(VP(), m, std=0.3) for m in MEANS)
    moved = edit(one, X0, {}, {}, "cyclediffusion", 0.8, into=two)
    torch.testing.assert_close(moved.mean(0), MEANS[1], rtol=0, atol=0.3)
    expected = MEANS[1] + (X0 - MEANS[0])  # of two equal Gaussians, the shift of one to the other
    torch.testing.assert_close(moved, expected, rtol=0, atol=0.25)
    refined = edit(one, X0, {}, {}, "cyclediffusion", 0.8, into=two, refine=0.5)
    assert float((refined - expected).abs().mean()) > float((moved - expected).abs().mean())


def test_sdedit_at_full_strength_is_sampling() -> None:
    process = EDM()
    model, table = Gaussian(process, MEANS[1], std=0.3), edit_plan(process, "sdedit", 1.0, 30)
    x = steer.sdedit(model, table, X0)
    start = sample(model, table, x=process.prior((12, 3), dtype=torch.float64))
    torch.testing.assert_close(x, start, rtol=0, atol=0.1)


# -- wrong input -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "p2p"}, "method='p2p' is unknown; one of sdedit, ddim, bdia"),
        ({"strength": 0.0}, "strength=0.0 must lie in"),
        ({"strength": 1.5}, "strength=1.5"),
        ({"nfe": 1}, "nfe=1"),
        ({"nfe": 2.5}, "nfe=2.5"),
        ({"eta": 0.0}, "adds no noise"),
        ({"colour": 1}, "no option 'colour'"),
        ({"trajectory": "straight"}, "trajectory='straight'"),
        ({"method": "edict", "p": 0.0}, "p=0.0"),
        ({"method": "bdia", "gamma": 0.3}, "gamma nearer to 1"),
        ({"method": "bdia", "gamma": 0.0}, "gamma=0.0"),
        ({"plan": plan("ancestral", VP(), 5), "strength": 0.5}, "strength= has no effect on a given plan"),
        ({"plan": plan("ancestral", VP(), 5), "eta": 0.5}, "eta= has no effect"),
        ({"method": "obelm", "plan": plan("ddim", VP(), 5, end=0.01)}, "cannot be run backwards"),
    ],
)
def test_wrong_arguments_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        edit(conditional(VP()), X0, FIRST, SECOND, **options)


def test_noises_belong_to_their_plan() -> None:
    model = conditional(VP())
    encoded = encode(model, plan("ancestral", VP(), 6), X0, **FIRST)
    with pytest.raises(ValueError, match="is not the one that the picture was encoded with"):
        decode(model, plan("ancestral", VP(), 7), encoded, **FIRST)


def test_single_precision_is_refused_where_it_would_be_lost() -> None:
    with pytest.raises(ValueError, match="float64"):
        edit(conditional(VP()), X0.float(), FIRST, FIRST, "bdia", nfe=60, gamma=0.8)
    assert math.isfinite(float(edit(conditional(VP()), X0.float(), FIRST, FIRST, "obelm").sum()))
