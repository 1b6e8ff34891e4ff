"""The search for a start: independent of chunks, reproducible, monotone, and honest about what it cannot use."""

import math

import pytest
import torch

import unstir
from unstir.denoiser import Denoiser
from unstir.process import VP
from unstir.steer import search_start
from unstir.steer.boundary import candidate, rank_correlation

torch.set_num_threads(1)
N, R = 3, 20


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRUTH, LOW = randn(R, N), randn(R, N, seed=1)
MODEL = Denoiser(lambda x, t, low: 0.3 * torch.tanh(x) + 0.1 * low, VP(), "data", shape=(N,))
PLAN = unstir.plan("ddim", VP(), nfe=4)


def square(x, truth):
    return (x - truth).square().mean(1)


def search(**change):
    settings = {"candidates": 12, "halving": False, **change}
    return search_start(MODEL, settings.pop("plan", PLAN), TRUTH, settings.pop("metric", square), {"low": LOW}, **settings)


def test_the_best_start_is_the_best_of_plain_runs() -> None:
    found = search()
    scores = {}
    for k in range(12):
        start = candidate(PLAN, (N,), 0, k, TRUTH).expand(R, N)
        scores[k] = float(square(unstir.sample(MODEL, PLAN, x=start, low=LOW), TRUTH).mean())
    scores[-1] = float(square(unstir.sample(MODEL, PLAN, x=torch.zeros(R, N).double(), low=LOW), TRUTH).mean())
    assert found.index == min(scores, key=scores.__getitem__)
    assert found.score == pytest.approx(scores[found.index])
    for k, row in found.table.items():
        assert float(row.mean()) == pytest.approx(scores[k])


def test_chunks_seeds_and_more_candidates() -> None:
    whole, pieces = search(), search(chunk=7)
    assert whole.index == pieces.index
    torch.testing.assert_close(torch.stack(list(whole.table.values())), torch.stack(list(pieces.table.values())))
    assert search(candidates=30).score <= whole.score
    good = whole.x[0] if whole.index >= 0 else candidate(PLAN, (N,), 0, 3, TRUTH)[0]
    assert search(candidates=1, extra=good[None]).score <= float(whole.table[3].mean()) + 1e-12
    if whole.index >= 0:
        assert torch.equal(candidate(PLAN, (N,), whole.seed, whole.index, TRUTH), whole.x)
    assert not torch.equal(candidate(PLAN, (N,), 1, 3, TRUTH), candidate(PLAN, (N,), 0, 3, TRUTH))


def test_halving_finds_the_same_where_the_references_agree() -> None:
    """A metric that ranks starts alike on every reference: ‖x‖ alone."""
    size = lambda x, truth: x.square().mean(1) + 0 * truth[:, 0]  # noqa: E731
    model = Denoiser(lambda x, t, low: 0.3 * torch.tanh(x), VP(), "data", shape=(N,))
    a, b = (search_start(model, PLAN, TRUTH, size, {"low": LOW}, candidates=40, halving=h) for h in (True, False))
    assert a.index == b.index == -1  # 0 is the smallest
    assert len(a.table[a.index]) == R
    assert sorted({len(row) for row in a.table.values()}) == [4, 16, R]
    assert b.correlation == pytest.approx(1.0)


def test_a_start_belongs_to_its_plan() -> None:
    found = search()
    assert found.expand(PLAN, 5).shape == (5, N)
    with pytest.raises(ValueError, match="search again"):
        found.expand(unstir.plan("ddim", VP(), nfe=5), 5)


def test_rank_correlation_is_spearmans() -> None:
    a = torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert rank_correlation(a, 2 * a + 1) == pytest.approx(1.0)
    assert rank_correlation(a, -a) == pytest.approx(-1.0)
    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 2])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": unstir.plan("ancestral", VP(), nfe=3)}, "adds noise"),
        ({"metric": lambda x, truth: (x - truth).square()}, r"metric returned \(260, 3\)"),
        ({"metric": lambda x, truth: square(x, truth) * math.nan}, "NaN"),
        ({"metric": lambda x, truth: 0 * square(x, truth)}, "ignores its start"),
        ({"candidates": 0}, "candidates=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"extra": torch.zeros(2, 5)}, "extra has shape"),
    ],
    ids=["noise", "maps", "nan", "flat", "candidates", "chunk", "extra"],
)
def test_wrong_arguments_are_named(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        search(**change)


def test_references_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"cond\['low'\]"):
        search_start(MODEL, PLAN, TRUTH, square, {"low": LOW[:3]})
    with pytest.raises(ValueError, match="truth contains NaN"):
        search_start(MODEL, PLAN, TRUTH * math.nan, square, {"low": LOW})
    with pytest.warns(UserWarning, match="one reference"):
        search_start(MODEL, PLAN, TRUTH[:1], square, {"low": LOW[:1]}, candidates=2)
