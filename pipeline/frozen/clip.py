"""A CLIP with both towers: features for the CLIP score and for the distance between sets of images."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pipeline.frozen.models import TRANSFORMERS, load_part, load_tokenizer, load_weights, locate
from pipeline.frozen.pixels import square, unit_tensor


class Clip:
    """`size` = side of the input in pixels, `mean` and `std` of its normalisation (a value a channel), `width` = D,
    `tokens` of a caption at most, with those of its start and end."""

    def __init__(self, model: torch.nn.Module, tokenizer: object, processor: object) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.size: int = model.config.vision_config.image_size
        self.width: int = model.config.projection_dim
        self.tokens: int = model.config.text_config.max_position_embeddings
        self.mean: tuple[float, ...] = tuple(processor.image_mean)
        self.std: tuple[float, ...] = tuple(processor.image_std)
        self.scale: float = float(model.logit_scale.exp())  # of a cosine

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of any size to [B, 3, size, size] in [0, 1]: short side resized, centre crop."""
        return unit_tensor([square(image, self.size) for image in images])

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] to float32 [B, D], projected, not normalised."""
        mean, std = (torch.tensor(v, device=self._model.device).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
        pixels = (images.to(self._model.device, torch.float32) - mean) / std
        return self._model.get_image_features(pixels).pooler_output

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Captions to float32 [B, D], projected, not normalised. Longer ones are cut, their end token kept."""
        batch = self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt")
        return self._model.get_text_features(batch.input_ids.to(self._model.device)).pooler_output


def load_clip(ref: str, device: torch.device) -> Clip:
    """Raises: UserError if the reference leads to no CLIPModel with tokenizer and image processor."""
    place = locate(ref, TRANSFORMERS)
    if place.config.get("model_type") != "clip":
        raise place.fault(f"is a {place.class_name}, a transformers CLIPModel is needed")
    from transformers import AutoImageProcessor, CLIPModel

    model = load_weights(place, CLIPModel, device)
    return Clip(model, load_tokenizer(place), load_part(place, AutoImageProcessor))
