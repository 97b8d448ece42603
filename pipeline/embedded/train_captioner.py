"""Trains the tiny captioner: a ViT that looks and a GPT-2 that writes captions like those of the scenes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPTokenizer,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from pipeline.embedded.detector import compare
from pipeline.embedded.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, WORDINGS, Scene, caption
from pipeline.embedded.training import matrices_and_others, optimise, pixels, rounded, scenes_of, write_card
from pipeline.embedded.wordpieces import build_tokenizer

TEXT_TOKENS = 24
WIDTH = 64
TWO_OBJECT_SHARE = 0.5
ADAMW_PEAK, MUON_PEAK = 2e-3, 2e-2
IGNORE = -100


def build(tokenizer: CLIPTokenizer) -> VisionEncoderDecoderModel:
    """An untrained captioner of about 300 thousand parameters for the vocabulary of `tokenizer`."""
    look = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192,
        image_size=64, patch_size=8,
    )  # fmt: skip
    write = GPT2Config(
        vocab_size=len(tokenizer), n_positions=TEXT_TOKENS, n_embd=WIDTH, n_layer=2, n_head=4, n_inner=192,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, add_cross_attention=True, is_decoder=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(look, write, tie_word_embeddings=False)
    config.decoder_start_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    model = VisionEncoderDecoderModel(config)
    # Muon makes the patches loud at once; small random positions would drown under them, and with them the words.
    model.encoder.embeddings.position_embeddings.data[0, 1:] = positions(8, WIDTH)
    chosen = {"decoder_start_token_id": tokenizer.bos_token_id, "max_length": TEXT_TOKENS, "do_sample": False}
    model.generation_config.update(**chosen, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of the row and the column of each place on a square grid, [side * side, width]."""
    waves = torch.arange(side)[:, None] * torch.pi / side * torch.arange(1, width // 4 + 1) / 2
    line = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def image_processor() -> ViTImageProcessor:
    """64 pixels, scaled to [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=half, image_std=half)


def train(out_folder: Path, seed: int = 0, steps: int = 1000, batch: int = 96) -> None:
    """Train from scratch and save model, tokenizer, image processor and card in `out_folder`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(TEXT_TOKENS, seed)
    model = build(tokenizer)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        scenes = scenes_of(seed, "train", step * batch, batch, TWO_OBJECT_SHARE)
        texts = [caption(in_reading_order(s), (i + step) % len(WORDINGS), True) for i, s in enumerate(scenes)]
        labels, mask = labels_of(tokenizer, texts)
        return model(pixels(scenes, 64), labels=labels, decoder_attention_mask=mask).loss, {}

    parameters = matrices_and_others([model])
    seconds = optimise("captioner", *parameters, loss_at, steps, MUON_PEAK, ADAMW_PEAK, weight_decay=0.05)
    folder = Path(out_folder)
    for part in (model, tokenizer, image_processor()):
        part.save_pretrained(folder)
    finish(model.eval(), tokenizer, folder, seed, steps, batch, seconds)


def in_reading_order(scene: Scene) -> Scene:
    """The scene with its objects from top left to bottom right: free order makes the captioner mix them up."""
    places = list(POSITIONS)
    return replace(scene, objects=tuple(sorted(scene.objects, key=lambda item: places.index(item.position))))


def labels_of(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers to predict [B, 23] (the words, one end mark, then IGNORE) and the mask of what is read."""
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, IGNORE)[:, 1:]
    return labels, tokens.attention_mask[:, :-1]


def finish(
    model: VisionEncoderDecoderModel, tokenizer: CLIPTokenizer, folder: Path, seed: int, steps: int, batch: int,
    seconds: float,
) -> None:  # fmt: skip
    """Measure and write the card."""
    data = f"scenes of the split train with captions, {TWO_OBJECT_SHARE:.0%} with two objects, at 64 pixels"
    write_card(
        folder, name="embedded:captioner", model=f"VisionEncoderDecoderModel, ViT and GPT-2 of width {WIDTH}",
        data=data, seed=seed, steps=steps, batch=batch, training_seconds=round(seconds),
        parameters=model.num_parameters(), quality=rounded(measure(model, tokenizer, seed)),
    )  # fmt: skip


def measure(model: VisionEncoderDecoderModel, tokenizer: CLIPTokenizer, seed: int, count: int = 400) -> dict[str, Any]:
    """Accuracy of the words in captions of held-out scenes, by number of objects; an example caption."""
    found = {"images": count}
    for name, share in (("one_object", 0.0), ("two_objects", 1.0)):
        scenes = scenes_of(seed, "heldout", 0, count, share)
        texts = write(model, tokenizer, pixels(scenes, 64))
        rows = [compare(read(text), scene.attributes()) for text, scene in zip(texts, scenes, strict=True)]
        found[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        found[name]["example"] = texts[0]
    return found


@torch.no_grad()
def write(model: VisionEncoderDecoderModel, tokenizer: CLIPTokenizer, batch: torch.Tensor) -> list[str]:
    """Captions of images [B, 3, 64, 64] in [-1, 1], the likeliest word at every place."""
    return tokenizer.batch_decode(model.generate(pixel_values=batch), skip_special_tokens=True)


def read(text: str) -> dict[str, Any]:
    """The attributes that a caption names, in the form of the detector."""
    objects = []
    for part in text.split(" and ")[:2]:
        named = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "position": POSITIONS}
        objects.append({key: _first(part, names) for key, names in named.items()})
    return {"background": _first(text, BACKGROUNDS), "objects": objects}


def _first(text: str, names: Sequence[str]) -> str | None:
    """The name that the text mentions as words of their own, if any."""
    padded = " " + text.replace(",", " ") + " "
    return next((name for name in names if f" {name} " in padded), None)
