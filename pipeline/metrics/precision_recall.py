"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991): are the drawn images like real ones, and are all
kinds of real images drawn?

A set covers the balls around its images that reach to their 3rd nearest neighbour in the set.
"""

from typing import NamedTuple

import numpy as np

from pipeline.metrics.neighbours import squared_distances, squared_radii

NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1: of the drawn images within the real ones, of the real images within the drawn ones."""

    precision: float
    recall: float


def precision_recall(made: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """For features [N, D] and [M, D]. Time (N + M)²·D. Raises: ValueError if a set has no more images than neighbours."""
    around_made, around_reference = squared_radii(made, neighbours), squared_radii(reference, neighbours)
    precise, recalled = 0, np.zeros(len(reference), dtype=bool)
    start = 0
    for stripe in squared_distances(made, reference):
        precise += int((stripe <= around_reference).any(axis=1).sum())
        recalled |= (stripe <= around_made[start : start + len(stripe), None]).any(axis=0)
        start += len(stripe)
    return PrecisionRecall(precise / len(made), float(recalled.mean()))
