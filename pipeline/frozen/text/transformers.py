"""The families of transformers: CLIP, SigLIP, T5 and UMT5 encoders, and causal language models."""

from typing import Any

import torch

from pipeline.frozen.families import CLIP, SIGLIP, T5
from pipeline.frozen.models import Place, load_tokenizer, load_weights
from pipeline.frozen.text.tower import TransformersTower


def clip_tower(model: Any, tokenizer: Any) -> TransformersTower:
    """CLIP's text tower. As in its training there is no padding mask; attention is causal."""
    positions = model.config.max_position_embeddings
    return TransformersTower(model, tokenizer, model.config.hidden_size, positions, positions)


def siglip_tower(model: Any, tokenizer: Any) -> TransformersTower:
    """The text tower of SigLIP (arXiv 2303.15343) or SigLIP 2 (2502.14786).

    It was trained on lower case and on captions padded to all its positions, with attention to the padding from both
    sides: so the padding decides the embedding of every token, and it is always read whole.
    """
    positions, width = model.config.max_position_embeddings, model.config.hidden_size
    return TransformersTower(model, tokenizer, width, positions, positions, reads_all=True, lower_case=True)


def t5_tower(model: Any, tokenizer: Any) -> TransformersTower:
    """The encoder of T5 v1.1, mT5 or UMT5. Positions are relative: any length. The padding is masked."""
    return TransformersTower(model, tokenizer, model.config.d_model, None, None, hides_padding=True)


def decoder_tower(model: Any, tokenizer: Any) -> TransformersTower:
    """A causal language model without its head. Padding is right and masked, so that it changes no real token."""
    body, config = model.base_model, model.config.get_text_config()
    body.config.use_cache = False
    tokenizer.truncation_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    positions = getattr(config, "max_position_embeddings", None)
    return TransformersTower(body, tokenizer, config.hidden_size, positions, None, hides_padding=True)


TOWERS = {"clip": clip_tower, "siglip": siglip_tower, "t5": t5_tower, "decoder": decoder_tower}


def load_clip(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    """Alone or in a CLIPModel."""
    return clip_tower(_load(place, CLIP, device, dtype), load_tokenizer(place))


def load_siglip(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    return siglip_tower(_load(place, SIGLIP, device, dtype), load_tokenizer(place))


def load_t5(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    return t5_tower(_load(place, T5, device, dtype), load_tokenizer(place))


def load_decoder(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    from transformers import AutoModel

    model = load_weights(place, AutoModel, device, dtype, trust_remote_code=False)
    tower = decoder_tower(model, load_tokenizer(place))
    if tower.tokenizer.pad_token is None:
        raise place.fault("its tokenizer has no token to pad with; name a pad_token in tokenizer_config.json")
    return tower


def _load(place: Place, classes: dict[str, str], device: torch.device, dtype: torch.dtype) -> Any:
    import transformers

    return load_weights(place, getattr(transformers, classes[place.config["model_type"]]), device, dtype)
