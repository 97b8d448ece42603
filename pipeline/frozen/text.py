"""The frozen text encoder: a CLIP text tower (transformers CLIPTextModel, or the one in a CLIPModel)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.frozen.models import load_tokenizer, load_weights, locate


class TextEncoder:
    """`shape` is (L, Dt): tokens a caption and width of an embedding.

    `drop_padding`: embeddings of the padding are zeros, as they are read from a file that holds none of it. That is what
    a network takes whose configuration says `drop_text_padding`.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: object, tokens: int, drop_padding: bool = False) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._drop_padding = drop_padding
        self.shape: tuple[int, int] = (tokens, model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to (tokens [B, L, Dt], lengths [B]): the last hidden state after the final norm, float32.

        Longer captions are cut, their end token kept; shorter ones are padded, and `lengths` counts what is before the
        padding. As in CLIP's training there is no padding mask: attention is causal and padding comes last, so it changes
        no real token, and a reader that wants none of it takes the first `lengths` tokens.
        """
        length = {"padding": "max_length", "padding_side": "right", "max_length": self.shape[0], "truncation": True}
        batch = self._tokenizer(list(texts), **length, return_tensors="pt")
        hidden = self._model(batch.input_ids.to(self._model.device)).last_hidden_state
        if self._drop_padding:
            hidden = hidden * batch.attention_mask.to(hidden)[:, :, None]
        return hidden, batch.attention_mask.sum(1)


def load_text_encoder(ref: str, tokens: int | None, device: torch.device, drop_padding: bool = False) -> TextEncoder:
    """`tokens` null: as many as the model has positions. `drop_padding`: see `TextEncoder`.

    Raises: UserError if the reference leads to no CLIP text tower, or it has fewer positions than `tokens`.
    """
    place = locate(ref)
    if place.config.get("model_type") not in ("clip", "clip_text_model"):
        raise place.fault(f"is a {place.class_name}, models.text_encoder takes a transformers CLIPTextModel or CLIPModel")
    from transformers import CLIPTextModel

    model = load_weights(place, CLIPTextModel, device)
    positions = model.config.max_position_embeddings
    if tokens is not None and not 2 <= tokens <= positions:
        raise place.fault(f"has {positions} positions; models.text_tokens must be between 2 and {positions}, found {tokens}")
    return TextEncoder(model, load_tokenizer(place), tokens or positions, drop_padding)
