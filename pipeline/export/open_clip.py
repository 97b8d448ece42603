"""A text tower of open_clip, such as that of DFN5B ViT-H/14-378, as the CLIPTextModel of transformers that it equals."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts import write_json
from pipeline.frozen.models import Place
from pipeline.frozen.text.open_clip import load_open_clip
from pipeline.tensors import atomic_tensors

RENAMED = (
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)
WORDS = "text_model.embeddings.token_embedding.weight"
PLAIN = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "hf_tokenizer_name"}


def as_clip(place: Place, folder: Path) -> None:
    """Write text_encoder/ and tokenizer/ into `folder`.

    Raises: UserError for a tower that CLIPTextModel cannot be.
    """
    config = place.config["model_cfg"]
    text = config["text_cfg"]
    if odd := sorted(key for key, value in text.items() if key not in PLAIN and value) or text.get("hf_tokenizer_name"):
        raise place.fault(f"its text tower has {odd if isinstance(odd, str) else odd[0]}, which transformers' CLIP has not; "
                          "export without --with-frozen")  # fmt: skip
    tower = load_open_clip(place, torch.device("cpu"), torch.float32)
    state = dict(_renamed(tower.model.state_dict()))
    words = state[WORDS]  # open_clip pads with a token that texts have too, transformers with one of its own: the same vector
    state[WORDS] = torch.cat([words, words[tower.model.pad_id, None]])
    with atomic_tensors(folder / "text_encoder" / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
    write_json(folder / "text_encoder" / "config.json", _config(config, tower.model))
    _tokenizer(tower.positions).save_pretrained(folder / "tokenizer")


def _renamed(state: dict[str, Tensor]) -> Any:
    for name, value in state.items():
        if name == "attn_mask":
            continue
        for before, after in RENAMED:
            name = name.replace(before, after)
        if ".attn.in_proj_" in name:  # queries, keys and values in one
            layer, _, kind = name.partition(".attn.in_proj_")
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                yield f"text_model.{layer}.self_attn.{part}_proj.{kind}", tensor.contiguous()
        else:
            yield f"text_model.{name}", value.contiguous()


def _config(config: dict[str, Any], model: Any) -> dict[str, Any]:
    text = config["text_cfg"]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": model.width,
        "intermediate_size": int(model.width * text.get("mlp_ratio", 4.0)),
        "num_attention_heads": text["heads"],
        "num_hidden_layers": text["layers"],
        "max_position_embeddings": model.context_length,
        "vocab_size": model.vocab_size + 1,
        "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-5,
        "dtype": "float32",
    }


def _tokenizer(positions: int) -> Any:
    """CLIP's own, with a token more to pad with."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    start, end = simple.decoder[simple.sot_token_id], simple.decoder[simple.eot_token_id]
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<pad>"}
    tokenizer = CLIPTokenizer(vocab=simple.encoder, merges=merges, **special, model_max_length=positions)
    assert tokenizer.pad_token_id == len(simple.encoder), "the padding follows all tokens"
    return tokenizer
