"""The bundled model: small, loadable, and it draws digits."""

import pytest
import torch

import unstir
from unstir import data
from unstir.interop import load_model
from unstir.interop.folder import MODELS

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")


def test_it_is_small_and_safe():
    files = [f for f in (MODELS / "digits").rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".json", ".safetensors"}
    assert sum(f.stat().st_size for f in files) <= 2 * 2**20


def test_it_draws_the_digits_it_is_asked_for():
    from sklearn.svm import SVC

    model = load_model("digits")
    labels = torch.arange(100) % 10
    x = unstir.sample(model, unstir.plan("dpmpp-2m", model.process, nfe=10), shape=(100, 1, 8, 8), seed=0, class_labels=labels)
    train = data.load("digits", split="train")
    judge = SVC(gamma=0.02, C=10).fit(train.all().flatten(1), train.labels)
    assert (judge.predict(x.flatten(1)) == labels.numpy()).mean() >= 0.93
    free = unstir.sample(model, unstir.plan("dpmpp-2m", model.process, nfe=10), shape=(100, 1, 8, 8), seed=1)
    assert len(set(judge.predict(free.flatten(1)))) >= 9  # without a class: all kinds


def test_it_does_better_on_unseen_digits_than_a_linear_denoiser():
    """e₀ at λ = 0 on the test split, against the best Gaussian denoiser of the training data."""
    model, train, test = load_model("digits"), data.load("digits", split="train"), data.load("digits", split="test")
    x0, t = test.all(), float(model.process.time(0.0))
    x = model.process.stir(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)))
    flat = train.all().flatten(1).double()
    linear = unstir.denoiser.Gaussian(model.process, flat.mean(0), torch.cov(flat.T))
    with torch.no_grad():
        ours = float((model(x, t) - x0).square().mean())
        theirs = float((linear(x.flatten(1).double(), t) - x0.flatten(1)).square().mean())
    assert ours < 0.75 * theirs
