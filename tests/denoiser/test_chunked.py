"""A network's batch in pieces: the same samples, bitwise independent of the batch when the pieces are single."""

import pytest
import torch

import unstir
from unstir.denoiser import chunked


@pytest.mark.parametrize("solver", ["auto", "ancestral"])
def test_a_real_network_gives_a_sample_bitwise_whatever_the_batch(solver: str) -> None:
    model = chunked(unstir.load("digits"), 1)
    plan = unstir.plan(solver, model.process, nfe=3)
    labels = torch.arange(8)
    eight = unstir.sample(model, plan, shape=8, seed=4, class_labels=labels)
    alone = unstir.sample(model, plan, shape=1, seed=4, index=[5], class_labels=labels[5:6])
    assert torch.equal(eight[5], alone[0])


def test_pieces_cover_the_batch_and_split_what_belongs_to_samples() -> None:
    seen = []

    class Model(torch.nn.Module):
        process = unstir.process.VP()

        def forward(self, x, t, label, shared):
            seen.append((len(x), len(t), len(label), len(shared)))
            return x * t[:, None] + label[:, None]

    x, t, label = torch.randn(7, 2), torch.rand(7), torch.arange(7.0)
    out = chunked(Model(), 3)(x, t, label=label, shared=torch.zeros(2))
    assert torch.equal(out, x * t[:, None] + label[:, None])
    assert seen == [(3, 3, 3, 2), (3, 3, 3, 2), (1, 1, 1, 2)]
    with pytest.raises(ValueError, match="size=0"):
        chunked(Model(), 0)


class Recalls(torch.nn.Module):
    """D = ½ x + ⅓ previous, pixel by pixel."""

    def forward(self, x, t, previous):
        return 0.5 * x + previous / 3


def swap(ctx, x):
    perm = torch.tensor([2, 0, 4, 1, 3])
    ctx.permute(perm)
    return x[perm]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_a_run_remembers_follows_permuted_samples(size: int) -> None:
    """Samples that change places, and pieces, take their own last estimates along: as without pieces."""
    model = unstir.Denoiser(Recalls(), unstir.process.VP(), "data", sees_previous=True)
    plan, x = unstir.plan("ddim", model.process, nfe=4), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    whole = unstir.sample(model, plan, x=x, hooks=swap)
    assert torch.allclose(unstir.sample(chunked(model, size), plan, x=x, hooks=swap), whole, atol=1e-6)
    assert not torch.allclose(unstir.sample(model, plan, x=x, hooks=lambda ctx, x: x[[2, 0, 4, 1, 3]]), whole, atol=1e-3)
