"""CLIP score (Hessel et al., arXiv 2104.08718): how well images fit their captions."""

import numpy as np


def clip_score(images: np.ndarray, texts: np.ndarray) -> float:
    """Mean over pairs of 100·max(cos, 0), for embeddings [N, D] and [N, D] in CLIP's common space."""
    images, texts = _unit(images), _unit(texts)
    return float(100 * np.maximum((images * texts).sum(axis=1), 0).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
