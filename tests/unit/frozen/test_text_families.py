"""Every family of text encoders, as its library itself computes it, with random weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.frozen.models import content, identity
from pipeline.frozen.text import TextEncoder, load_text_encoder
from tests.unit.frozen import family_models

CPU = torch.device("cpu")
TEXTS = ["a red cat", "", "a photo of a green dog of a blue cat of a dog"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {name: save(folder / name) for name, save in family_models.TEXT_ENCODERS.items()}


def load(folder: Path, tokens: int | None = 8, **options) -> TextEncoder:
    return load_text_encoder(str(folder), tokens, CPU, **options)


@pytest.mark.parametrize("name", list(family_models.TEXT_ENCODERS))
def test_every_family_embeds_captions_of_any_length(encoders: dict[str, Path], name: str) -> None:
    encoder = load(encoders[name])
    tokens, lengths = encoder.encode(TEXTS)
    assert encoder.shape == (8, 16) and tokens.shape == (3, 8, 16) and tokens.dtype == torch.float32
    assert 1 <= lengths[1] < lengths[0] <= lengths[2] == 8 and tokens.isfinite().all()
    dropped, same = load(encoders[name], drop_padding=True).encode(TEXTS)
    assert torch.equal(lengths, same)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(dropped[row, :length], tokens[row, :length])
        assert not dropped[row, length:].any()
    assert (tokens - dropped).any()  # there is something at the padding that can be dropped


@pytest.mark.parametrize("name", [name for name in family_models.TEXT_ENCODERS if not name.startswith("siglip")])
def test_padding_changes_no_real_token(encoders: dict[str, Path], name: str) -> None:
    short, long = load(encoders[name], 10).encode(TEXTS[:1]), load(encoders[name], 12).encode(TEXTS)
    count = int(short[1][0])
    assert count == long[1][0] and count < 12
    torch.testing.assert_close(short[0][0, :count], long[0][0, :count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(family_models.TEXT_ENCODERS))
def test_half_precision_is_near_and_given_back_whole(encoders: dict[str, Path], name: str) -> None:
    whole, half = load(encoders[name]), load(encoders[name], dtype=torch.bfloat16)
    a, b = (encoder.encode(TEXTS)[0] for encoder in (whole, half))
    assert b.dtype == torch.float32 and 0 < (a - b).norm() / a.norm() < 0.03


def test_rotary_positions_stay_precise(encoders: dict[str, Path]) -> None:
    model = load(encoders["smollm3"], dtype=torch.bfloat16)._tower.model
    kept = {name: buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert kept and set(kept.values()) == {torch.float32} and next(model.parameters()).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize(("name", "version"), [("siglip", "Siglip"), ("siglip2", "Siglip2")])
def test_siglip_reads_lower_case_and_its_whole_padding(encoders: dict[str, Path], name: str, version: str) -> None:
    import transformers

    words = family_models.tokenizer()
    model = getattr(transformers, f"{version}TextModel").from_pretrained(encoders[name]).eval()
    ids = words(["a red cat"], padding="max_length", max_length=family_models.TOKENS, return_tensors="pt").input_ids
    expected = model(ids).last_hidden_state
    for tokens in (None, 6):
        found, lengths = load(encoders[name], tokens).encode(["A Red CAT"])
        torch.testing.assert_close(found, expected[:, : tokens or family_models.TOKENS])
        assert lengths.tolist() == [4]


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), [("t5", "T5"), ("umt5", "UMT5")])
def test_t5_masks_its_padding(encoders: dict[str, Path], name: str, kind: str) -> None:
    import transformers

    model = getattr(transformers, f"{kind}EncoderModel").from_pretrained(encoders[name]).eval()
    ids = torch.tensor(family_models.tokenizer()(["a red cat"]).input_ids)
    found, lengths = load(encoders[name], 20).encode(["a red cat"])
    assert ids.shape == (1, 4) and ids[0, -1] == 1 and lengths.tolist() == [4]
    torch.testing.assert_close(found[:, :4], model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_the_encoder_of_a_whole_t5_is_taken(tmp_path: Path) -> None:
    encoder = load(family_models.save_t5(tmp_path, whole=True))
    assert encoder.encode(TEXTS)[0].isfinite().all() and not hasattr(encoder._tower.model, "decoder")


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), [("qwen2", "Qwen2Model"), ("gemma3", "Gemma3TextModel"), ("smollm3", "SmolLM3Model")])
def test_language_models_give_the_state_after_the_final_norm(encoders: dict[str, Path], name: str, kind: str) -> None:
    import transformers

    model = getattr(transformers, kind).from_pretrained(encoders[name]).eval()
    words = transformers.AutoTokenizer.from_pretrained(encoders[name])
    ids = torch.tensor(words(["a red cat"]).input_ids)
    found, lengths = load(encoders[name], 12).encode(["a red cat"])
    assert lengths.tolist() == [ids.shape[1]] and (ids[0, 0] == 2) == (name == "gemma3")
    states = model(ids, output_hidden_states=True)
    torch.testing.assert_close(found[:, : ids.shape[1]], states.last_hidden_state, rtol=1e-4, atol=1e-5)


def test_an_empty_caption_of_a_language_model_is_one_token_of_padding(encoders: dict[str, Path]) -> None:
    for name, length in (("qwen2", 1), ("gemma3", 1)):  # of Gemma it is the start token
        tokens, lengths = load(encoders[name]).encode(["", ""])
        assert lengths.tolist() == [length, length] and tokens.isfinite().all() and torch.equal(tokens[0], tokens[1])


def test_a_language_model_without_padding_is_padded_with_its_end(tmp_path: Path) -> None:
    encoder = load(family_models.save_decoder(tmp_path, "SmolLM3", pad=False))
    ids = encoder.read(["a red cat"]).ids
    assert ids[0, 3:].tolist() == [1] * 5


def test_a_number_of_tokens_is_needed_where_there_is_none(encoders: dict[str, Path]) -> None:
    for name in ("t5", "umt5", "qwen2"):
        with pytest.raises(UserError, match=r"any length; models\.text_tokens must say"):
            load(encoders[name], None)
    with pytest.raises(UserError, match=r"has 32 positions; models\.text_tokens must be between 2 and 32, found 33"):
        load(encoders["qwen2"], 33)


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
def test_open_clip_gives_what_open_clip_gives(tmp_path: Path, safe: bool) -> None:
    import open_clip

    texts = ["A red cat!!!", "", "wonderful " * 100, "caf\u00e9 &amp; \U0001f642"]
    folder, model = family_models.save_open_clip(tmp_path / "model", safe), family_models.open_clip_model()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    states = model.transformer(model.token_embedding(ids) + model.positional_embedding, attn_mask=model.attn_mask)
    expected = model.ln_final(states)
    tokens, lengths = load(folder, None).encode(texts)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)
    assert tokens.shape == (4, 77, 16) and lengths.tolist() == [(row == 49407).int().argmax() + 1 for row in ids]
    ends = tokens[torch.arange(4), lengths - 1]
    torch.testing.assert_close(ends @ model.text_projection, model.encode_text(ids), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(load(folder, 20).encode(texts[:1])[0], expected[:1, :20])


def as_transformers(folder: Path) -> Path:
    """The text tower of the open_clip model in the form of transformers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(**sizes, vocab_size=49408, hidden_act="quick_gelu", eos_token_id=49407, bos_token_id=49406)
    state = family_models.open_clip_model().state_dict()
    clip = CLIPTextModel(config)
    places = {name.removeprefix("text_model."): value for name, value in clip.state_dict().items()}
    renamed = {"embeddings.token_embedding.weight": state["token_embedding.weight"]}
    renamed["embeddings.position_embedding.weight"] = state["positional_embedding"]
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    parts |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        renamed[f"final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        for layer in range(2):
            here, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            renamed |= {f"{here}.{name}.{kind}": state[f"{there}.{other}.{kind}"] for name, other in parts.items()}
            packed = state[f"{there}.attn.in_proj_{kind}"].chunk(3)
            renamed |= {f"{here}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", packed, strict=True)}
    assert set(places) - {"embeddings.position_ids"} == set(renamed)
    prefix = "text_model." if any(name.startswith("text_model.") for name in clip.state_dict()) else ""
    clip.load_state_dict({prefix + name: value for name, value in renamed.items()}, strict=False)
    clip.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_same_weights_in_transformers_form_agree(tmp_path: Path) -> None:
    import open_clip
    from transformers import CLIPTextModel

    tokens, _ = load(family_models.save_open_clip(tmp_path / "open"), None).encode(TEXTS)
    clip = CLIPTextModel.from_pretrained(as_transformers(tmp_path / "clip")).eval()
    expected = clip(open_clip.SimpleTokenizer()(TEXTS)).last_hidden_state
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_open_clip_tower_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    """As open_clip's SigLIP checkpoints are: attention to both sides, another vocabulary, canonical text."""
    text = {"context_length": 10, "vocab_size": 13, "no_causal_mask": True, "pool_type": "last", "hf_tokenizer_name": "any/name"}
    folder = family_models.save_open_clip(tmp_path / "model", **text, tokenizer_kwargs={"clean": "canonicalize"})
    family_models.tokenizer().save_pretrained(folder)
    tokens, lengths = load(folder, 6).encode(["A red, CAT!"])
    assert tokens.shape == (1, 6, 16) and lengths.tolist() == [4]
    ids = torch.tensor([[4, 7, 10, 1, 0, 0, 0, 0, 0, 0]])
    model = family_models.open_clip_model(**{k: v for k, v in text.items() if k != "hf_tokenizer_name"})
    expected = model.ln_final(model.transformer(model.token_embedding(ids) + model.positional_embedding, attn_mask=None))
    torch.testing.assert_close(tokens, expected[:, :6])


def test_of_a_checkpoint_in_both_forms_open_clips_is_read(tmp_path: Path) -> None:
    folder = family_models.save_open_clip(tmp_path / "both")
    for file in as_transformers(tmp_path / "clip").iterdir():
        shutil.copy(file, folder / file.name)
    assert identity(str(folder))["class"] == "open_clip" and load(folder).encode(TEXTS)[0].shape == (3, 8, 16)


def test_identity_follows_open_clips_weights_in_either_file(tmp_path: Path) -> None:
    for safe, file in ((True, "open_clip_model.safetensors"), (False, "open_clip_pytorch_model.bin")):
        folder = family_models.save_open_clip(tmp_path / str(safe), safe)
        before = content(identity(str(folder)))
        data = bytearray((folder / file).read_bytes())
        data[-1] ^= 1
        (folder / file).write_bytes(data)
        assert content(identity(str(folder))) != before
        (folder / file).unlink()
        with pytest.raises(UserError, match=r"no \.safetensors in"):
            identity(str(folder))
        with pytest.raises(UserError, match=r"no open_clip_model\.safetensors or open_clip_pytorch_model\.bin"):
            load(folder)


class Planted:
    """Runs when it is unpickled by a careless reader."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.file,)


def test_code_in_a_bin_is_not_run(tmp_path: Path) -> None:
    folder = family_models.save_open_clip(tmp_path / "model", safe=False)
    torch.save({"planted": Planted(tmp_path / "ran")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"open_clip_pytorch_model\.bin cannot be read as tensors alone"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"hf_model_name": "roberta-base"}, "text tower has hf_model_name"),
        ({"embed_cls": True}, "text tower has embed_cls"),
        ({"tokenizer_kwargs": {"reduction_mask": "random"}}, "tokenizer_kwargs of its config have reduction_mask"),
        ({"width": 32}, "its weights are not those of open_clip_config.json"),
        ({"nonsense": 1}, "open_clip builds no text tower from its config"),
    ],
)
def test_open_clip_towers_that_are_not_known_are_named(tmp_path: Path, text: dict, words: str) -> None:
    folder = family_models.save_open_clip(tmp_path / "model")
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] |= text
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_open_clip_model_loads_from_the_hubs_cache(tmp_path: Path) -> None:
    """Offline: a repository as a download leaves it, with a .bin alone and a config.json of transformers beside it."""
    commit = "89abcdef0123456789abcdef0123456789abcdef"
    snapshot = tmp_path / "hub" / "models--owner--open" / "snapshots" / commit
    folder = family_models.save_open_clip(tmp_path / "model", safe=False)
    (folder / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    shutil.copytree(folder, snapshot)
    code = f"""
import json, torch
from pipeline.frozen.models import identity
from pipeline.frozen.text import load_text_encoder
ref = "hf:owner/open@{commit}"
print(json.dumps([identity(ref), load_text_encoder(ref, None, torch.device("cpu")).shape]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    named, shape = json.loads(run.stdout)
    assert named == {"ref": f"hf:owner/open@{commit}", "class": "open_clip", "revision": commit} and shape == [77, 16]


def test_other_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(UserError, match=r"is a BertForMaskedLM; models\.text_encoder takes CLIP, open_clip, SigLIP, T5 or UMT5"):
        load(tmp_path)
