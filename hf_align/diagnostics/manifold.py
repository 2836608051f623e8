"""Compares samples with references in an embedding space: precision, recall, density, coverage.

Precision: are the samples like the references? Recall: do they cover them? From balls that reach to
each point's k-th neighbour (Kynkäänniemi et al. 2019, arXiv:1904.06991). Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_mean, clustered_share
from hf_align.types import Estimate

_DISTANCES_HELD = 4_000_000  # in memory at a time (32 MB)


@dataclass(frozen=True)
class ManifoldComparison:
    """How samples and references overlap; each with the other side's balls taken as known.

    Attributes:
        precision: Share of samples inside the ball of some reference.
        recall: Share of references inside the ball of some sample.
        density: Mean number of reference balls a sample lies in, over k; about 1 for the same
            distribution, and it can exceed 1.
        coverage: Share of references whose ball holds a sample.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def compare_manifolds(
    embeddings: ArrayLike,
    prompts: ArrayLike,
    reference_embeddings: ArrayLike,
    reference_prompts: ArrayLike,
    *,
    num_neighbors: int = 4,
) -> ManifoldComparison:
    """Precision, recall, density and coverage of samples against references.

    Equal sets have precision and recall 1, far apart ones 0. All four depend on k, the number of
    points and the dimension: compare runs at the same three, and reduce the dimension first where
    it is high. Single outliers have wide balls and inflate recall; density and coverage resist them
    (Naeem et al. 2020, arXiv:2002.09797): for one and the same continuous distribution and N points
    on each side the expected coverage is 1 - prod_{i=1..k} (N - i) / (2N - i), precision and recall
    depend on the dimension. Applied to text by Le Bronnec et al. 2024, arXiv:2402.10693. O(N^2 D).

    Args:
        embeddings: (N, D) of the samples.
        prompts: (N,) their prompts.
        reference_embeddings: (N, D) of the references, as many.
        reference_prompts: (N,) their prompts.
        num_neighbors: k; the point itself does not count.

    Raises:
        ValueError: If the numbers of points differ, are not above k, shapes differ or a value is
            not finite.
    """
    points, others = _points(embeddings), _points(reference_embeddings)
    if points.shape != others.shape:
        raise ValueError(
            f"got embeddings {points.shape} and reference_embeddings {others.shape}, expected the "
            "same shape: draw as many of one as of the other"
        )
    if not 1 <= num_neighbors < len(points):
        raise ValueError(f"got num_neighbors {num_neighbors}, expected 1 to {len(points) - 1}")
    center = others.mean(axis=0)  # distances from inner products lose digits far from 0
    points, others = points - center, others - center
    radii = _squared_radii(points, num_neighbors)
    reference_radii = _squared_radii(others, num_neighbors)
    balls = np.zeros(len(points))  # reference balls that hold each sample
    recalled, covered = np.zeros(len(others), bool), np.zeros(len(others), bool)
    for rows in _blocks(len(points)):
        squared = _squared_distances(points[rows], others)
        inside = squared <= reference_radii
        balls[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        recalled |= (squared <= radii[rows, None]).any(axis=0)
    return ManifoldComparison(
        precision=clustered_share(balls > 0, prompts),
        recall=clustered_share(recalled, reference_prompts),
        density=clustered_mean(balls / num_neighbors, prompts),
        coverage=clustered_share(covered, reference_prompts),
    )


def _squared_radii(points: np.ndarray, num_neighbors: int) -> np.ndarray:
    """(N,) squared distance to the k-th nearest other point."""
    radii = np.empty(len(points))
    for rows in _blocks(len(points)):
        squared = _squared_distances(points[rows], points)
        squared[np.arange(len(squared)), np.arange(rows.start, rows.start + len(squared))] = np.inf
        radii[rows] = np.partition(squared, num_neighbors - 1, axis=1)[:, num_neighbors - 1]
    return radii


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)); what is rounding apart is at distance 0."""
    sizes = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)
    squared = sizes - 2 * (a @ b.T)
    return np.where(squared > 1e-12 * sizes, squared, 0.0)


def _blocks(num_points: int) -> list[slice]:
    step = max(1, _DISTANCES_HELD // num_points)
    return [slice(start, start + step) for start in range(0, num_points, step)]


def _points(embeddings: ArrayLike) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
        raise ValueError(f"got embeddings {embeddings.shape}, expected finite (N, D)")
    return embeddings
