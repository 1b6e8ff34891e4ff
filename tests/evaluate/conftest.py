"""Data of several test files: two halves of the real digits."""

import pytest
import torch


@pytest.fixture(scope="session")
def digits():
    """(train, test, labels of train, labels of test): two random halves of the real digits, (898, 1, 8, 8) in [−1, 1]."""
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(7))
    x, y = torch.tensor(bunch.images)[order, None].float() / 8 - 1, torch.tensor(bunch.target)[order]
    return x[:898], x[898:1796], y[:898], y[898:1796]
