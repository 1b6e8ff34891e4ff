"""Distances between sets of graphs: statistics of every graph, then MMD² over the graphs.

A graph is a symmetric adjacency matrix (N, N) of 0 and 1 without loops; graphs of a set may differ in N. Numbers of this kind
depend on the number of graphs, on the kernel and its width, so the score names the kernel, and the floor says what two
halves of the real graphs give. (On Evaluation Metrics for Graph Generative Models, 2022.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kernels import _mean
from .samples import Pair, Score

CLUSTERING_BINS, SPECTRUM_BINS = 100, 200
STATISTICS = ("degree", "clustering", "spectrum", "orbits")
# Width of the Gaussian kernel, and what the distance of neighbouring bins counts.
_WIDTH = {"degree": (1.0, 1.0), "clustering": (0.1, 1 / CLUSTERING_BINS), "spectrum": (1.0, 1.0), "orbits": (30.0, 1.0)}
# Orbit of a node of a connected graph of 4, by (edges, largest degree in it, own degree); and of 3, by (edges, own degree).
_FOUR = {
    **{(3, 2, 1): 4, (3, 2, 2): 5, (3, 3, 1): 6, (3, 3, 3): 7, (4, 2, 2): 8},
    **{(4, 3, 1): 9, (4, 3, 2): 10, (4, 3, 3): 11, (5, 3, 2): 12, (5, 3, 3): 13, (6, 3, 3): 14},
}
_THREE = {(2, 1): 1, (2, 2): 2, (3, 2): 3}


def graph_mmd(
    real: Sequence[Any], fake: Sequence[Any], statistic: str = "degree", *, kernel: str = "tv", seed: int = 0
) -> Score:
    """MMD² (V-statistic, as the literature has it, so ≥ 0 and 0 for equal sets) of a statistic of graphs.

    statistic  "degree"      histogram of degrees
               "clustering"  histogram of clustering coefficients, 100 bins in [0, 1]
               "spectrum"    histogram of the eigenvalues of the normalised Laplacian, 200 bins in [0, 2]
               "orbits"      mean orbit counts of a node, see `orbits` (always the kernel exp(−‖x − y‖²/(2·30²)))
    kernel     "tv"          exp(−TV²/2), TV = ½ Σ |p − q|: positive definite in practice, and independent of bins' order
               "emd"         exp(−EMD²/2σ²), EMD = Σ |CDF difference|, σ = 1, 0.1 (of the range), 1: the usual tables' kernel,
                             which is not positive definite in general

    For a metric without choices of statistics see `random_gin`. Raises ValueError for matrices that are no graphs.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic={statistic!r} is unknown; one of {', '.join(STATISTICS)}")
    if kernel not in ("tv", "emd"):
        raise ValueError(f"kernel={kernel!r} is unknown; one of 'tv', 'emd'")
    sets = [_graphs(graphs, name) for name, graphs in (("real", real), ("fake", fake))]
    found = [[_STATISTIC[statistic](graph) for graph in graphs] for graphs in sets]
    width = max(len(row) for rows in found for row in rows)
    features = [torch.tensor(np.stack([np.pad(row, (0, width - len(row))) for row in rows])) for rows in found]
    h, bin_width = _WIDTH[statistic]
    name = "rbf(30)" if statistic == "orbits" else kernel if kernel == "tv" else f"emd({h:g})"

    def k(u: Tensor, v: Tensor) -> Tensor:
        if statistic == "orbits":
            return (-torch.cdist(u, v).square() / (2 * h**2)).exp()
        if kernel == "tv":
            return (-(0.5 * torch.cdist(u, v, p=1)).square() / 2).exp()
        return (-(bin_width * torch.cdist(u.cumsum(1), v.cumsum(1), p=1)).square() / (2 * h**2)).exp()

    def biased(x: Tensor, y: Tensor) -> float:
        return _mean(k, x, x) + _mean(k, y, y) - 2 * _mean(k, x, y)

    def features_of(x: Tensor) -> Tensor:
        return x

    features_of.name = statistic  # type: ignore[attr-defined]
    return Pair.of(features[0], features[1], features_of, None, seed).score(f"MMD²-{name}-V", biased)


def orbits(graph: Any) -> np.ndarray:
    """(N, 15) counts: in how many connected induced subgraphs of 2 to 4 nodes a node takes each of the 15 places.

    edge 0; path of 3: end 1, middle 2; triangle 3; path of 4: end 4, inner 5; star: leaf 6, centre 7; 4-cycle 8;
    paw: pendant 9, degree 2 10, degree 3 11; diamond: degree 2 12, degree 3 13; K₄ 14.

    By enumeration of all sets of 4 nodes, so for graphs of up to about 100. (Biological Network Comparison Using Graphlet
    Degree Distribution, 2007.)
    """
    (a,) = _graphs([graph], "graph")
    count = np.zeros((len(a), 15), dtype=np.int64)
    count[:, 0] = a.sum(1)
    for size in (3, 4):
        for first in range(len(a) - size + 1):  # in portions, so that memory is O(N³)
            rest = list(combinations(range(first + 1, len(a)), size - 1))
            nodes = np.hstack([np.full((len(rest), 1), first), np.array(rest, dtype=np.int64)])
            degree = a[nodes[:, :, None], nodes[:, None, :]].sum(2)
            edges, most = degree.sum(1) // 2, degree.max(1)
            # Connected: every node has an edge, and there are enough (two edges may touch four nodes and not join them).
            whole = (degree.min(1) >= 1) & (edges >= size - 1)
            table = {(e, d): o for (e, d), o in _THREE.items()} if size == 3 else _FOUR
            for key, orbit in table.items():
                here = (edges == key[0])[:, None] & (degree == key[-1]) & whole[:, None]
                if size == 4:
                    here &= (most == key[1])[:, None]
                np.add.at(count[:, orbit], nodes[here], 1)
    return count


def random_gin(seed: int = 0, width: int = 32, layers: int = 3) -> Any:
    """A feature extractor of padded graphs (B, N, N): an untrained graph isomorphism network.

        h ← MLP((1 + A) h),   h₀ = 1,     features = Σ_nodes h of every layer     (B, layers · width)

    `mmd(real, fake, random_gin(seed))` is MMD[rand-GIN-seed0]; report the mean over ten seeds or more. Padding with
    isolated nodes changes the sums alike only if it is left out: rows without any edge do not count.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, before = [], 1
    for _ in range(layers):
        pair = [torch.linalg.qr(torch.randn(max(i, o), max(i, o), generator=generator, dtype=torch.float64)).Q[:i, :o]
                for i, o in ((before, width), (width, width))]  # fmt: skip
        weights.append(pair)
        before = width

    def features(a: Tensor) -> Tensor:
        a = a.double()
        there = (a.sum(2, keepdim=True) > 0).double()
        h, found = there, []
        for one, two in weights:
            h = torch.tanh(torch.relu(((a @ h) + h) @ one) @ two) * there
            found.append(h.sum(1))
        return torch.cat(found, 1)

    features.name = f"rand-GIN-seed{seed}"  # type: ignore[attr-defined]
    return features


def _graphs(graphs: Sequence[Any], name: str) -> list[np.ndarray]:
    found = []
    for i, given in enumerate(graphs):
        a = np.asarray(given)
        if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) == 0:
            raise ValueError(f"{name}[{i}] has shape {a.shape}; a graph is a square adjacency matrix")
        if not np.isin(a, (0, 1)).all() or (a != a.T).any() or a.diagonal().any():
            raise ValueError(f"{name}[{i}] must be symmetric, of 0 and 1, with a diagonal of 0")
        found.append(a.astype(np.int64))
    return found


def _degree(a: np.ndarray) -> np.ndarray:
    return np.bincount(a.sum(1)) / len(a)


def _clustering(a: np.ndarray) -> np.ndarray:
    """Share of a node's pairs of neighbours that are joined; 0 with fewer than two."""
    degree = a.sum(1)
    triangles = np.diagonal(a @ a @ a) / 2
    share = triangles / np.maximum(degree * (degree - 1) / 2, 1)
    return np.histogram(share, CLUSTERING_BINS, (0.0, 1.0))[0] / len(a)


def _spectrum(a: np.ndarray) -> np.ndarray:
    """Eigenvalues of 1 − D^{−½} A D^{−½} (0 for an isolated node)."""
    degree = a.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0.0)
    laplacian = np.diag((degree > 0).astype(float)) - scale[:, None] * a * scale[None, :]
    values = np.linalg.eigvalsh(laplacian).clip(0.0, 2.0)
    return np.histogram(values, SPECTRUM_BINS, (0.0, 2.0))[0] / len(a)


_STATISTIC: dict[str, Any] = {
    "degree": _degree,
    "clustering": _clustering,
    "spectrum": _spectrum,
    "orbits": lambda a: orbits(a).mean(0),
}
