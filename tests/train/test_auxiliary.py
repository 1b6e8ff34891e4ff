"""Auxiliary losses and learned weights: what is optimised, logged and saved; and that nothing of it is left at sampling."""

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from auxiliary_parts import Decoder, energy, make_two_heads
from training_parts import make_data

import unstir
from unstir._files import read_tensors
from unstir.train import Objective, TrainConfig, fit
from unstir.train.auxiliary import auxiliaries, named
from unstir.train.checkpoint import checkpoints
from unstir.train.parallel import World
from unstir.train.trainer import _prepare
from unstir.train.uncertainty import Uncertainty

FADING = {"context": (energy, lambda lam: 0.1 * torch.exp(2 * lam).clamp_max(1))}


def options(**changes):
    base = {"data": "test", "steps": 12, "batch": 12, "checkpoint_every": 100, "cond_dropout": 0.3}
    return TrainConfig(**(base | changes))


def tensors(folder):
    last = checkpoints(Path(folder))[-1]
    return {f"{f.stem}/{k}": v for f in sorted(last.glob("*.safetensors")) for k, v in read_tensors(f).items()}


def same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def batch(count=24):
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(count, 4, generator=generator) for _ in range(2))
    t = torch.linspace(0.05, 0.95, count, dtype=torch.float64)
    return x0, noise, t, {"class_labels": torch.arange(count) % 4}


# -- the loss ----------------------------------------------------------------------------------------
def test_the_sum_is_what_it_says():
    """L = mean of (w e₀ + w_k ℓ_k), every quantity of the record computed a second time by hand."""
    model, (x0, noise, t, cond) = make_two_heads(), batch()
    seen = []

    def spy(record):
        seen.append(record)
        return energy(record)

    objective = Objective("min-snr", auxiliary={"context": (spy, FADING["context"][1])})
    loss, details = objective.loss(model.eval(), x0, noise, t, cond, targets={"mark": x0[:, 0]})
    x = model.process.stir(x0, t, noise)
    data, (extras,) = model.outputs(x, t, **cond)
    lam = model.process.logsnr(t)
    by_hand = torch.exp(2 * lam).clamp_max(5) * (data.double() - x0).square().mean(1)
    context = 0.1 * torch.exp(2 * lam).clamp_max(1) * (extras["context"].double() - x0.sum(1, keepdim=True)).square().mean(1)
    torch.testing.assert_close(loss.double(), (by_hand + context).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(details["parts"]["context"].double(), context.mean().detach(), rtol=1e-5, atol=1e-6)
    (record,) = seen
    torch.testing.assert_close(record.data, data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(record.x, x)
    torch.testing.assert_close(record.logsnr, lam)
    assert record.extras.keys() == {"context", "unused"}
    assert torch.equal(record.targets["mark"], x0[:, 0])
    assert record.data.requires_grad


def test_the_data_loss_is_untouched_by_a_weight_of_zero():
    model, (x0, noise, t, cond) = make_two_heads(), batch()
    plain = Objective().loss(model.eval(), x0, noise, t, cond)[0]
    assert torch.equal(Objective(auxiliary={"context": (energy, 0.0)}).loss(model, x0, noise, t, cond)[0], plain)
    assert not torch.equal(Objective(auxiliary={"context": energy}).loss(model, x0, noise, t, cond)[0], plain)


def test_a_weight_may_be_a_name():
    model, (x0, noise, t, cond) = make_two_heads().eval(), batch()
    by_name = Objective(auxiliary={"context": (energy, "min-snr:1")}).loss(model, x0, noise, t, cond)[0]
    by_hand = Objective(auxiliary={"context": (energy, lambda lam: torch.exp(2 * lam).clamp_max(1))})
    torch.testing.assert_close(by_name, by_hand.loss(model, x0, noise, t, cond)[0])


def test_a_mask_leaves_samples_out():
    model, (x0, noise, t, cond) = make_two_heads().eval(), batch()
    kept = torch.arange(24) % 3 == 0

    def masked(record):
        return torch.where(kept, energy(record), math.nan), kept

    parts = Objective(auxiliary={"context": masked}).loss(model, x0, noise, t, cond)[1]["parts"]
    part = x0[kept], noise[kept], t[kept], {"class_labels": cond["class_labels"][kept]}
    alone = Objective(auxiliary={"context": energy}).loss(model, *part)
    torch.testing.assert_close(parts["context"], alone[1]["parts"]["context"] / 3)


def test_sampling_drops_the_extras():
    model = make_two_heads().eval()
    plan = unstir.plan("ddim", model.process, nfe=4)
    x = unstir.sample(model, plan, shape=(2, 4), seed=0, class_labels=torch.tensor([0, 1]))
    assert x.shape == (2, 4)
    model.network.heads = False  # the same network without its heads
    assert torch.equal(x, unstir.sample(model, plan, shape=(2, 4), seed=0, class_labels=torch.tensor([0, 1])))


def test_extras_get_names():
    one = torch.ones(2, dtype=torch.bfloat16)
    found = named(({"a": one}, 3, {"b": 4}))
    assert found.keys() == {"a", "2", "b"}
    assert found["a"].dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"a b": energy}, ValueError, "auxiliary 'a b' must be a name"),
        ({"data": energy}, ValueError, "none of data"),
        ({"a": 3}, TypeError, r"auxiliary 'a' is int; give loss\(record\)"),
        ({"a": (energy, -1.0)}, ValueError, "weight -1.0"),
        ({"a": (energy, "magic")}, ValueError, "weight='magic' is unknown"),
    ],
)
def test_wrong_auxiliaries(given, error, words):
    with pytest.raises(error, match=words):
        auxiliaries(given, ("data",))


def test_a_loss_of_the_wrong_shape_is_named():
    model, (x0, noise, t, cond) = make_two_heads(), batch()
    with pytest.raises(ValueError, match=r"auxiliary 'context' returned a loss of shape \(\); one value a sample"):
        Objective(auxiliary={"context": lambda r: energy(r).mean()}).loss(model, x0, noise, t, cond)
    with pytest.raises(ValueError, match="uncertainty='yes' is unknown; one of none, levels, tasks"):
        Objective(uncertainty="yes")


# -- learned weights ---------------------------------------------------------------------------------
def test_learned_weights_become_the_expected_loss():
    """e^{s(λ)} → E[ℓ | λ]: with the known E[ℓ] = σ̂(λ) and ℓ = σ̂ · (chi-squared of one), and a second part that is flat."""
    torch.manual_seed(0)
    u = Uncertainty(["a", "b"], "levels")
    adam = torch.optim.Adam(u.parameters(), 0.02)
    for step in range(1500):
        lam = torch.rand(256) * 8 - 4
        s = u(lam)
        z = torch.randn(2, 256).square()
        loss = (torch.exp(-lam) * z[0] * torch.exp(-s["a"]) + s["a"] + 7 * z[1] * torch.exp(-s["b"]) + s["b"]).mean()
        for group in adam.param_groups:
            group["lr"] = 0.02 * (1 - step / 1500)
        adam.zero_grad()
        loss.backward()
        adam.step()
    lam = torch.linspace(-3, 3, 13)
    s = {k: v.detach() for k, v in u(lam).items()}
    torch.testing.assert_close(s["a"], -lam, atol=0.3, rtol=0)
    torch.testing.assert_close(s["b"], torch.full((13,), math.log(7)), atol=0.3, rtol=0)


def test_one_number_a_task():
    u = Uncertainty(["a", "b"], "tasks")
    with torch.no_grad():
        u.weight.copy_(torch.tensor([[0.5], [-1.0]]))
    s = u(torch.zeros(3))
    assert s["a"].tolist() == [0.5] * 3
    assert s["b"].tolist() == [-1.0] * 3


def test_at_first_learned_weights_change_nothing():
    model, (x0, noise, t, cond) = make_two_heads().eval(), batch()
    objective = Objective(auxiliary=FADING, uncertainty="levels")
    plain, details = objective.loss(model, x0, noise, t, cond)
    for kind in ("levels", "tasks"):
        u = Uncertainty(["data", "context"], kind)
        loss, more = objective.loss(model, x0, noise, t, cond, uncertainty=u)
        torch.testing.assert_close(loss, plain)
        with torch.no_grad():
            u.weight += 0.3
        other, more = objective.loss(model, x0, noise, t, cond, uncertainty=u)
        assert not torch.allclose(other, plain)
        assert torch.equal(more["parts"]["context"], details["parts"]["context"])  # what is logged stays comparable


# -- runs --------------------------------------------------------------------------------------------
def test_parts_are_logged_and_learned_and_left_out_of_the_model(tmp_path):
    decoder = Decoder()
    before = [p.detach().clone() for p in decoder.parameters()]
    auxiliary = {"context": (decoder, 0.5), "size": lambda r: r.data.square().mean(1)}
    config = options(steps=60, uncertainty="tasks", lr=2e-2, warmup=0)
    result = fit(make_two_heads(), make_data(), config, tmp_path, auxiliary=auxiliary)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    parts = [row["parts"] for row in rows if "parts" in row]
    assert len(parts) == 6
    assert parts[0].keys() == {"data", "context", "size"}
    assert parts[-1]["context"] < 0.6 * parts[0]["context"]
    losses = [row["loss"] for row in rows if "parts" in row]
    assert losses == pytest.approx([sum(p.values()) for p in parts], rel=1e-4)
    assert all(not torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True))
    saved = tensors(tmp_path)
    assert {k for k in saved if k.startswith("learned/")} == {
        "learned/losses.context.layer.bias", "learned/losses.context.layer.weight",
        "learned/uncertainty.frequency", "learned/uncertainty.phase", "learned/uncertainty.weight",
    }  # fmt: skip
    assert float(saved["learned/uncertainty.weight"].abs().min()) > 0
    assert not any("learned" in k or "decoder" in k for k in result.model.state_dict())


@pytest.mark.parametrize(
    "more", [{"uncertainty": "tasks"}, {"accumulate": 3}, {"workers": 0}, {"uncertainty": "levels"}], ids=str
)
def test_ten_and_ten_are_twenty_bit_for_bit(tmp_path, more):
    def run(folder, steps, **changes):
        auxiliary = {"context": (Decoder(), 0.5), "size": (lambda r: r.data.square().mean(1), 0.01)}
        config = options(steps=steps, schedule="constant", **more)
        return fit(make_two_heads(), make_data(), config, folder, auxiliary=auxiliary, **changes)

    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "half", 6)
    torch.rand(5)
    rest = run(tmp_path / "half", 12, resume=True, override=True)
    same_bits(tensors(tmp_path / "whole"), tensors(tmp_path / "half"))
    assert rest.loss == whole.loss
    assert "learned-optimizer/losses.context.layer.weight|exp_avg" in tensors(tmp_path / "half")


def test_other_auxiliary_losses_are_another_run(tmp_path):
    fit(make_two_heads(), make_data(), options(), tmp_path, auxiliary={"context": (energy, 0.5)})
    with pytest.raises(ValueError, match=r"auxiliary {'context': 0.5} → {'context': 1.0}"):
        fit(make_two_heads(), make_data(), options(), tmp_path, auxiliary={"context": energy}, resume=True)
    with pytest.raises(ValueError, match=r"auxiliary {'context': 0.5} → None"):
        fit(make_two_heads(), make_data(), options(), tmp_path, resume=True)


def test_a_network_with_heads_that_nothing_is_made_of_can_be_resumed(tmp_path):
    """Weights without a gradient have no moments; a checkpoint says so."""
    fit(make_two_heads(), make_data(), options(steps=3), tmp_path)
    state = json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())
    assert state["idle"] == ["model|context.weight", "model|context.bias", "model|unused.weight", "model|unused.bias"]
    assert fit(make_two_heads(), make_data(), options(steps=5), tmp_path, resume=True, override=True).steps == 5


def test_parts_of_a_batch_give_its_gradient(tmp_path):
    found = {}
    for accumulate in (1, 4):
        auxiliary = {"context": (Decoder(), 0.5)}
        model = make_two_heads(dropout=0.0)
        fit(model, make_data(), options(accumulate=accumulate), tmp_path / str(accumulate), auxiliary=auxiliary)
        found[accumulate] = tensors(tmp_path / str(accumulate))
    for name, tensor in found[1].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[4][name], tensor, atol=1e-6, rtol=1e-5, msg=name)


SCRIPT = """
    import os, sys, torch
    torch.set_num_threads(1)
    sys.path.insert(0, {here!r})
    from auxiliary_parts import Decoder, make_two_heads
    from training_parts import make_data
    from unstir.train import TrainConfig, fit
    config = TrainConfig("test", steps=6, batch=12, checkpoint_every=4, cond_dropout=0.3, strategy={strategy!r},
        uncertainty="levels", accumulate={accumulate}, self_conditioning={twice})
    model, auxiliary = make_two_heads(dropout=0.0, sees_previous={twice} > 0), {{"context": (Decoder(), 0.5)}}
    fit(model, make_data(), config, {folder!r}, auxiliary=auxiliary)
    os._exit(0)  # threads of torch now and then abort while Python is taken down, after all is written
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("accumulate", "twice"), [(1, 0.0), (2, 0.5)])
def test_two_processes_are_one(tmp_path, strategy, accumulate, twice):
    config = options(steps=6, uncertainty="levels", checkpoint_every=4, self_conditioning=twice)
    model = make_two_heads(dropout=0.0, sees_previous=twice > 0)
    fit(model, make_data(), config, tmp_path / "one", auxiliary={"context": (Decoder(), 0.5)})
    file = tmp_path / "run.py"
    file.write_text(textwrap.dedent(SCRIPT.format(
        here=str(Path(__file__).parent), folder=str(tmp_path / "two"), strategy=strategy, accumulate=accumulate, twice=twice
    )))  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    assert any(k.startswith("learned-optimizer/") for k in one)
    for name, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.slow
def test_a_compiled_network_may_return_extras(tmp_path):
    found = {}
    for compiled in (False, True):
        auxiliary = {"context": (Decoder(), 0.5)}
        config = options(steps=3, compile=compiled)
        fit(make_two_heads(dropout=0.0), make_data(), config, tmp_path / str(compiled), auxiliary=auxiliary)
        found[compiled] = tensors(tmp_path / str(compiled))
    # Where a compiled network has outputs that nothing is made of, their gradient is 0 instead of none.
    assert all("unused" in name for name in found[True].keys() ^ found[False].keys())
    for name, tensor in found[False].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[True][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_half_precision_networks_give_float32_losses():
    model, (x0, noise, t, cond) = make_two_heads(), batch()
    kinds = []

    def spy(record):
        kinds.extend([record.extras["context"].dtype, record.data.dtype, torch.is_autocast_enabled("cpu")])
        return energy(record)

    with torch.autocast("cpu", torch.bfloat16):
        Objective(auxiliary={"context": spy}).loss(model, x0, noise, t, cond)
    assert kinds == [torch.float32, torch.float32, False]


def test_another_objective_is_not_resumed_unasked(tmp_path):
    """What the options do not say is in the identity of a run, too; runs of before, which did not keep it, go on."""
    first = Objective("min-snr", cond_dropout={"class_labels": 0.3})
    fit(make_two_heads(), make_data(), options(steps=2), tmp_path, objective=first)
    with pytest.raises(ValueError, match=r"objective .*'min-snr'.* → .*'noise'"):
        fit(make_two_heads(), make_data(), options(steps=2), tmp_path, objective=Objective("noise"), resume=True)
    with pytest.raises(ValueError, match=r"objective .*'min-snr'.* → None"):
        fit(make_two_heads(), make_data(), options(steps=2), tmp_path, resume=True)
    fit(make_two_heads(), make_data(), options(steps=2), tmp_path, objective=first, resume=True)
    state = checkpoints(tmp_path)[-1] / "state.json"
    known = json.loads(state.read_text())
    del known["identity"]["objective"]
    state.write_text(json.dumps(known))
    fit(make_two_heads(), make_data(), options(steps=2), tmp_path, objective=Objective("noise"), resume=True)


def test_a_weight_that_is_a_scalar_is_kept_as_a_number():
    (made,) = auxiliaries({"context": (energy, torch.tensor(0.5))}).values()
    assert json.dumps(made.described) == "0.5"


def test_learned_weights_do_not_decay():
    config = options(weight_decay=0.5, uncertainty="tasks")
    objective = Objective(auxiliary={"context": Decoder()}, uncertainty="tasks")
    run = _prepare(make_two_heads(), make_data(), objective, config, World(), torch.device("cpu"))
    decays = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert {name: decays.pop(id(p)) for name, p in run.learned.named_parameters()} == {
        "losses.context.layer.weight": 0.5,
        "losses.context.layer.bias": 0.5,
        "uncertainty.weight": 0.0,
    }
    assert set(decays.values()) == {0.5}
    assert decays.keys() == {id(p) for p in run.model.parameters()}


def test_gradients_are_shared_where_there_are_any(monkeypatch):
    """Two processes, this one and one whose gradients are the same: frozen and unused weights stay without one."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.mul_(2))
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1].requires_grad_(False)
    net[0](torch.ones(1, 2)).sum().backward()
    before = [p.grad.clone() for p in net[0].parameters()]
    World(0, 2).mean_gradients(net)
    assert all(torch.equal(p.grad, g) for p, g in zip(net[0].parameters(), before, strict=True))
    assert all(p.grad is None for layer in net[1:] for p in layer.parameters())


@pytest.mark.parametrize("kind", ["levels", "tasks"])
def test_learned_weights_need_losses_that_are_not_0(kind):
    with pytest.raises(ValueError, match=f"uncertainty='{kind}' divides by the expected loss, and 'context' has the weight 0"):
        Objective(auxiliary={"context": (energy, 0.0)}, uncertainty=kind)
    with pytest.raises(ValueError, match="'code' has the weight 0"):
        Objective(fields={"code": 0}, uncertainty=kind)
