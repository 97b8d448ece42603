"""Trains the tiny CLIP: image and text towers of width 64, on scenes of the split "train".

The contrastive loss alone is slow to learn shapes and positions. One linear read-out of the attributes, shared by
image embeddings, text embeddings and averaged token states, pulls all three towards a space where attributes are
linear, which is what the diffusion model needs of the text and what the distance between image sets needs of images.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from pipeline.embedded.readout import ReadOut, targets_of
from pipeline.embedded.scenes import WORDINGS, caption
from pipeline.embedded.training import matrices_and_others, optimise, pixels, scenes_of, write_card
from pipeline.embedded.wordpieces import build_tokenizer

TEXT_TOKENS = 24
WIDTH = 64
TWO_OBJECT_SHARE = 0.4
ADAMW_PEAK, MUON_PEAK = 2e-3, 1e-2


def build(tokenizer) -> CLIPModel:
    """An untrained CLIP of about 300 thousand parameters for the vocabulary of `tokenizer`."""
    tower = {"hidden_size": WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH, "hidden_act": "gelu"}
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {
        **tower, **special, "intermediate_size": 192, "num_hidden_layers": 2,
        "vocab_size": len(tokenizer), "max_position_embeddings": TEXT_TOKENS,
    }  # fmt: skip
    vision = {**tower, "intermediate_size": 192, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def image_processor() -> CLIPImageProcessor:
    """64 pixels, scaled to [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    size = {"height": 64, "width": 64}
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=size, image_mean=half, image_std=half)


def train(out_folder: Path, seed: int = 0, steps: int = 1500, batch: int = 96) -> None:
    """Train from scratch and save model, tokenizer, image processor and card in `out_folder`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(TEXT_TOKENS, seed)
    model = build(tokenizer)
    readout = ReadOut(WIDTH)

    def loss_at(step: int):
        scenes = scenes_of(seed, "train", step * batch, batch, TWO_OBJECT_SHARE)
        texts, sized = zip(*(_caption(scene, step + i) for i, scene in enumerate(scenes)), strict=True)
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        targets = targets_of(scenes)
        unsized = targets_of(scenes, torch.tensor(sized))
        return _loss(model, readout, degrade(pixels(scenes, 64), step), ids, targets, unsized)

    parameters = matrices_and_others([model, readout])
    seconds = optimise("clip", *parameters, loss_at, steps, MUON_PEAK, ADAMW_PEAK, weight_decay=0.05)
    folder = Path(out_folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    print(seconds)


def _caption(scene, number: int) -> tuple[str, bool]:
    """A caption of the scene and whether it names the sizes."""
    sized = number % 2 == 0
    return caption(scene, (number // 2) % len(WORDINGS), sized), sized


def degrade(batch: torch.Tensor, step: int) -> torch.Tensor:
    """Half the images lose their finest detail and gain noise, as pictures from a decoder do."""
    blurred = F.interpolate(F.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
    chosen = (torch.arange(len(batch)) + step) % 2 == 0
    noisy = batch + 0.04 * torch.randn_like(batch)
    return torch.where(chosen[:, None, None, None], (noisy + blurred) / 2, batch)


def _loss(model, readout, images, ids, targets, unsized):
    vision = model.get_image_features(images).pooler_output
    states = model.text_model(ids)
    text = model.text_projection(states.pooler_output)
    contrast, hits = contrastive(vision, text, model.logit_scale)
    seen = readout.loss(vision, targets)
    read = readout.loss(text, unsized)
    pooled = readout.loss(model.text_projection(states.last_hidden_state.mean(1)), unsized)
    shown = {"contrast": contrast.item(), "hits": hits, "image": seen.item(), "text": read.item()}
    return contrast + seen + read + pooled, {**shown, "pooled": pooled.item()}


def contrastive(vision, text, logit_scale):
    """CLIP's symmetric loss of embeddings [B, D] and the share of images that find their own text."""
    scale = logit_scale.exp().clamp(max=100)
    logits = scale * F.normalize(vision, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean().item()
