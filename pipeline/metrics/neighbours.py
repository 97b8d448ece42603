"""Distances between images in a feature space, a stripe of the matrix at a time: what precision, recall, density and
coverage are counted from."""

from collections.abc import Iterator

import numpy as np

CHUNK = 500  # rows of the matrix at a time: 120 MB for 30,000 columns


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Stripes [up to 500, M] of |x - y|² for features [N, D] and [M, D], in float64."""
    centre = np.mean(b, axis=0, dtype=np.float64)
    a, b = np.asarray(a, np.float64) - centre, np.asarray(b, np.float64) - centre
    norms = (b * b).sum(axis=1)
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        yield np.maximum((rows * rows).sum(axis=1)[:, None] - 2 * rows @ b.T + norms, 0)


def squared_radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """|x - y|² [N] from each of the features [N, D] to its k-th nearest other one.

    Raises: ValueError if there are no more images than neighbours.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{len(features)} images have no {neighbours} neighbours each")
    found, start = [], 0
    for stripe in squared_distances(features, features):
        rows = np.arange(len(stripe))
        stripe[rows, start + rows] = np.inf  # not its own neighbour
        stripe.partition(neighbours - 1, axis=1)
        found.append(stripe[:, neighbours - 1].copy())  # not a view that keeps the stripe
        start += len(stripe)
    return np.concatenate(found)
