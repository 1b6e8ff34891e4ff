"""Dict samples with missing fields, named conditions with their own nulls and dropout, and targets."""

import json

import pytest
import torch
from test_auxiliary import options, same_bits, tensors
from torch import nn
from training_parts import make_data, make_model

import unstir
from unstir import Denoiser, data, process, steer
from unstir.interop import load_model, save_model
from unstir.nets import default_condition
from unstir.train import Objective, TrainConfig, fit, order, validate
from unstir.train.batch import Conditions, drawer
from unstir.train.parallel import World


class Told(nn.Module):
    """raw = MLP(x, t, text (B, 2), level (B,))."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 24), nn.SiLU(), nn.Linear(24, 4))

    def forward(self, x, t, text, level):
        return self.layers(torch.cat([x, t[:, None], text, level[:, None]], 1))


NULL = {"text": [0.0, -9.0], "level": 5.0}


def make_told():
    torch.manual_seed(0)
    return Denoiser(default_condition(Told(), NULL), process.VP(), "velocity", shape=(4,), meta={"null": NULL})


def told_data(count=50):
    generator = torch.Generator().manual_seed(2)
    text, level = torch.randn(count, 2, generator=generator), torch.rand(count, generator=generator)
    x = torch.randn(count, 4, generator=generator) + text.repeat(1, 2)
    return data.load(x).beside(
        conditions={"text": text, "level": lambda rows: level[list(rows)]}, targets={"row": torch.arange(count)}
    )


# -- named conditions --------------------------------------------------------------------------------
def test_arrays_follow_their_rows():
    whole = told_data()
    part = whole.subset([7, 3, 40]).subset([2, 0])
    assert part.condition_names == ("text", "level")
    assert part.targets([0, 1])["row"].tolist() == [40, 7]
    assert torch.equal(part.conditions([1])["text"], whole.conditions([7])["text"])
    train, test = whole.split(10)
    assert {*train.targets(range(40))["row"].tolist(), *test.targets(range(10))["row"].tolist()} == set(range(50))
    assert whole.fingerprint() != whole.beside(targets={"row": torch.arange(50) + 1}).fingerprint()
    assert whole.condition_names == ("text", "level")  # `beside` makes a new one


def test_pairs_keep_theirs():
    y, x = torch.zeros(6, 1, 4, 4), torch.ones(6, 1, 4, 4) * torch.arange(6.0).reshape(6, 1, 1, 1)
    pairs = data.load_pairs([y.numpy(), x.numpy()]).beside(targets={"row": torch.arange(6)})
    assert pairs.subset([4, 1]).targets([0, 1])["row"].tolist() == [4, 1]


def test_every_condition_has_its_own_dropout():
    """Each null is used p · N times within 4 σ of the binomial law, and independently: both at once p q N times."""
    model, dataset, count = make_told(), told_data(), 6000
    shares = {"text": 0.2, "level": 0.5}
    config = TrainConfig("x", batch=count)
    cond = drawer(model, dataset, Objective(cond_dropout=shares), config, World())(0).cond
    text, level = (cond["text"] == torch.tensor(NULL["text"])).all(1), cond["level"] == 5.0
    for lost, p in ((text, 0.2), (level, 0.5), (text & level, 0.1)):
        assert abs(int(lost.sum()) - p * count) < 4 * (count * p * (1 - p)) ** 0.5
    rows = order.rows(50, 0, range(count))
    kept = dataset.conditions(rows)
    assert torch.equal(cond["text"][~text], kept["text"][~text])
    together = drawer(model, dataset, Objective(cond_dropout=0.3), config, World())(0).cond
    text, level = (together["text"] == torch.tensor(NULL["text"])).all(1), together["level"] == 5.0
    assert torch.equal(text, level)
    assert abs(int(text.sum()) - 0.3 * count) < 4 * (count * 0.3 * 0.7) ** 0.5


def test_the_null_class_is_used_as_often_as_it_should():
    count = 6000
    batch = drawer(make_model(), make_data(), Objective(cond_dropout=0.1), TrainConfig("x", batch=count), World())(0)
    assert abs(int((batch.cond["class_labels"] == 3).sum()) - 600) < 4 * (count * 0.09) ** 0.5


def test_guidance_reads_the_null(tmp_path):
    """The null of a model folder is what cfg's unconditional call gets, repeated for every sample."""
    folder = save_model(make_told(), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["meta"]["null"] == NULL
    torch.manual_seed(1)
    model = load_model(folder, network=default_condition(Told(), NULL))
    x, text, level = torch.randn(3, 4), torch.randn(3, 2), torch.rand(3)
    free = {"text": torch.tensor(NULL["text"]).expand(3, 2), "level": torch.full((3,), 5.0)}
    with torch.no_grad():
        sharp, blunt = model(x, 0.4, text=text, level=level), model(x, 0.4, **free)
        guided = steer.cfg(model, 3.0)(x, 0.4, text=text, level=level)
        torch.testing.assert_close(guided, blunt + 3 * (sharp - blunt))
        torch.testing.assert_close(model(x, 0.4), blunt)  # conditions may be left out
    assert not torch.allclose(sharp, blunt)


def test_a_run_with_named_conditions_resumes_bit_for_bit(tmp_path):
    seen = []

    def spy(record):
        seen.append((record.targets["row"], record.cond["text"]))
        return record.data.square().mean(1)

    objective = Objective(cond_dropout={"text": 0.5}, auxiliary={"size": (spy, 0.01)})
    config = options(schedule="constant")
    fit(make_told(), told_data(), config, tmp_path / "whole", objective=objective)
    assert seen[0][0].tolist() == order.rows(50, 0, range(12))
    half = options(schedule="constant", steps=6)
    fit(make_told(), told_data(), half, tmp_path / "half", objective=objective)
    fit(make_told(), told_data(), config, tmp_path / "half", objective=objective, resume=True, override=True)
    same_bits(tensors(tmp_path / "whole"), tensors(tmp_path / "half"))


@pytest.mark.parametrize(
    ("beside", "error", "words"),
    [
        ({"conditions": {"text": torch.zeros(3, 2)}}, ValueError, r"conditions\['text'\] has shape \(3, 2\) for 50 samples"),
        ({"targets": {"y": [1, 2]}}, TypeError, r"targets\['y'\] is list; give a tensor"),
        ({"targets": {"a b": torch.zeros(50)}}, ValueError, "'a b'; it must be a word"),
        ({"conditions": {"text": torch.full((50,), torch.nan)}}, ValueError, "contains NaN"),
    ],
)
def test_wrong_arrays(beside, error, words):
    with pytest.raises(error, match=words):
        make_data().beside(**beside)


def test_wrong_dropouts():
    with pytest.raises(ValueError, match="cond_dropout names 'texts'; the conditions are text, level"):
        Conditions(make_told(), told_data(), {"texts": 0.1})
    with pytest.raises(ValueError, match=r"cond_dropout=0.1 of 'mask' needs its null"):
        Conditions(make_told(), told_data().beside(conditions={"mask": torch.zeros(50)}), {"mask": 0.1})
    with pytest.raises(ValueError, match="cond_dropout=2 of text must be a share"):
        Objective(cond_dropout={"text": 2})


# -- dict samples ------------------------------------------------------------------------------------
class Joint(nn.Module):
    """raw of {"image": (B, 1, 4, 4), "code": (B, 3)} from both."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 48), nn.SiLU(), nn.Linear(48, 19))

    def forward(self, x, t):
        out = self.layers(torch.cat([x["image"].flatten(1), x["code"], t[:, None]], 1))
        return {"image": out[:, :16].reshape(-1, 1, 4, 4), "code": out[:, 16:]}


SHAPE = {"image": (1, 4, 4), "code": (3,)}


def make_joint(predicts="velocity", p=None):
    torch.manual_seed(0)
    return Denoiser(Joint(), p or process.VP(), predicts, shape=SHAPE)


def joint_data(count=40, missing=True):
    generator = torch.Generator().manual_seed(3)
    code = torch.eye(3)[torch.arange(count) % 3]
    image = torch.randn(count, 1, 4, 4, generator=generator) * 0.3 + code.argmax(1).reshape(-1, 1, 1, 1)
    present = {"code": torch.arange(count) % 4 != 0} if missing else None
    if missing:
        code = torch.where(present["code"][:, None], code, 7.0)
    return data.Fields({"image": image, "code": code}, present=present)


def test_the_loss_of_a_dict_is_that_of_its_fields():
    """Σ over fields of weight × mean square over present samples, against the denoiser's own D."""
    model, dataset, count = make_joint(), joint_data(), 40
    x0, _ = dataset.batch(range(count))
    noise = order.noise(0, range(count), SHAPE)
    t = torch.linspace(0.1, 0.9, count, dtype=torch.float64)
    weights = {"code": lambda lam: torch.exp(2 * lam).clamp_max(1)}
    objective = Objective("data", fields=weights)
    loss, details = objective.loss(model, x0, noise, t, present=dataset.present(range(count)))
    found = model({k: model.process.stir(x0[k], t, noise[k]) for k in x0}, t)
    snr = torch.exp(2 * model.process.logsnr(t)).clamp_max(1)
    there = torch.arange(count) % 4 != 0
    image = (found["image"] - x0["image"]).square().flatten(1).mean(1)
    code = snr * there * (found["code"] - x0["code"]).square().mean(1)
    torch.testing.assert_close(loss.double(), (image + code).mean().double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(details["parts"]["code"].double(), code.mean().detach().double(), rtol=1e-4, atol=1e-6)


def test_what_is_missing_has_no_gradient_and_is_read_as_zero():
    dataset = joint_data()
    x0, _ = dataset.batch([0, 1])
    assert x0["code"].tolist() == [[0, 0, 0], [0, 1, 0]]  # not the 7s of the array
    model = make_joint()
    x0, noise, t = dataset.batch([0, 4])[0], order.noise(0, range(2), SHAPE), torch.tensor([0.3, 0.6])
    loss, details = Objective(fields={"image": 0.0}).loss(model, x0, noise, t, present=dataset.present([0, 4]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters())
    assert details["data_error"].shape == (2,)


@pytest.mark.parametrize("predicts", ["data", "noise", "edm", "flow"])
@pytest.mark.parametrize("p", [process.VP(), process.EDM(), process.Flow()], ids=lambda p: type(p).__name__)
def test_a_dict_of_one_field_is_a_tensor(predicts, p):
    """The same network on {"x": x} and on x: the same D, loss and sample."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    plain = Denoiser(lambda x, t: layer(x), p, predicts)
    one = Denoiser(lambda x, t: {"x": layer(x["x"])}, p, predicts)
    x = torch.randn(3, 4)
    for t in (0.4, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)):
        torch.testing.assert_close(one({"x": x}, t)["x"], plain(x, t))
    z, t = torch.randn(3, 4), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    objective = Objective("min-snr")
    torch.testing.assert_close(objective.loss(one, {"x": x}, {"x": z}, t)[0], objective.loss(plain, x, z, t)[0])
    plan = unstir.plan("ddim", p, nfe=3, start=0.9)
    with torch.no_grad():
        torch.testing.assert_close(unstir.sample(one, plan, x={"x": x})["x"], unstir.sample(plain, plan, x=x))


def test_dict_samples_train_resume_and_are_sampled(tmp_path):
    config = options(schedule="constant", uncertainty="tasks", flip=True)
    half = options(schedule="constant", uncertainty="tasks", flip=True, steps=6)
    objective = Objective(fields={"code": 0.5}, uncertainty="tasks")
    fit(make_joint(), joint_data(), config, tmp_path / "whole", objective=objective)
    fit(make_joint(), joint_data(), half, tmp_path / "half", objective=objective)
    result = fit(make_joint(), joint_data(), config, tmp_path / "half", objective=objective, resume=True, override=True)
    same_bits(tensors(tmp_path / "whole"), tensors(tmp_path / "half"))
    rows = [json.loads(line) for line in (tmp_path / "half" / "log.jsonl").read_text().splitlines()]
    assert rows[-2]["parts"].keys() == {"image", "code"}
    assert result.validation
    plan = unstir.plan("ddim", result.model.process, nfe=3)
    x = unstir.sample(result.model, plan, shape={"image": (2, 1, 4, 4), "code": (2, 3)}, seed=0)
    same = unstir.sample(result.model, plan, shape=2, seed=0)  # the model knows the shapes of its fields
    assert all(torch.equal(same[field], x[field]) for field in SHAPE)
    assert {k: tuple(v.shape) for k, v in x.items()} == {"image": (2, 1, 4, 4), "code": (2, 3)}
    folder = save_model(result.model, tmp_path / "model")
    assert load_model(folder, network=Joint()).shape == SHAPE


def test_parts_of_a_dict_batch_are_its_rows():
    config = TrainConfig("x", batch=12)
    whole = drawer(make_joint(), joint_data(), Objective(), config, World())(24)
    for part, own in zip(whole.parts(3), (slice(0, 4), slice(4, 8), slice(8, 12)), strict=True):
        assert torch.equal(part.x0["code"], whole.x0["code"][own])
        assert torch.equal(part.present["code"], whole.present["code"][own])
    second = drawer(make_joint(), joint_data(), Objective(), config, World(1, 2))(24)
    assert torch.equal(second.noise["image"], whole.noise["image"][6:])


def test_a_subset_may_lack_a_field_everywhere():
    part = joint_data().subset([0, 4, 8])
    assert not part.present([0, 1, 2])["code"].any()
    assert len(part) == 3
    assert part.shape == SHAPE


@pytest.mark.parametrize(
    ("fields", "present", "words"),
    [
        ({}, None, "fields is empty"),
        ({"sample": torch.zeros(3, 2)}, None, "field 'sample' must have a name"),
        (
            {"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)},
            None,
            r"field 'b' has shape \(4, 2\), torch.float32; give \(3, \*\)",
        ),
        ({"a": torch.zeros(3, 2, dtype=torch.int64)}, None, "floating point"),
        ({"a": torch.full((3, 2), torch.inf)}, None, "field 'a' contains NaN or infinite"),
        ({"a": torch.zeros(3, 2)}, {"b": torch.ones(3, dtype=torch.bool)}, "present has 'b'; the fields are a"),
        ({"a": torch.zeros(3, 2)}, {"a": torch.ones(3)}, r"present\['a'\] has shape \(3,\), torch.float32"),
        ({"a": torch.zeros(3, 2)}, {"a": torch.zeros(3, dtype=torch.bool)}, "every sample lacks the field 'a'"),
    ],
)
def test_wrong_fields(fields, present, words):
    with pytest.raises(ValueError, match=words):
        data.Fields(fields, present=present)


def test_dict_samples_and_options_that_do_not_fit(tmp_path):
    for changes, words in (({"pairing": "ot"}, "pairing='ot' is for samples that"), ({"augment": 0.1}, "augment=0.1 moves")):
        with pytest.raises(ValueError, match=words):
            fit(make_joint(), joint_data(), options(**changes), tmp_path)
    with pytest.raises(ValueError, match="fields has a weight for 'mask'; the samples have the fields image, code"):
        fit(make_joint(), joint_data(), options(), tmp_path, objective=Objective(fields={"mask": 1.0}))
    with pytest.raises(ValueError, match="auxiliary 'code' must be a name"):
        fit(make_joint(), joint_data(), options(), tmp_path, auxiliary={"code": lambda r: r.t})
    with pytest.raises(ValueError, match="returned code for a state with the leaves image, code; return a dict"):
        Denoiser(lambda x, t: {"code": x["code"]}, process.VP())({k: torch.zeros(2, *s) for k, s in SHAPE.items()}, 0.5)


# -- what does not fit ---------------------------------------------------------------------------------
class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x, t, map=None, augment=None):
        return self.layer(torch.cat([x, x if map is None else map], 1))


@pytest.mark.parametrize("moved", [{"flip": True}, {"augment": 0.1}])
@pytest.mark.parametrize("beside", ["conditions", "targets"])
def test_pictures_beside_the_samples_would_be_left_behind(tmp_path, moved, beside):
    model = Denoiser(Mapped(), process.VP(), "velocity")
    pictures = data.load(torch.randn(20, 1, 4, 4))
    for shape in ((1, 4, 4), (4, 4)):
        mapped = pictures.beside(**{beside: {"map": torch.zeros(20, *shape)}})
        with pytest.raises(ValueError, match=r"(flip=True|augment=0.1) moves the samples and not 'map' beside them"):
            fit(model, mapped, options(**moved), tmp_path)
    assert not list(tmp_path.iterdir())
    vectors = pictures.beside(targets={"row": torch.arange(20), "code": torch.zeros(20, 4)})
    fit(model, vectors, options(steps=1, **moved), tmp_path)  # which have no place in the picture


def test_only_pictures_are_mirrored(tmp_path):
    with pytest.raises(ValueError, match=r"flip=True mirrors pictures \(C, H, W\); these samples have shape \(4,\)"):
        fit(make_told(), told_data(), options(flip=True), tmp_path)


def test_a_validation_that_does_not_fit_is_refused_before_the_first_step(tmp_path):
    def run(validation):
        fit(make_told(), told_data(), options(steps=1), tmp_path, validation=validation)

    with pytest.raises(ValueError, match="validation has the conditions none; the data has level, text"):
        run(data.load(torch.randn(9, 4)))
    with pytest.raises(ValueError, match=r"validation has samples of shape \(3,\); the data has \(4,\)"):
        run(data.load(torch.randn(9, 3)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="validation has the conditions none; the data has class_labels"):
        fit(make_model(), make_data(), options(steps=1), tmp_path, validation=data.load(torch.randn(9, 4)))


def test_the_measured_error_leaves_out_what_is_missing():
    """The error of the present fields: whatever the network says of a field that a sample lacks."""
    dataset, model = joint_data(), make_joint("data")
    errors = validate(model, dataset)
    x0, there = dataset.batch(range(40))[0], torch.arange(40) % 4 != 0
    noise = order.validation_noise(0, 40, SHAPE)
    t = torch.full((40,), float(model.process.time(0.0)), dtype=torch.float64)
    found = model({k: model.process.stir(x0[k], t, noise[k]) for k in x0}, t)
    image = (found["image"] - x0["image"]).square().flatten(1).mean(1)
    code = there * (found["code"] - x0["code"]).square().mean(1)
    assert errors["0"] == pytest.approx(float((image + code).detach().mean()), rel=1e-4)


def test_the_null_of_a_real_number_is_one(tmp_path):
    """A whole number stands for classes 0 … K, and sampling would refuse 0.3."""
    model = Denoiser(Told(), process.VP(), meta={"null": {"text": [0.0, 0.0], "level": 5}})
    with pytest.raises(ValueError, match=r"'level' is not of whole numbers, and its null 5 is one.*write 5.0"):
        fit(model, told_data(), options(steps=1), tmp_path)
