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
