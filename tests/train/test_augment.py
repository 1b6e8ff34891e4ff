"""Augmentation that the network is told of: what is done to a picture is what its labels say."""

import math

import pytest
import torch
from test_auxiliary import options, same_bits, tensors
from torch import nn
from torch.nn import functional as F

from unstir import Denoiser, data, process
from unstir.interop import load_model, save_model
from unstir.train import TrainConfig, augment, build_model, fit, order


def numbers(count, seed=0):
    return order.augmenting(seed, range(count), augment.NUMBERS)


def by_torch(x, label):
    """One picture (C, H, W), moved by torch's own functions as its label says."""
    mirror, upside, cos, sin, down, right = label.tolist()
    x = x.flip(-1) if mirror else x
    x = x.flip(-2) if upside else x
    x = torch.rot90(x, round(math.atan2(sin, cos + 1) / (math.pi / 2)) % 4, (-2, -1))
    reach = [s // augment.REACH for s in x.shape[1:]]
    padded = F.pad(x[None], (reach[1], reach[1], reach[0], reach[0]), mode="reflect")[0]
    i, j = (r - round(m * r) for r, m in zip(reach, (down, right), strict=True))
    return padded[:, i : i + x.shape[1], j : j + x.shape[2]]


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (2, 16, 24), (1, 4, 4)])
def test_pictures_are_moved_as_their_labels_say(shape):
    x = torch.randn(200, *shape)
    moved, labels = augment.moved(x, numbers(200), 0.7)
    assert len({tuple(row) for row in labels.tolist()}) > (40 if min(shape[1:]) >= 8 else 10)
    for before, after, label in zip(x, moved, labels, strict=True):
        assert torch.equal(after, by_torch(before, label))


def test_nothing_moves_at_probability_zero_and_labels_are_zero_where_nothing_moved():
    x = torch.randn(50, 1, 8, 8)
    same, labels = augment.moved(x, numbers(50), 0.0)
    assert torch.equal(same, x)
    assert float(labels.abs().max()) == 0
    moved, labels = augment.moved(x, numbers(50), 0.3)
    still = (labels == 0).all(1)
    assert 0 < int(still.sum()) < 50
    assert torch.equal(moved[still], x[still])
    assert all(not torch.equal(a, b) for a, b in zip(moved[~still], x[~still], strict=True))


def test_each_is_done_as_often_as_it_should():
    """Mirrors: share/2; turns: ¾ share, the quarters alike; moves by whole pixels from −2 to 2, alike."""
    count, share = 8000, 0.4
    _, labels = augment.moved(torch.zeros(count, 1, 16, 16), numbers(count), share)

    def close(seen, p):
        assert abs(int(seen.sum()) - p * count) < 4 * (count * p * (1 - p)) ** 0.5

    close(labels[:, 0] == 1, share / 2)
    close(labels[:, 1] == 1, share / 2)
    close((labels[:, 0] == 1) & (labels[:, 1] == 1), share**2 / 4)
    for cos, sin in ((-1, 1), (-2, 0), (-1, -1)):
        close((labels[:, 2] == cos) & (labels[:, 3] == sin), share / 4)
    for k in (-2, -1, 1, 2):
        close(labels[:, 4] == k / 2, share / 5)
        close(labels[:, 5] == k / 2, share / 5)


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.told = nn.Linear(6, 1)

    def forward(self, x, t, augment=None):
        shift = 0 if augment is None else self.told(augment)[:, :, None, None]
        return self.layer(x) + shift


def make_told():
    torch.manual_seed(0)
    return Denoiser(Told(), process.VP(), "velocity", shape=(1, 8, 8))


def pictures():
    return data.load(torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_runs_resume_bit_for_bit(tmp_path):
    def run(folder, steps, share=0.3, **more):
        return fit(make_told(), pictures(), options(schedule="constant", steps=steps, augment=share), folder, **more)

    run(tmp_path / "whole", 12)
    run(tmp_path / "half", 6)
    run(tmp_path / "half", 12, resume=True, override=True)
    same_bits(tensors(tmp_path / "whole"), tensors(tmp_path / "half"))
    assert float(tensors(tmp_path / "whole")["model/told.weight"].sub(make_told().network.told.weight.detach()).abs().max()) > 0
    run(tmp_path / "without", 12, 0.0)
    assert not torch.equal(
        tensors(tmp_path / "whole")["model/layer.weight"], tensors(tmp_path / "without")["model/layer.weight"]
    )


def test_the_built_network_is_told_and_forgets(tmp_path):
    """Zeros are the default, so a loaded model samples what was not moved; the class still counts."""
    pytest.importorskip("diffusers")
    model = build_model(data.load("digits"), preset="tiny", augment=True)
    with torch.no_grad():
        model.network.told.weight.normal_()
    again = load_model(save_model(model, tmp_path / "model"))
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    with torch.no_grad():
        plain = again(x, 0.5, class_labels=label)
        assert torch.equal(plain, model.eval()(x, 0.5, class_labels=label))
        assert torch.equal(plain, again(x, 0.5, class_labels=label, augment=torch.zeros(2, 6)))
        assert not torch.allclose(plain, again(x, 0.5, class_labels=label, augment=torch.ones(2, 6)))
        assert not torch.allclose(plain, again(x, 0.5))


def test_what_cannot_be_augmented_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"augment=0.1 needs a network that is told.*AugmentedUNet"):
        fit(Denoiser(nn.Conv2d(1, 1, 3), process.VP()), pictures(), options(augment=0.1), tmp_path)
    with pytest.raises(ValueError, match=r"augment=0.1 moves pictures \(C, H, W\); these samples have shape \(4,\)"):
        fit(Denoiser(Told(), process.VP()), data.load(torch.randn(9, 4)), options(augment=0.1), tmp_path)
    with pytest.raises(ValueError, match=r"augment=0.1 moves pictures, and with --pairs would part them"):
        TrainConfig(pairs=("a", "b"), augment=0.1).check()
