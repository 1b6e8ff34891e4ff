"""The model folder: the same bits out as in, whole at every moment, nothing executed, every damage named."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from unstir import Denoiser, process
from unstir._files import write_tensors
from unstir.interop import load_model, save_model


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.tied = self.layer.weight

    def forward(self, x, t, class_labels=None):
        return self.layer(x)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def own_model(**options):
    torch.manual_seed(0)
    return Denoiser(Net(), process.Flow(), "flow", shape=(4,), clip=(-2, 2), meta={"data": "x"}, **options)


def unet_model(classes=3):
    pytest.importorskip("diffusers")
    from unstir.train import build_network

    meta = {"classes": ["a", "b", "c"], "null": {"class_labels": classes}} if classes else {}
    network = build_network((1, 8, 8), classes, "tiny", seed=4)
    return Denoiser(network, process.Shifted(process.VP(0.2, 15.0), 1.5), "edm", time="thousand", sigma_data=0.7, meta=meta)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(unet_model(), tmp_path_factory.mktemp("models") / "unet")


def copy_of(folder, to):
    to.mkdir()
    for item in folder.iterdir():
        (to / item.name).write_bytes(item.read_bytes())
    return to


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_diffusers_network_round_trip(saved):
    model, loaded = unet_model().eval(), load_model(saved)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded(x, t, class_labels=labels), model(x, t, class_labels=labels))
    assert loaded.process == model.process
    assert (loaded.meta, loaded.shape, loaded.time) == (model.meta, model.shape, "thousand")
    assert (loaded.prediction.kind, loaded.prediction.sigma_data) == ("edm", 0.7)
    assert not loaded.training
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_conditions_may_be_left_out_and_given_as_one_number(saved):
    model = load_model(saved)
    x, t = torch.randn(2, 1, 8, 8), 0.5
    with torch.no_grad():
        assert torch.equal(model(x, t), model(x, t, class_labels=torch.tensor([3, 3])))
        assert torch.equal(model(x, t, class_labels=1), model(x, t, class_labels=torch.tensor([1, 1])))
        assert not torch.equal(model(x, t, class_labels=1), model(x, t))


def test_own_network_round_trip(tmp_path):
    save_model(own_model(), tmp_path / "own")
    with pytest.raises(ValueError, match=r"the class '.*Net' of its owner; pass an instance as network="):
        load_model(tmp_path / "own")
    torch.manual_seed(9)
    loaded = load_model(tmp_path / "own", network=Net())
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x, 0.5), own_model()(x, 0.5))
    assert loaded.clip == (-2, 2)
    with pytest.raises(ValueError, match=r"'layer.bias' has shape \(4,\); the network needs \(5,\)"):
        load_model(tmp_path / "own", network=Net(5))


def test_average_weights_are_preferred_and_half_types_are_widened(tmp_path):
    model = own_model()
    average = {k: v + 1 for k, v in model.network.state_dict().items()}
    save_model(model, tmp_path / "m", ema_weights=average, dtype=torch.float16)
    one, two = load_model(tmp_path / "m", network=Net()), load_model(tmp_path / "m", network=Net(), ema=False)
    assert one.network.layer.weight.dtype == torch.float32
    torch.testing.assert_close(one.network.layer.weight, average["layer.weight"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(two.network.layer.weight, model.network.layer.weight, rtol=1e-3, atol=1e-3)


def test_wrappers_leave_no_mark_on_the_names(tmp_path):
    model = own_model()
    plain = model.network
    model.network = nn.Module()
    model.network.module = plain  # what nn.parallel.DistributedDataParallel looks like
    save_model(model, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m", network=Net()).network.layer.weight, plain.layer.weight)


def test_plans_travel_with_the_model(tmp_path):
    import unstir

    model = own_model()
    plan = unstir.plan("ddim", model.process, nfe=3)
    save_model(model, tmp_path / "m", plans={3: plan})
    loaded = load_model(tmp_path / "m", network=Net())
    assert loaded.plans == {3: plan}
    save_model(loaded, tmp_path / "n")  # and on to the next folder
    assert (tmp_path / "n" / "plans" / "3.json").exists()
    (tmp_path / "m" / "plans" / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="named by its number"):
        load_model(tmp_path / "m", network=Net())


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    save_model(own_model(), tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    changed = own_model()
    changed.network.layer.bias.data += 1

    def failing(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("unstir.interop.folder.write_tensors", failing)
    with pytest.raises(OSError, match="disk full"):
        save_model(changed, tmp_path / "m")
    monkeypatch.undo()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    save_model(changed, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != before


def test_an_interrupted_replacement_is_settled(tmp_path):
    save_model(own_model(), tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / ".m.old")  # killed between the two renames
    load_model(tmp_path / "m", network=Net())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no model folder; it will not be replaced"):
        save_model(own_model(), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_pickle_is_never_loaded(tmp_path, saved):
    for dump in (lambda f, o: f.write_bytes(pickle.dumps(o)), lambda f, o: torch.save(o, f)):
        folder = copy_of(saved, tmp_path / f"bad{len(list(tmp_path.iterdir()))}")
        dump(folder / "model.safetensors", Bomb(tmp_path / "executed"))
        with pytest.raises(ValueError, match=r"model.safetensors is a pickle .* never loaded"):
            load_model(folder)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # the bomb works


def test_no_foreign_class_is_imported(tmp_path, saved, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = copy_of(saved, tmp_path / "m")
    for name in ("evil:Net", "os:system", "diffusers.evil:X", "unstir:Denoiser", "evil"):
        edit(folder, network={"class": name, "options": {}})
        with pytest.raises(ValueError, match="will not be imported"):
            load_model(folder)
    assert not (tmp_path / "executed").exists()


def truncate(file: Path, keep: float):
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "torn config": (lambda f: truncate(f / "config.json", 0.5), "config.json is not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds a JSON list"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json cannot be read"),
    "other format": (lambda f: edit(f, format="other"), "format 'other', not 'unstir-model'"),
    "future version": (lambda f: edit(f, version=99), "version 99; this unstir reads version 1"),
    "no process": (lambda f: edit(f, process=None), "process is None, of the wrong type"),
    "unknown process": (lambda f: edit(f, process={"kind": "XP"}), "unknown process kind 'XP'"),
    "wrong process option": (lambda f: edit(f, process={"kind": "VP", "beta": 1}), "process VP"),
    "unknown prediction": (lambda f: edit(f, predicts="nose"), "predicts='nose' is unknown"),
    "sigma as text": (lambda f: edit(f, sigma_data="1"), "sigma_data is '1'"),
    "unknown time": (lambda f: edit(f, time="clock"), "time='clock' is unknown"),
    "unknown class": (lambda f: edit(f, network={"class": "diffusers:UNet99", "options": {}}), "no network class 'UNet99'"),
    "no network": (lambda f: edit(f, network={"class": "diffusers:DDIMScheduler", "options": {}}), "no network class"),
    "private class": (lambda f: edit(f, network={"class": "diffusers:__loader__", "options": {}}), "no network class"),
    "wrong option": (
        lambda f: edit(f, network={"class": "diffusers:UNet2DModel", "options": {"down_block_types": ["X"]}}),
        "cannot be built",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a valid safetensors"),
    "torn weights": (lambda f: truncate(f / "model.safetensors", 0.7), "not a valid safetensors"),
    "other weights": (lambda f: write_tensors(f / "model.safetensors", {"a": torch.zeros(1)}), "belongs to another network"),
    "torn plan": (
        lambda f: ((f / "plans").mkdir(), (f / "plans" / "5.json").write_text("{")),
        "5.json",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named_in_one_line(case, saved, tmp_path):
    damage, words = DAMAGES[case]
    folder = copy_of(saved, tmp_path / "m")
    damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_wrong_places(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a bundled name; bundled: digits"):
        load_model("digitz")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give the model folder"):
        load_model(tmp_path / "file")
    with pytest.raises(ValueError, match=r"config.json is missing"):
        load_model(tmp_path)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="is a function and cannot be saved"):
        save_model(own_model(time=lambda p, t: t), tmp_path / "m")
    with pytest.raises(TypeError, match=r"only a Denoiser around an nn.Module"):
        save_model(Denoiser(lambda x, t: x, process.VP()), tmp_path / "m")
    with pytest.raises(TypeError, match="model is VP"):
        save_model(process.VP(), tmp_path / "m")  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()
