"""Frozen text encoders: CLIP, open_clip, SigLIP, T5 and UMT5, and causal language models."""

from pipeline.frozen.text.encoder import TextEncoder, load_text_encoder

__all__ = ["TextEncoder", "load_text_encoder"]
