"""Trains the tiny CLIP: image and text towers of width 64, on scenes of the split "train".

The contrastive loss alone is slow to learn shapes and positions. One linear read-out of the attributes, shared by
image embeddings, text embeddings and averaged token states, pulls all three towards a space where attributes are
linear, which is what the diffusion model needs of the text and what the distance between image sets needs of images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from pipeline.embedded.readout import ReadOut, fit_probe, targets_of
from pipeline.embedded.scenes import WORDINGS, Scene, caption
from pipeline.embedded.training import matrices_and_others, optimise, pixels, rounded, scenes_of, write_card
from pipeline.embedded.wordpieces import build_tokenizer

TEXT_TOKENS = 24
WIDTH = 64
TWO_OBJECT_SHARE = 0.4
ADAMW_PEAK, MUON_PEAK = 2e-3, 2e-2


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
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
    model, readout = build(tokenizer), ReadOut(WIDTH)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        scenes = scenes_of(seed, "train", step * batch, batch, TWO_OBJECT_SHARE)
        # Wording and mention of sizes go round, so that all sixteen combinations come equally often.
        numbers = torch.arange(batch) + step
        sized = numbers % 2 == 0
        texts = [caption(s, n // 2 % len(WORDINGS), n % 2 == 0) for s, n in zip(scenes, numbers.tolist(), strict=True)]
        seen = degrade(pixels(scenes, 64), step)
        targets = targets_of(scenes), targets_of(scenes, sized)
        return batch_loss(model, readout, seen, token_ids(tokenizer, texts), *targets)

    parameters = matrices_and_others([model, readout])
    seconds = optimise("clip", *parameters, loss_at, steps, MUON_PEAK, ADAMW_PEAK, weight_decay=0.05)
    folder = Path(out_folder)
    for part in (model, tokenizer, image_processor()):
        part.save_pretrained(folder)
    finish(model.eval(), tokenizer, folder, seed, steps, batch, seconds)


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token numbers [B, 24] of texts, cut or padded to the length of the text tower."""
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def degrade(batch: torch.Tensor, step: int) -> torch.Tensor:
    """Half the images [B, 3, H, W] lose their finest detail and gain noise, as pictures from a decoder do."""
    blurred = F.interpolate(F.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
    chosen = (torch.arange(len(batch)) + step) % 2 == 0
    noisy = batch + 0.04 * torch.randn_like(batch)
    return torch.where(chosen[:, None, None, None], (noisy + blurred) / 2, batch)


def batch_loss(
    model: CLIPModel,
    readout: ReadOut,
    seen: torch.Tensor,
    ids: torch.Tensor,
    targets: dict[str, torch.Tensor],
    told: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of images [B, 3, 64, 64] and token numbers [B, L] and numbers to show.

    targets: the attributes of the images; told: those that the texts mention.
    """
    vision = model.get_image_features(seen).pooler_output
    states = model.text_model(ids)
    text = model.text_projection(states.pooler_output)
    averaged = model.text_projection(states.last_hidden_state.mean(1))
    contrast, hits = contrastive(vision, text, model.logit_scale)
    read = {
        "image": readout.loss(vision, targets),
        "text": readout.loss(text, told),
        "states": readout.loss(averaged, told),
    }
    shown = {"contrast": contrast.item(), "hits": hits} | {key: value.item() for key, value in read.items()}
    return contrast + sum(read.values()), shown


def contrastive(vision: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor) -> tuple[torch.Tensor, float]:
    """CLIP's symmetric loss of embeddings [B, D] and the share of images that find their own text."""
    scale = logit_scale.exp().clamp(max=100)
    logits = scale * F.normalize(vision, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean().item()


def finish(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path, seed: int, steps: int, batch: int, seconds: float) -> None:
    """Measure and write the card."""
    data = f"scenes of the split train with captions, {TWO_OBJECT_SHARE:.0%} with two objects, at 64 pixels"
    write_card(
        folder, name="embedded:clip", model=f"CLIPModel, width {WIDTH}, {TEXT_TOKENS} text tokens", data=data,
        seed=seed, steps=steps, batch=batch, training_seconds=round(seconds), parameters=model.num_parameters(),
        quality=rounded(measure(model, tokenizer, seed)),
    )  # fmt: skip


def measure(model: CLIPModel, tokenizer: CLIPTokenizer, seed: int, count: int = 1000) -> dict[str, Any]:
    """Retrieval among 256 held-out pairs, and linear probes fitted on training scenes, read on held-out ones.

    Retrieval counts a hit when image and caption agree in every attribute: scenes that differ by jitter only have
    the same caption. Features: embeddings of images and texts, and token states averaged over the 24 places.
    """
    known_scenes = scenes_of(seed + 1, "train", 0, 2 * count, 0.25)
    new_scenes = scenes_of(seed + 1, "heldout", 0, count, 0.25)
    known, new = features(model, tokenizer, known_scenes), features(model, tokenizer, new_scenes)
    probes = {key: fit_probe(known[key], targets_of(known_scenes))(new[key], targets_of(new_scenes)) for key in known}
    scores = F.normalize(new["image"][:256], dim=1) @ F.normalize(new["text"][:256], dim=1).T
    names = [_names(scene) for scene in new_scenes[:256]]
    return {
        "images": count,
        "image_to_text_of_256": _hits(scores, names),
        "text_to_image_of_256": _hits(scores.T, names),
        "probe_accuracy": probes,
        "states_mean_std": new["states_mean"].std().item(),
    }


def _names(scene: Scene) -> tuple[str, ...]:
    objects = sorted((o.position, o.colour, o.shape, o.size) for o in scene.objects)
    return (scene.background, *(name for item in objects for name in item))


def _hits(scores: torch.Tensor, names: list[tuple[str, ...]]) -> float:
    best = scores.argmax(1).tolist()
    return sum(names[i] == names[k] for i, k in enumerate(best)) / len(names)


@torch.no_grad()
def features(model: CLIPModel, tokenizer: CLIPTokenizer, scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Embeddings of images and of captions that name the sizes, and the averaged token states, all [B, D]."""
    texts = [caption(scene, i % len(WORDINGS), True) for i, scene in enumerate(scenes)]
    states = model.text_model(token_ids(tokenizer, texts))
    parts = pixels(scenes, 64).split(250)
    return {
        "image": torch.cat([model.get_image_features(part).pooler_output for part in parts]),
        "text": model.text_projection(states.pooler_output),
        "states_mean": states.last_hidden_state.mean(1),
    }
