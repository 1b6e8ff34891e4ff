"""The benches that systems share: deterministic, of the promised scale, and trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unstir.evaluate import frechet
from unstir.plan import sample
from unstir.process import EDM, VP
from unstir.solvers import plan
from unstir.systems._digits import DigitsNet, errors, exact, guided, pca_digits, report, trained, untrained
from unstir.systems.protocol import at_most


def test_the_exact_bench_is_a_function_of_its_seed() -> None:
    one, two, other = pca_digits(), pca_digits(), pca_digits(seed=1)
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, other.x)
    assert one.x.shape == (400, 20)


def test_principal_coordinates_have_unit_overall_deviation_and_orthonormal_axes() -> None:
    digits = pca_digits(1797)
    assert float(digits.x.std()) == pytest.approx(1.0)
    assert float(digits.x.mean()) == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(digits.axes @ digits.axes.T, torch.eye(20, dtype=torch.float64))


def test_pictures_invert_the_coordinates_up_to_what_was_left_out() -> None:
    digits = pca_digits(1797, dims=64)
    assert digits.pictures(digits.x).shape == (1797, 1, 8, 8)
    assert float(digits.pictures(digits.x).min()) == pytest.approx(-1.0)
    assert float(digits.pictures(digits.x).max()) == pytest.approx(1.0)


def test_a_class_is_a_part_of_the_whole() -> None:
    digits = pca_digits()
    three = exact(digits, VP(), label=3)
    assert len(three.data) == int((digits.labels == 3).sum())
    assert bool((three.data[:, None] == exact(digits, VP()).data).all(2).any(1).all())


def test_guidance_of_weight_one_and_zero() -> None:
    digits, process = pca_digits(), VP()
    whole, three = exact(digits, process), exact(digits, process, label=3)
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(guided(three, whole, 1.0)(x, 0.5), three(x, 0.5))
    torch.testing.assert_close(guided(three, whole, 0.0)(x, 0.5), whole(x, 0.5))


def test_errors_are_zero_against_the_plan_itself() -> None:
    process, digits = VP(), pca_digits()
    model, x = exact(digits, process), process.prior((3, 20), dtype=torch.float64)
    same = plan("ddim", process, 5, end=1e-3)
    found = errors(model, {"itself": lambda n: same}, [5], x, sample(model, same, x=x))
    assert found == {"itself": {5: 0.0}}


def test_a_failed_claim_is_red() -> None:
    assert 'class="failed"' in report("Title", "Text.", [at_most("one is below zero", 1.0, 0.0)]).html()
    assert 'class="failed"' not in report("Title", "Text.", [at_most("zero is below one", 0.0, 1.0)]).html()


def test_the_fresh_network_is_the_linear_denoiser() -> None:
    """Its output layer is zero, so D = c_skip x/α; and the same x/α gives the same D on every process."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    vp, edm = VP(), EDM()
    t, s = 0.4, float(edm.time(vp.logsnr(0.4)))
    data = untrained(vp)(x, t)
    ratio = float(vp.noise_ratio(t))
    torch.testing.assert_close(data, x / float(vp.alpha(t)) * 0.752**2 / (0.752**2 + ratio**2))
    torch.testing.assert_close(data, untrained(edm)(x / float(vp.alpha(t)), s))


def test_the_network_has_half_a_million_weights() -> None:
    assert 450_000 < sum(p.numel() for p in DigitsNet().parameters()) < 750_000


def test_training_is_seeded_cached_and_conditional(tmp_path: Path) -> None:
    one = trained(VP(), tmp_path / "a", steps=3)
    two = trained(VP(), tmp_path / "b", steps=3)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["digits-v1-3-0.safetensors"]
    stamp = (tmp_path / "a" / files[0]).stat().st_mtime_ns
    again = trained(EDM(), tmp_path / "a", steps=3)
    assert (tmp_path / "a" / files[0]).stat().st_mtime_ns == stamp
    for (name, w), v, u in zip(
        one.network.state_dict().items(), two.network.state_dict().values(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(w, v), name
        assert torch.equal(w, u), name
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x, 0.5), one(x, 0.5, class_labels=10))
    assert not torch.equal(one(x, 0.5), one(x, 0.5, class_labels=torch.tensor([3, 4])))


@pytest.mark.slow
def test_the_trained_network_draws_digits(runs: Path) -> None:
    from unstir.data import load

    model = trained(VP(), runs)
    drawn = sample(model, "dpmpp-2m", nfe=50, shape=1000)
    score = frechet(load("digits").all().flatten(1), drawn.flatten(1))
    assert score.value < 1.0
