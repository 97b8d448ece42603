"""DINOv2 (Oquab et al., arXiv 2304.07193) as the feature network of a Fréchet distance (Stein et al., arXiv 2306.04675).

As published: 224 px, bicubic, ImageNet's mean and deviation, and the class token behind the last norm.
"""

from typing import TYPE_CHECKING

from pipeline.frozen.models import TRANSFORMERS, identity, load_weights, locate
from pipeline.metrics.features import FeatureNetwork

if TYPE_CHECKING:
    import torch

PX = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, for pixels in 0…1


def dino(ref: str, device: "torch.device") -> FeatureNetwork:
    """A DINOv2 of transformers, of any size. Raises: UserError if the reference leads to none."""
    place = locate(ref, TRANSFORMERS)
    if place.config.get("model_type") not in ("dinov2", "dinov2_with_registers"):
        raise place.fault(f"is a {place.class_name}; evaluation.dino takes a Dinov2Model of transformers")
    import torch
    from transformers import AutoModel

    model, known = load_weights(place, AutoModel, device), identity(ref)
    mean, std = (255 * torch.tensor(values, device=device).reshape(3, 1, 1) for values in (MEAN, STD))
    return FeatureNetwork(
        ref,
        known.get("sha256") or known["revision"],
        PX,
        model.config.hidden_size,
        lambda pixels: model((pixels - mean) / std).last_hidden_state[:, 0],
    )
