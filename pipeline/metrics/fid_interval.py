"""How far the FID would move with other images of the same model: an interval by the bootstrap (Efron 1979).

The drawn images are resampled, the reference stays: it is the same for every model that is compared. A resample has fewer
different images, so its FID is biased upwards as that of a smaller set; plain quantiles would lie above the FID itself.
What is used is the spread of the resamples around their own mean, laid around the FID (basic interval, bias removed):
an interval for the FID at this number of images, not for the FID of infinitely many.
"""

import numpy as np

from pipeline.metrics.fid import Gaussian, Reference

LEVEL = 0.95


def fid_interval(features: np.ndarray, reference: Reference, resamples: int, seed: int = 0) -> tuple[float, float]:
    """Ends of the interval of level 0.95 for features [N, D] of drawn images. Time: `resamples` times N·D² + D³."""
    features = np.asarray(features, dtype=np.float64)
    centre = features.mean(axis=0)
    value = reference.distance(_weighted(features - centre, centre, np.ones(len(features))))
    draws = np.random.default_rng(seed).multinomial(len(features), np.full(len(features), 1 / len(features)), resamples)
    found = np.array([reference.distance(_weighted(features - centre, centre, counts)) for counts in draws])
    low, high = np.quantile(found - found.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(value - high), float(value - low)


def _weighted(centred: np.ndarray, centre: np.ndarray, counts: np.ndarray) -> Gaussian:
    """Gaussian of rows [N, D] that are taken so many times [N] each; `centred` keeps the sums small."""
    total, kept = counts.sum(), counts > 0
    rows = centred[kept] * np.sqrt(counts[kept])[:, None]
    mean = counts @ centred / total
    return Gaussian(centre + mean, (rows.T @ rows - total * np.outer(mean, mean)) / (total - 1))
