"""Devices and classes that are not there are named before the network is asked."""

import pytest
import torch

import unstir
from unstir import process


class Classes(torch.nn.Module):
    """A network that adds the class to nothing; its fourth number means any class."""

    def forward(self, x, t, class_labels=3):
        return 0 * x + torch.as_tensor(class_labels).reshape(-1, 1)


MODEL = unstir.Denoiser(Classes(), process.VP(), "data", shape=(2,), meta={"null": {"class_labels": 3}})


@pytest.mark.parametrize(
    ("labels", "error", "told"),
    [
        (4, ValueError, r"class_labels has the class 4; the model knows 0 … 3 \(3: any\)"),
        (-1, ValueError, "class -1"),
        (torch.tensor([0, 7]), ValueError, "class 7"),
        ([0, 7], ValueError, "class 7"),
        (1.5, TypeError, "whole numbers"),
        ("two", TypeError, "whole numbers"),
        (True, TypeError, "whole numbers"),
    ],
    ids=str,
)
def test_classes_out_of_range_are_named(labels, error, told):
    with pytest.raises(error, match=told):
        unstir.sample(MODEL, nfe=2, shape=2, class_labels=labels)
    with pytest.raises(error, match=told):
        next(iter(unstir.steps(MODEL, unstir.plan("ddim", MODEL, nfe=2), shape=2, class_labels=labels)))


def test_all_classes_and_any_of_them_are_drawn():
    for label in range(4):
        assert torch.equal(unstir.sample(MODEL, nfe=2, shape=2, class_labels=label), torch.full((2, 2), float(label)))


@pytest.mark.parametrize("device", ["teapot", 3.5, "cuda:99"], ids=str)
def test_devices_that_are_not_there_are_named(device):
    with pytest.raises(ValueError, match=f"device={device!r} cannot be used"):
        unstir.sample(MODEL, nfe=2, shape=2, device=device)
    if isinstance(device, str):
        with pytest.raises(ValueError, match=f"device={device!r} cannot be used"):
            unstir.load("digits", device=device)
