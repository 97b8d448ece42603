"""CMMD (Jayasumana et al., arXiv 2401.09603): the distance of two sets of CLIP embeddings by a Gaussian kernel.

As published: embeddings of unit length, sigma 10, times 1,000, and the estimate that counts each image's likeness to
itself. That makes it a little positive for two draws of one distribution, and never negative.
"""

import numpy as np

SIGMA, SCALE = 10.0, 1000.0
CHUNK = 1000  # rows of a kernel matrix at a time


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """For embeddings [N, D] and [M, D], of any length each. Time N·M·D, memory 1,000·M."""
    a, b = _unit(a), _unit(b)
    return SCALE * (_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b))


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of exp(-|x - y|² / 2 sigma²) over all pairs; |x - y|² = 2 - 2 x·y for unit vectors."""
    total = sum(np.exp((a[i : i + CHUNK] @ b.T - 1) / SIGMA**2).sum() for i in range(0, len(a), CHUNK))
    return float(total) / (len(a) * len(b))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    # float64: the three means agree in their first digits.
    embeddings = np.asarray(embeddings, dtype=np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
