"""The frozen captioner: a vision-encoder-decoder or an image-text-to-text model of transformers, decoded greedily."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from pipeline.frozen.models import Place, load_part, load_tokenizer, load_weights, locate

PROMPT = "Describe this image in one sentence."
NEW_TOKENS = 96  # longer than the 77 that a CLIP text encoder reads


class Captioner:
    """Writes one caption an image. `inputs(images)` makes the model's keyword arguments, `decode` turns ids to texts."""

    def __init__(self, model: torch.nn.Module, inputs: Any, decode: Any) -> None:
        self._model = model
        self._inputs = inputs
        self._decode = decode

    @torch.no_grad()
    def write(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images of any size to captions; empty where the model says nothing."""
        batch = {key: value.to(self._model.device) for key, value in self._inputs(list(images)).items()}
        prompt = batch["input_ids"].shape[1] if "input_ids" in batch else 0
        ids = self._model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=self._room(prompt))
        if not self._model.config.is_encoder_decoder:
            ids = ids[:, prompt:]  # decoder-only models repeat the prompt
        return [" ".join(text.split()) for text in self._decode(ids, skip_special_tokens=True)]

    def _room(self, prompt: int) -> int:
        positions = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return NEW_TOKENS if positions is None else max(1, min(NEW_TOKENS, positions - max(prompt, 1)))


def load_captioner(ref: str, device: torch.device) -> Captioner:
    """Raises: UserError if the reference leads to no such model with its processor."""
    place = locate(ref)
    return _vision_encoder_decoder(place, device) if _is_pair(place) else _image_text_to_text(place, device)


def _is_pair(place: Place) -> bool:
    return place.config.get("model_type") == "vision-encoder-decoder"


def _vision_encoder_decoder(place: Place, device: torch.device) -> Captioner:
    from transformers import AutoImageProcessor, VisionEncoderDecoderModel

    processor, tokenizer = load_part(place, AutoImageProcessor), load_tokenizer(place)
    model = load_weights(place, VisionEncoderDecoderModel, device)
    return Captioner(model, lambda images: processor(images=images, return_tensors="pt"), tokenizer.batch_decode)


def _image_text_to_text(place: Place, device: torch.device) -> Captioner:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = load_part(place, AutoProcessor)
    model = load_weights(place, AutoModelForImageTextToText, device, trust_remote_code=False)
    if not getattr(processor, "chat_template", None):
        return Captioner(model, lambda images: _from_images_alone(place, processor, images), processor.batch_decode)
    processor.tokenizer.padding_side = "left"  # generation goes on at the right end
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def inputs(images: list[Image.Image]) -> Any:
        return processor(text=[prompt] * len(images), images=[[i] for i in images], padding=True, return_tensors="pt")

    return Captioner(model, inputs, processor.batch_decode)


def _from_images_alone(place: Place, processor: Any, images: list[Image.Image]) -> Any:
    """Captioners without a chat template, such as BLIP, take no prompt."""
    try:
        return processor(images=images, return_tensors="pt")
    except (TypeError, ValueError) as error:
        raise place.fault(f"has no chat template and its processor takes no image without a prompt ({error})") from error
