import math

import pytest
import torch
from torch import nn

import unstir
from unstir.denoiser import Aggregate, Denoiser, Joint, categorical, continuous, orthogonal_codes
from unstir.nets import MultiHead
from unstir.process import EDM, VP, Flow

SHAPE = (4, 3)


class Trunk(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.enter = nn.Linear(13, width)

    def forward(self, x, time):
        return torch.tanh(self.enter(torch.cat([x.flatten(1), time[:, None].to(x)], 1)))


def aggregate(**options):
    codes = orthogonal_codes(5, SHAPE)
    return Aggregate({"image": continuous(torch.full(SHAPE, 0.3), 2.0), "label": categorical(codes)}, **options)


def joint(process=None, **options):
    torch.manual_seed(0)
    heads = {
        "data": nn.Sequential(nn.Linear(16, 12), nn.Unflatten(1, SHAPE)),
        "image": nn.Sequential(nn.Linear(16, 12), nn.Unflatten(1, SHAPE)),
        "label": nn.Linear(16, 5),
    }
    return Joint(MultiHead(Trunk(), heads), process or VP(), aggregate(**options))


class TestState:
    def test_has_unit_variance(self):
        g = torch.Generator().manual_seed(0)
        values = {
            "image": 0.3 + 2 * torch.randn(40_000, *SHAPE, generator=g),
            "label": torch.randint(5, (40_000,), generator=g),
        }
        assert float(aggregate().state(values).square().mean()) == pytest.approx(1, abs=0.01)

    def test_order_of_modalities_is_nothing(self):
        one = aggregate(coefficients={"image": 1, "label": 2})
        two = Aggregate(dict(reversed(one.modalities.items())), dict(reversed(one.coefficients.items())))
        values = {"image": torch.randn(3, *SHAPE), "label": torch.tensor([0, 4, 2])}
        assert one.state(values).allclose(two.state(values))

    def test_what_is_missing_changes_its_own_part_only(self):
        agg, values = aggregate(), {"image": torch.randn(2, *SHAPE), "label": torch.tensor([1, 3])}
        part = agg.state(values, {"label": torch.tensor([True, False])})
        c = agg.coefficients["label"]
        assert part[0].equal(agg.state(values)[0])
        gone = agg.modalities["label"].null - agg.modalities["label"].encode(values["label"])[1]
        assert (part - agg.state(values))[1].allclose(c * gone, atol=1e-6)
        assert part[1].allclose(agg.state({"image": values["image"]})[1])

    def test_heads_that_are_sure_give_the_codes(self):
        modality = aggregate().modalities["label"]
        logits = 1e4 * torch.eye(5)
        assert modality.estimate(logits).allclose(modality.encode(torch.arange(5)), atol=1e-5)
        assert modality.read(logits).tolist() == list(range(5))
        assert modality.estimate(torch.zeros(1, 5))[0].allclose(modality.null, atol=1e-6)


class TestChain:
    """The published chain z_t = √a_t z_{t−1} + Σ_i w_t^(i) e_i + √(1 − a_t) ε, z_0 = 0, in float64."""

    def chain(self, proportional):
        g = torch.Generator().manual_seed(0)
        a = 1 - torch.rand(12, generator=g, dtype=torch.float64) * 0.2
        c = torch.tensor([0.6, 0.8], dtype=torch.float64)
        w = torch.zeros(12, 2, dtype=torch.float64) if proportional else torch.rand(12, 2, generator=g, dtype=torch.float64)
        if proportional:
            w[0] = a[0].sqrt() * c
        return a, c, w

    def coefficients(self, a, w):
        """(T, T + 2): z_t as a combination of the noises and the codes."""
        rows, z = [], torch.zeros(len(a) + 2, dtype=torch.float64)
        for t in range(len(a)):
            z = a[t].sqrt() * z
            z[t] += (1 - a[t]).sqrt()
            z[len(a) :] += w[t]
            rows.append(z.clone())
        return torch.stack(rows)

    @pytest.mark.parametrize("proportional", [True, False])
    def test_marginal(self, proportional):
        a, _, w = self.chain(proportional)
        rows, total = self.coefficients(a, w), a.cumprod(0)
        for t in range(len(a)):
            expected = sum((total[t] / total[j]).sqrt() * w[j] for j in range(t + 1))
            assert rows[t, len(a) :].allclose(expected, atol=1e-14)
            assert float(rows[t, : len(a)].square().sum()) == pytest.approx(float(1 - total[t]), abs=1e-14)

    def test_the_special_choice_is_diffusion_of_the_weighted_sum(self):
        a, c, w = self.chain(True)
        rows, total = self.coefficients(a, w), a.cumprod(0)
        assert rows[:, len(a) :].allclose(total.sqrt()[:, None] * c, atol=1e-14)

    def test_posterior_by_conditioning(self):
        """E[z_{t−1} | z_t, X] and its variance by Gaussian conditioning, and as published."""
        a, _, w = self.chain(False)
        rows, total, t = self.coefficients(a, w), a.cumprod(0), 7
        noise = rows[:, : len(a)]
        cov, var, before = noise[t - 1] @ noise[t], noise[t] @ noise[t], noise[t - 1] @ noise[t - 1]
        gain = cov / var
        assert float(gain) == pytest.approx(float(a[t].sqrt() * (1 - total[t - 1]) / (1 - total[t])), abs=1e-14)
        spread = (1 - total[t - 1]) * (1 - a[t]) / (1 - total[t])
        assert float(before - gain * cov) == pytest.approx(float(spread), abs=1e-14)
        # mean = gain z_t + (w̃_{t−1} − gain w̃_t) e; published: gain (z_t − w_t e) + (1 − a)/(1 − ā) w̃_{t−1} e
        mine = rows[t - 1, len(a) :] - gain * rows[t, len(a) :]
        theirs = -gain * w[t] + (1 - a[t]) / (1 - total[t]) * rows[t - 1, len(a) :]
        assert mine.allclose(theirs, atol=1e-14)


class TestJoint:
    @pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=["vp", "edm", "flow"])
    @pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
    def test_what_is_known_is_returned(self, process, solver):
        model = joint(process)
        values = {"image": torch.randn(3, *SHAPE), "label": torch.tensor([0, 4, 2])}
        run = unstir.plan(solver, process, nfe=5)
        x = unstir.sample(model.known(**values), run, shape=(3, *SHAPE), seed=0)
        assert x.allclose(model.aggregate.state(values), atol=1e-5)

    def test_hands_out_the_heads_of_the_last_evaluation(self):
        model, run = joint(), unstir.plan("ddim", VP(), nfe=4)
        state = unstir.sample(model, run, shape=(3, *SHAPE), seed=0, full=True)
        assert state.aux["label"].shape == (3, 5)
        found = model.aggregate.read(state.aux)
        assert found["image"].shape == (3, *SHAPE)
        assert found["label"].shape == (3,)

    def test_scale(self):
        model, x, label = joint(), torch.randn(2, *SHAPE), torch.tensor([1, 2])
        free, known = model(x, 0.5), model.known(label=label)(x, 0.5)
        assert model.known(label=label, scale=3.0)(x, 0.5).allclose(free + 3 * (known - free), atol=1e-5)
        assert model.known(label=label, scale=0.0)(x, 0.5).equal(free)

    def test_is_the_plain_denoiser(self):
        model, x = joint(), torch.randn(2, *SHAPE)
        assert Denoiser(model.network, VP(), "velocity")(x, 0.3).equal(model(x, 0.3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Aggregate({}), "modalities is empty"),
        (lambda: aggregate(coefficients={"image": 1}), "one for each of image, label"),
        (lambda: aggregate(coefficients={"image": 1, "label": -1}), "must be positive"),
        (lambda: Aggregate({"a": continuous(torch.zeros(2), 1), "b": continuous(torch.zeros(3), 1)}), "different shapes"),
        (lambda: aggregate().state({"mask": torch.zeros(1)}), "unknown modality mask; there are image, label"),
        (lambda: aggregate().state({"image": torch.zeros(2, *SHAPE), "label": torch.tensor([0])}), "different numbers"),
        (lambda: aggregate().state({"label": torch.tensor([5])}), r"integers in 0 … 4"),
        (lambda: categorical(2 * orthogonal_codes(3, SHAPE)), "scale each to 1"),
        (lambda: orthogonal_codes(20, SHAPE), "has 12"),
        (lambda: continuous(torch.zeros(2), 0), "std=0"),
        (lambda: joint().known(), r"\(none given\)"),
        (
            lambda: Joint(MultiHead(Trunk(), {"data": nn.Linear(16, 12)}), VP(), aggregate()).known(label=torch.tensor([0])),
            None,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(make, message):
    if message is None:
        with pytest.raises(ValueError, match=r"returned shape|returned no image, label"):
            make()(torch.randn(1, *SHAPE), 0.5)
        return
    with pytest.raises(ValueError, match=message):
        make()


def test_sums_of_another_variance_are_named():
    with pytest.warns(UserWarning, match=rf"shifts by \{math.log(math.sqrt(2)):+.2f}"):
        aggregate(coefficients={"image": 1, "label": 1}, normalise=False)


def test_a_network_that_sees_its_estimate_is_given_it_in_a_run():
    """Joint, Known and the ordinary denoiser hand on the same estimates."""
    net, seen = joint().network, []

    class Sees(nn.Module):
        def forward(self, x, time, previous):
            seen.append(previous)
            return net(x, time)

    model = Joint(Sees(), VP(), aggregate(), sees_previous=True)
    plan, x = unstir.plan("ddim", model.process, nfe=3), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for runs in (model, model.known(label=torch.tensor([1]))):
        seen.clear()
        steps = list(unstir.steps(runs, plan, x))
        assert float(seen[0].abs().max()) == 0
        assert float(seen[1].abs().max()) > 0
        if runs is model:
            assert all(torch.equal(given, step.data) for given, step in zip(seen[1:], steps, strict=False))
        assert steps[-1].aux.keys() == {"image", "label"}


def test_a_missing_modality_goes_where_the_others_are():
    values = {"image": torch.empty(2, *SHAPE, device="meta")}
    assert aggregate().state(values).device.type == "meta"
