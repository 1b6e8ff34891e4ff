"""The parts of the system that can be known exactly; its claims are measured by `unstir reproduce switch-dit`."""

from __future__ import annotations

import copy

import pytest
import torch

from unstir.data import load
from unstir.nets import DiT, Routes, SwitchDiT
from unstir.nets.routing import LEVELS, top
from unstir.plan import sample
from unstir.solvers import plan
from unstir.systems import switch_dit
from unstir.systems.switch_dit import PROCESS, gate_table, routing, untrained
from unstir.train.routing import routing_prior


@pytest.fixture(scope="module")
def model():
    made = untrained(SwitchDiT).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return made


def test_sizes_of_the_dossier():
    """137 716 and 21 609 more: three blocks of three experts and their gates."""
    plain, switch = (sum(p.numel() for p in untrained(kind).parameters()) for kind in (DiT, SwitchDiT))
    assert plain == 137_716
    assert switch - plain == 3 * (3 * (48 * 48 + 48) + 48 * 3 + 3) == 21_609


def test_both_begin_as_the_same_function():
    plain, switch = untrained(DiT), untrained(SwitchDiT)
    for own in (plain, switch):
        torch.manual_seed(0)
        torch.nn.init.normal_(own.network.final_layer.linear.weight)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(plain(x, 0.4, class_labels=2), switch(x, 0.4, class_labels=2))
    assert plain(x, 0.4).any()


def test_the_table_of_a_plan_is_what_its_calls_use(model):
    rows = plan("dpmpp-2m", PROCESS, nfe=5)
    table = gate_table(model, rows)
    assert table.shape == (5, 3, 3)
    assert bool(((table > 0).sum(-1) == 2).all())
    seen = []
    hook = model.network.router.register_forward_hook(lambda router, e, out: seen.append(out.gates))
    sample(model, rows, shape=(2, 1, 8, 8))
    hook.remove()
    calls = [gates for gates in seen if len(gates) == 2]  # and not the 256 levels
    assert len(calls) == 5
    for gates, row in zip(calls, table, strict=True):
        assert torch.allclose(gates, row.expand(2, -1, -1), rtol=0, atol=1e-6)


def test_a_network_without_routes_has_no_table():
    with pytest.raises(TypeError, match="network DiT has no routes to tabulate"):
        gate_table(untrained(DiT), plan("ddim", PROCESS, nfe=2))


def test_what_is_not_in_the_table_is_not_needed(model):
    """Experts that a plan never uses may be left out: the samples are the same."""
    rows = plan("dpmpp-2m", PROCESS, nfe=2)
    unused = ~(gate_table(model, rows) > 0).any(0)
    assert unused.any()
    want = sample(model, rows, shape=(2, 1, 8, 8))
    other = copy.deepcopy(model)
    for mask, none in zip(other.network.masks, unused, strict=True):
        mask.weight[none] = 1e30
        mask.bias[none] = 1e30
    assert torch.equal(sample(other, rows, shape=(2, 1, 8, 8)), want)


def test_a_router_that_follows_the_prior_is_measured_as_such():
    """A router whose probabilities are a table: the windows, their columns dealt so that each block has two on."""
    made = untrained(SwitchDiT)
    windows = routing_prior(made).windows
    order = torch.tensor([0, 3, 6, 1, 4, 7, 2, 5, 8])
    table = windows[:, order].float().unflatten(1, (3, 3))
    assert torch.equal(table.sum(-1), torch.full((LEVELS, 3), 2.0))
    made.network.routes = lambda time: stated(table)
    found = routing(made)
    assert found.distance == pytest.approx(0, abs=1e-7)
    assert found.shared == 4  # three at all levels, one at 95.7 %
    assert torch.equal(found.on, windows.float())
    made.network.routes = lambda time: stated(table[torch.randperm(LEVELS, generator=torch.Generator().manual_seed(0))])
    mixed = routing(made)
    assert mixed.distance > 0.02
    assert abs(mixed.correlation) < 0.1 < 0.5 < found.correlation


def stated(table):
    return Routes(table / 2 * top(table, 2), table / 2)


def test_the_error_of_a_network_that_says_nothing():
    """v = α z − σ x0 against 0: E‖v‖² = α² + σ² E x0² at each of the 13 levels, on average."""
    _, test = load("digits").split(397)
    error = switch_dit.velocity_error(untrained(DiT), test)
    second = float(test.all().square().mean())
    assert error == pytest.approx(0.5 + 0.5 * second, rel=0.01)
