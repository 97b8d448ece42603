"""Families of frozen models: what the config says of one before its weights are read. Nothing here imports torch."""

from typing import Any

from pipeline.frozen.models import Place, locate

# Classes of diffusers, and whether they give a posterior to sample from.
AUTOENCODERS = {"AutoencoderKL": True, "AutoencoderTiny": False, "AutoencoderDC": False}
# model_type of a config, and the class of transformers that is its text encoder.
CLIP = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
SIGLIP = {
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
}
T5 = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
DECODERS = ("ForCausalLM", "LMHeadModel")  # how the classes of language models end


def family_of_type(kind: str | None) -> str | None:
    """clip, siglip or t5 by the model_type of a config, None for others."""
    families = {"clip": CLIP, "siglip": SIGLIP, "t5": T5}
    return next((family for family, classes in families.items() if kind in classes), None)


def has_posterior(model: dict[str, Any]) -> bool:
    """Whether the autoencoder of this identity gives a mean and a spread; the others give a latent."""
    return AUTOENCODERS.get(model["class"], False)


def autoencoder_dtype(place: Place, wanted: str) -> str:
    """`wanted`, or float32 for an AutoencoderKL whose config says `force_upcast`, or does not say.

    Activations of SDXL's reach beyond what fp16 holds, and its authors ask for float32; a few of its kind were trained
    to need less, and say so.
    """
    upcast = place.class_name == "AutoencoderKL" and place.config.get("force_upcast", True)
    return "float32" if upcast else wanted


def computed_in(ref: str, wanted: str) -> str:
    """What the autoencoder of a reference computes in. Raises: UserError as `locate`."""
    return autoencoder_dtype(locate(ref), wanted)


def text_family(place: Place) -> str:
    """open_clip, clip, siglip, t5 or decoder. Raises: UserError for a model that is none of these."""
    if place.class_name == "open_clip":
        return "open_clip"
    if family := family_of_type(place.config.get("model_type")):
        return family
    if place.class_name.endswith(DECODERS):
        return "decoder"
    raise place.fault(
        f"is a {place.class_name}; models.text_encoder takes CLIP, open_clip, SigLIP, T5 or UMT5, or a causal language model"
    )
