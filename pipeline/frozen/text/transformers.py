"""The families of transformers: CLIP, SigLIP, T5 and UMT5 encoders, and causal language models."""

from typing import Any

import torch

from pipeline.frozen.families import CLIP, SIGLIP, T5
from pipeline.frozen.models import Place, load_tokenizer, load_weights
from pipeline.frozen.text.tower import TransformersTower


def load_clip(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    """CLIP's text tower, alone or in a CLIPModel. As in its training there is no padding mask; attention is causal."""
    model = _load(place, CLIP, device, dtype)
    positions = model.config.max_position_embeddings
    return TransformersTower(model, load_tokenizer(place), model.config.hidden_size, positions, positions)


def load_siglip(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    """The text tower of SigLIP (arXiv 2303.15343) or SigLIP 2 (2502.14786).

    It was trained on lower case and on captions padded to all its positions, with attention to the padding from both
    sides: so the padding decides the embedding of every token, and it is always read whole.
    """
    model = _load(place, SIGLIP, device, dtype)
    positions, width = model.config.max_position_embeddings, model.config.hidden_size
    tokenizer = load_tokenizer(place)
    return TransformersTower(model, tokenizer, width, positions, positions, reads_all=True, lower_case=True)


def load_t5(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    """The encoder of T5 v1.1, mT5 or UMT5. Positions are relative: any length. The padding is masked."""
    model = _load(place, T5, device, dtype)
    return TransformersTower(model, load_tokenizer(place), model.config.d_model, None, None, hides_padding=True)


def load_decoder(place: Place, device: torch.device, dtype: torch.dtype) -> TransformersTower:
    """A causal language model without its head. Padding is right and masked, so that it changes no real token."""
    from transformers import AutoModel

    model, tokenizer = load_weights(place, AutoModel, device, dtype, trust_remote_code=False), load_tokenizer(place)
    model.config.use_cache = False
    tokenizer.truncation_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise place.fault("its tokenizer has no token to pad with; name a pad_token in tokenizer_config.json")
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return TransformersTower(model, tokenizer, config.hidden_size, positions, None, hides_padding=True)


def _load(place: Place, classes: dict[str, str], device: torch.device, dtype: torch.dtype) -> Any:
    import transformers

    return load_weights(place, getattr(transformers, classes[place.config["model_type"]]), device, dtype)
