"""The routing prior: bounds, its zero, its matching, its gradient, its levels, and a short training."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unstir import Denoiser, data
from unstir.nets import ChannelRoutedDiT, DiT, SwitchDiT
from unstir.nets.routing import LEVELS, top, window
from unstir.process import EDM, Cosine, Flow
from unstir.train import TrainConfig, fit, routing_prior
from unstir.train.auxiliary import Record
from unstir.train.routing import RoutingPrior, jsd, matching, set_levels

SMALL = {"width": 16, "depth": 2, "heads": 2, "waves": 16}


def model(process=None, time="thousand", kind=SwitchDiT, **options):
    torch.manual_seed(0)
    return Denoiser(kind(1, **SMALL, **options), process or Cosine(), "velocity", time=time, shape=(1, 4, 4))


def probabilities(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def record(probs, table, t):
    extras = {"routing": probs, "routing_table": table}
    return Record(None, None, None, t, None, None, {}, {}, {}, extras)


def test_divergence():
    a, b = probabilities(5, 7), probabilities(5, 7, seed=1)
    m = (a + b) / 2
    kl = (
        torch.distributions.kl_divergence(torch.distributions.Categorical(p), torch.distributions.Categorical(m))
        for p in (a, b)
    )
    assert torch.allclose(jsd(a, b), sum(kl) / 2)
    assert torch.equal(jsd(a, a), torch.zeros(5).double())
    ends = torch.eye(4).double()
    assert torch.allclose(jsd(ends, ends.flip(0)), torch.full((4,), math.log(2)).double())
    assert bool((jsd(a, b) <= math.log(2)).all())


def test_matching_is_the_best_of_all():
    chosen = top(probabilities(20, 2, 3), 2).flatten(1)
    windows = window(torch.linspace(0, 1, 20), 6, 4).to(chosen)

    def cost(order):
        return float((chosen - windows[:, list(order)]).abs().sum())

    assert cost(matching(chosen, windows)) == min(map(cost, itertools.permutations(range(6))))


def test_matching_finds_experts_under_other_names():
    """Without ties the expert, and not its number, decides."""
    windows = window(torch.linspace(0, 1, 400), 6, 4).double()
    flipped = windows.clone()
    flipped[torch.arange(6), torch.arange(6)] = 1 - flipped[torch.arange(6), torch.arange(6)]  # no two columns alike
    for seed in range(5):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(matching(flipped[:, order], flipped), order)


def test_zero_where_the_router_does_what_the_prior_says():
    """Six units in two blocks, three levels, windows 0–3, 0–3 and 2–5: in the order 0 2 4 | 1 3 5 each block has two on."""
    prior = RoutingPrior(torch.tensor([0.1, 0.2, 0.9]).double(), 2, 3, 2)
    table = torch.where(prior.windows[:, [0, 2, 4, 1, 3, 5]], 0.5, 0.0).double().unflatten(1, (2, 3))
    assert torch.equal(table.sum(-1), torch.ones(3, 2).double())
    t = torch.tensor([0.05, 0.21, 0.6]).double()  # nearest to 0.1, 0.2, 0.9
    assert torch.allclose(prior(record(table, table, t)), torch.zeros(3).double(), atol=1e-15)
    wrong = prior(record(table.flip(0), table, t))
    assert float(wrong.max()) > 0.1


def test_bounded_and_only_of_the_batch():
    prior = RoutingPrior(torch.linspace(0, 1, 50).double(), 4, 3, 2)
    probs, table = probabilities(8, 4, 3).requires_grad_(), probabilities(50, 4, 3, seed=1).requires_grad_()
    loss = prior(record(probs, table, torch.linspace(0, 1, 8).double()))
    assert loss.shape == (8,)
    assert bool(((loss > 0) & (loss < math.log(2))).all())
    loss.sum().backward()
    assert torch.isfinite(probs.grad).all()
    assert table.grad is None


def test_levels_are_quantiles_of_the_training_levels():
    """Known in closed form for a straight path with logit-normal times, and for EDM's clock."""
    own = model(Flow())
    t = set_levels(own, "logitnormal:0.5,0.8")
    u = (torch.arange(LEVELS).double() + 0.5) / LEVELS
    assert torch.allclose(t, torch.sigmoid(0.5 + 0.8 * torch.special.ndtri(u)), rtol=0, atol=1e-12)
    assert torch.allclose(own.network.router.levels, (1000 * t).float())
    edm = model(EDM(), time="logsnr")
    t = set_levels(edm, "lognormal")
    assert torch.allclose(edm.network.router.levels.double(), -(-1.2 + 1.2 * torch.special.ndtri(u)), atol=1e-5)
    assert bool((t.diff() > 0).all())
    fixed = model(kind=ChannelRoutedDiT)
    assert torch.allclose(fixed.network.router.levels, (1000 * set_levels(fixed)).float(), rtol=0, atol=1e-3)


def test_only_router_and_time_embedding_learn_from_it():
    own = model()
    prior = routing_prior(own)
    x, t = torch.randn(4, 1, 4, 4), torch.tensor([0.1, 0.3, 0.7, 0.9]).double()
    _, extras = own.network(x, own.decoder(t).time.float())
    prior(record(extras["routing"], extras["routing_table"], t)).mean().backward()
    learned = {name.split(".")[0] for name, p in own.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"router", "t_embedder"}


def test_every_keeps_a_matching_for_some_batches_but_not_in_a_validation():
    prior = RoutingPrior(torch.linspace(0, 1, 50).double(), 2, 3, 2, every=2)
    tables = [probabilities(50, 2, 3, seed=s) for s in range(4)]
    batch = probabilities(8, 2, 3, seed=9), torch.linspace(0, 1, 8).double()
    matches = [prior.match(table) for table in tables]
    assert not torch.equal(matches[0], matches[1])
    used = []
    for table in tables:
        with torch.no_grad():
            prior(record(batch[0], tables[3], batch[1]))
        prior(record(batch[0], table, batch[1]))
        used.append(prior.found.clone())
    assert [torch.equal(a, b) for a, b in zip(used, [matches[i] for i in (0, 0, 2, 2)], strict=True)] == [True] * 4
    again = RoutingPrior(torch.linspace(0, 1, 50).double(), 2, 3, 2, every=2)
    again.load_state_dict(prior.state_dict())  # as a run that goes on
    assert int(again.calls) == 4
    assert torch.equal(again.found, prior.found)


def test_training_brings_the_router_to_the_prior(tmp_path):
    x = data.load(torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    config = TrainConfig(data="x", steps=120, batch=16, lr=1e-2, warmup=0, device="cpu", workers=0, cond_dropout=0.0)
    own = model()
    prior = routing_prior(own)

    def distance():
        with torch.no_grad():
            table = own.network.routes(own.network.router.levels).probs.double()
            return float(prior.distance(table, torch.arange(LEVELS), prior.match(table)).mean())

    before = distance()
    fit(own, x, config, tmp_path, auxiliary={"routing": prior})
    assert before > 0.05
    assert distance() < before / 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: routing_prior(model(kind=DiT)), TypeError, "network DiT has no router"),
        (lambda: routing_prior(model(kind=ChannelRoutedDiT)), TypeError, "ChannelRouter has no experts to choose"),
        (lambda: routing_prior(model(experts=4)), ValueError, "k=2 of experts=4.*no expert can serve all levels"),
        (lambda: routing_prior(model(), alpha=0.0), ValueError, "alpha=0.0 must be > 0"),
        (lambda: routing_prior(model(), every=0), ValueError, "every=0 must be a whole number"),
        (lambda: routing_prior(model(), "unifrom"), ValueError, "unifrom"),
        (
            lambda: routing_prior(model())(Record(*[None] * 6, {}, {}, {}, {})),
            ValueError,
            "the network returned no 'routing'.*nets.SwitchDiT",
        ),
    ],
    ids=["no router", "no experts", "half", "alpha", "every", "levels", "no extras"],
)
def test_what_cannot_be_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_half_the_experts_are_allowed_when_none_need_be_shared():
    assert not routing_prior(model(experts=4), shared=False).windows.all(0).any()
