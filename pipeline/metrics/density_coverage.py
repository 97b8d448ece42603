"""Density and coverage (Naeem et al., arXiv 2002.09797): precision and recall that single outliers do not decide.

Both count with the balls around real images that reach to their 5th nearest neighbour, none with those around drawn ones.
"""

from typing import NamedTuple

import numpy as np

from pipeline.metrics.neighbours import squared_distances, squared_radii

NEIGHBOURS = 5


class DensityCoverage(NamedTuple):
    """`density`: real balls a drawn image lies in, over k; 1 on average for the same distribution, may be above.
    `coverage`: share of the real balls that hold a drawn image."""

    density: float
    coverage: float


def density_coverage(made: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS) -> DensityCoverage:
    """For features [N, D] and [M, D]. Time (N + M)·M·D. Raises: ValueError if there are no more real images than neighbours."""
    radii = squared_radii(reference, neighbours)
    inside, covered = 0, np.zeros(len(reference), dtype=bool)
    for stripe in squared_distances(made, reference):
        within = stripe < radii
        inside += int(within.sum())
        covered |= within.any(axis=0)
    return DensityCoverage(inside / (neighbours * len(made)), float(covered.mean()))
