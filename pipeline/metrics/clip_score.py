"""CLIP score (Hessel et al., arXiv 2104.08718): how well images fit their captions."""

import numpy as np


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """100·max(cos, 0) of each pair [N], for embeddings [N, D] and [N, D] in CLIP's common space."""
    return 100 * np.maximum((_unit(images) * _unit(texts)).sum(axis=1), 0)


def clip_score(images: np.ndarray, texts: np.ndarray) -> float:
    """Mean over the pairs."""
    return float(clip_scores(images, texts).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
