"""Restoration as `restore(y, physics)`: the posterior's mean, deepinv's protocol, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import unstir
from unstir.denoiser import Gaussian
from unstir.process import EDM, VP, Flow
from unstir.steer import Reconstructor, ValueRange, operators

SAME = ValueRange(-1.0, 1.0)
MIX = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, -1.0, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
COV = torch.tensor(
    [[0.2, 0.1, 0.0, 0.0], [0.1, 0.3, 0.1, 0.0], [0.0, 0.1, 0.2, 0.05], [0.0, 0.0, 0.05, 0.1]], dtype=torch.float64
)
NOISE = 0.1


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(process):
    return Gaussian(process, MEAN, COV)


def posterior_mean(y, noise=NOISE):
    gain = COV @ MIX.T @ torch.linalg.inv(MIX @ COV @ MIX.T + noise**2 * torch.eye(2, dtype=torch.float64))
    return MEAN + (y - MEAN @ MIX.T) @ gain.T


class Physics:
    """What deepinv calls a linear physics, in as few methods as will do."""

    def __init__(self, noise=NOISE):
        self.noise_model = SimpleNamespace(sigma=torch.tensor([noise]))

    def A(self, x):
        return x @ MIX.T.to(x)

    def A_adjoint(self, y):
        return y @ MIX.to(y)


Y = randn(3, 2, seed=1)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=repr)
def test_one_pair_of_twins_is_the_exact_mean_of_a_gaussian_posterior(process) -> None:
    """tmpd is exact for Gaussians, and a run affine in its noise: of two twins nothing of it is left."""
    plan = unstir.plan("ancestral", process, nfe=30, grid="logsnr")
    found = [
        Reconstructor(prior(process), "tmpd", plan, samples=2, twins=twins, values=SAME, steps=2)(Y, Physics())
        for twins in (True, False)
    ]
    off = [float((x - posterior_mean(Y)).square().mean().sqrt()) for x in found]
    assert off[0] < 1e-4
    assert off[1] > 0.05  # two draws that are independent still have the posterior's spread


def test_units_of_the_user_are_those_of_y_and_of_the_result() -> None:
    """Pictures u = (x + 1)/2 in [0, 1], as deepinv has them: the same problem, y and σ_y in other units."""
    offset = MIX.sum(1) / 2
    one = Reconstructor(prior(VP()), "pigdm", nfe=20, samples=2, values=SAME)(Y, Physics())
    other = Reconstructor(prior(VP()), "pigdm", nfe=20, samples=2)(Y / 2 + offset, Physics(NOISE / 2))
    torch.testing.assert_close(other, (one + 1) / 2)


def test_a_result_does_not_depend_on_its_batch_nor_on_the_number_of_samples() -> None:
    restore = Reconstructor(prior(VP()), nfe=20, samples=4, values=SAME)
    draws = restore.draws(Y, Physics())
    assert draws.shape == (4, 3, 4)
    assert draws.dtype == torch.float64
    torch.testing.assert_close(draws.mean(0), restore(Y, Physics()))
    torch.testing.assert_close(restore.draws(Y[:1], Physics()), draws[:, :1])
    plan = restore._plan("pigdm")
    two = Reconstructor(prior(VP()), None, plan, samples=2, values=SAME).draws(Y, Physics())
    torch.testing.assert_close(two, draws[:2])


def test_calls_are_shared_and_the_method_follows_the_operator() -> None:
    sizes = []
    exact = prior(VP())

    def network(x, t):
        sizes.append(len(x))
        return exact(x, t)

    model = unstir.Denoiser(network, VP(), "data", shape=(4,))
    y, spectral = Y, operators.dense(MIX, (4,))
    for physics, method in ((spectral, "ddrm"), (Physics(), "pigdm"), (operators.Nonlinear(lambda x: x @ MIX.T.to(x)), "dps")):
        sizes.clear()
        options = {"noise": NOISE, "values": SAME}
        found = Reconstructor(model, nfe=23, samples=4, **options)(y, physics)
        assert sizes == [12] * 5
        torch.testing.assert_close(found, Reconstructor(model, method, nfe=23, samples=4, **options)(y, physics))


def test_conditions_go_with_their_measurements() -> None:
    seen = []

    def network(x, t, label, scale):
        seen.append((label.tolist(), scale))
        return 0 * x

    model = unstir.Denoiser(network, VP(), "data", shape=(4,))
    Reconstructor(model, "diffpir", nfe=2, samples=2, values=SAME)(Y, Physics(), label=torch.tensor([7, 8, 9]), scale=2)
    assert seen == [([7, 8, 9, 7, 8, 9], 2)]


@pytest.mark.slow
def test_with_physics_of_deepinv_and_in_its_own_test_loop() -> None:
    """Skips where deepinv cannot be imported: a torchvision that does not fit torch raises a RuntimeError."""
    dinv = pytest.importorskip("deepinv", exc_type=Exception)
    model = unstir.load("digits")
    x = ((unstir.data.load("digits", split="test").all()[:2] + 1) / 2).float()
    noise = dinv.physics.GaussianNoise(0.05)
    restore = Reconstructor(model, nfe=16, samples=2)
    psnr = dinv.metric.PSNR()
    line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    for physics in (
        dinv.physics.Inpainting(img_size=(1, 8, 8), mask=0.5, noise_model=noise),
        dinv.physics.BlurFFT(img_size=(1, 8, 8), filter=kernel, noise_model=noise),
        dinv.physics.Downsampling(img_size=(1, 8, 8), factor=2, filter="gaussian", noise_model=noise),
    ):
        y = physics(x)
        better = psnr(restore(y, physics), x) - psnr(physics.A_adjoint(y).clamp(0, 1), x)
        assert float(better.mean()) > 1, type(physics).__name__
    physics = dinv.physics.Inpainting(img_size=(1, 8, 8), mask=0.5, noise_model=noise)
    pairs = torch.utils.data.TensorDataset(x, physics(x))
    loader = torch.utils.data.DataLoader(pairs, batch_size=2)
    scores = dinv.test(restore, loader, physics, metrics=psnr, verbose=False, show_progress_bar=False)
    assert scores["PSNR"] > scores["PSNR no learning"]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "magic"}, ValueError, "method='magic' is unknown"),
        ({"samples": 0}, ValueError, "samples=0"),
        ({"samples": 4, "nfe": 3}, ValueError, "nfe=3"),
        ({"plan": unstir.plan("ddim", VP(), nfe=4), "nfe": 4}, ValueError, "nfe=4 has no effect"),
        ({"noise": -1.0}, ValueError, "noise=-1.0"),
        ({"eta": 0.5}, ValueError, "eta= is an option of a method; name it"),
        ({"method": "ddrm"}, ValueError, "singular value decomposition"),
        ({"method": "pigdm", "colour": 3}, ValueError, "no option 'colour'"),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        Reconstructor(prior(VP()), values=SAME, **options)(Y, Physics())


def test_wrong_measurements_and_physics_are_named() -> None:
    restore = Reconstructor(prior(VP()), values=SAME)
    with pytest.raises(TypeError, match="knows no process"):
        Reconstructor(lambda x, t: x)
    with pytest.raises(TypeError, match="give measurements as a tensor"):
        restore([1.0, 2.0], Physics())
    with pytest.raises(TypeError, match="must have a method A"):
        restore(Y, "blur")
    with pytest.raises(ValueError, match="y has shape"):
        restore(randn(3, 5), Physics())
    several = Physics()
    several.noise_model.sigma = torch.tensor([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="3 different values"):
        restore(Y, several)
    shapeless = unstir.Denoiser(lambda x, t: x, VP(), "data")
    with pytest.raises(ValueError, match="form of the pictures"):
        Reconstructor(shapeless, values=SAME)(Y, operators.Nonlinear(lambda x: x))
