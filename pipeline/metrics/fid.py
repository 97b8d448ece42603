"""FID (Heusel et al., arXiv 1706.08500) and KID (Bińkowski et al., arXiv 1801.01401) on arrays of features.

clean-fid works out both distances; what is added is float64, seeded subsets and a standard error. `cleanfid` is
imported when called, as it loads torch and torchvision.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgWarning

SUBSET_IMAGES = 1000  # clean-fid's, as are the 100 subsets
LEAST_IMAGES = 4  # two halves of two


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    cov: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """Features [N, D], D > 1, to the Gaussian that FID compares. Unbiased covariance."""
    features = np.asarray(features, dtype=np.float64)
    return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False))


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between features [N, D] and [M, D]. Biased upwards for few images: compare equal counts."""
    return frechet(gaussian(a), gaussian(b))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance between two Gaussians, by clean-fid."""
    from cleanfid.fid import frechet_distance

    with warnings.catch_warnings():
        # SciPy warns of the argument that clean-fid passes, and of singular products, which few images always give.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        return float(frechet_distance(*a, *b))


class Reference:
    """The fixed side of many Fréchet distances: what depends on it alone is worked out once.

    With R the symmetric root of its covariance, tr (S_r S)^½ = tr (R S R)^½: the sum of the roots of the eigenvalues of a
    symmetric matrix, some ten times as fast as clean-fid's root of S_r S and the same number where S_r S is regular.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.mean, cov = gaussian(features)
        self._trace, self._root = np.trace(cov), _root(cov)

    def distance(self, other: Gaussian) -> float:
        """Fréchet distance of another Gaussian of the same width."""
        values = np.linalg.eigvalsh(self._root @ other.cov @ self._root)
        shift = other.mean - self.mean
        return float(shift @ shift + self._trace + np.trace(other.cov) - 2 * np.sqrt(np.maximum(values, 0)).sum())


def _root(cov: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    std_error: float


def kid(a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int | None = None, seed: int = 0) -> Estimate:
    """Kernel distance between features [N, D] and [M, D]: the mean over random subsets; unbiased, so it may be negative.

    The standard error comes from the spread of the subsets by the delete-d jackknife (Shao and Wu 1989): a subset of
    m of n images deviates from the value of all n by (n-m)/m times the variance that this value has itself.
    `subset_size` is by default 1,000, or half of the images if there are fewer than 2,000.
    Raises ValueError if a subset is below 2 images or is not smaller than both sets.
    """
    images = min(len(a), len(b))
    size = subset_size or min(SUBSET_IMAGES, images // 2)
    if not 2 <= size < images:
        raise ValueError(f"KID: subsets of {size} of {images} images; give 2 or more, and fewer than there are images")
    values = _subset_distances(np.asarray(a, np.float64), np.asarray(b, np.float64), subsets, size, seed)
    of_all_images, of_the_mean = size / (images - size), 1 / subsets
    return Estimate(float(values.mean()), float(np.sqrt(values.var(ddof=1) * (of_all_images + of_the_mean))))


def _subset_distances(a: np.ndarray, b: np.ndarray, subsets: int, size: int, seed: int) -> np.ndarray:
    """One distance a subset [subsets]. clean-fid draws from NumPy's global state: it is given whole subsets, where a
    draw only changes the order, and the state is put back."""
    from cleanfid.fid import kernel_distance

    draws, state = np.random.default_rng(seed), np.random.get_state()
    try:
        pairs = ((a[draws.choice(len(a), size, False)], b[draws.choice(len(b), size, False)]) for _ in range(subsets))
        return np.array([kernel_distance(x, y, num_subsets=1, max_subset_size=size) for x, y in pairs])
    finally:
        np.random.set_state(state)
