"""Small detectors with random weights of the real classes, saved as their users get them."""

import torch

from tests.unit.frozen.small_models import clip_tokenizer

NAMES = ("dog", "computer mouse", "cat")  # as GenEval writes them
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip


def save_mask2former(folder):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

    torch.manual_seed(0)
    labels = {0: "dog", 1: "mouse", 2: "cat"}  # as the checkpoints of COCO write them
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(image_size=64, **SWIN), id2label=labels, label2id={v: k for k, v in labels.items()},
        hidden_dim=32, feature_size=32, mask_feature_size=32, num_queries=10, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, encoder_feedforward_dim=32, dim_feedforward=32,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}, ignore_index=255).save_pretrained(folder)


def save_grounding_dino(folder):
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog", "computer", "mo", "##use", "cat", "?", "a"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    text = BertConfig(vocab_size=len(pieces), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(image_size=64, **{**SWIN, "out_features": ["stage2", "stage3", "stage4"]}),
        text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=10, max_text_len=32,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    GroundingDinoProcessor(pictures, BertTokenizer(vocab=vocabulary)).save_pretrained(folder)


def save_owlv2(folder):
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(32)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = Owlv2Config(text_config=text, vision_config={**tower, "image_size": 64, "patch_size": 16}, projection_dim=16)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)


MAKERS = {"mask2former": save_mask2former, "grounding_dino": save_grounding_dino, "owlv2": save_owlv2}
