"""FID of infinitely many drawn images (Chong and Forsyth, arXiv 1911.07023), and so the bias of the FID of those there are.

The FID's bias is close to proportional to 1/N. Sub-samples of growing size give points on a line over 1/N; where it meets
0 is the FID without that bias. The bias from the finite reference stays in it: that is the same for all models.
"""

import numpy as np

from pipeline.metrics.fid import Reference, gaussian

SIZES, SMALLEST = 15, 1 / 6  # as published for 30,000 images: 15 sizes from 5,000 on
REPEATS = 4  # sub-samples of each size; the largest is all images


def fid_infinity(features: np.ndarray, reference: Reference, seed: int = 0) -> float | None:
    """For features [N, D] of drawn images. None unless the smallest sub-sample has more images than features: below that
    the bias is no longer proportional to 1/N."""
    images, width = features.shape
    sizes = np.linspace(images * SMALLEST, images, SIZES).astype(int)
    if sizes[0] <= width:
        return None
    draws = np.random.default_rng(seed)
    chosen = [(size, draws.permutation(images)[:size]) for size in sizes for _ in range(REPEATS if size < images else 1)]
    found = [reference.distance(gaussian(features[rows])) for _, rows in chosen]
    return float(np.polynomial.Polynomial.fit([1 / size for size, _ in chosen], found, 1)(0))
