"""Frozen models copied into a model folder are what their references are, also to the code that the folder carries."""

import json

import pytest
import torch
import transformers

from pipeline.errors import UserError
from pipeline.export.frozen import copy_frozen
from pipeline.frozen.families import family_of_type
from pipeline.frozen.text import TextEncoder, load_text_encoder
from pipeline.frozen.text.transformers import TOWERS
from pipeline.frozen.vae import load_vae
from tests.unit.frozen.family_models import AUTOENCODERS, TEXT_ENCODERS, TOKENS, save_open_clip
from tests.unit.frozen.small_models import save_clip

CPU = torch.device("cpu")
PROMPTS = ["a red cat", "A photo of a dog !", "", "red green blue cat dog " * 5]


@pytest.mark.parametrize("family", AUTOENCODERS)
def test_an_autoencoder_decodes_as_before(family, tmp_path):
    place = str(AUTOENCODERS[family](tmp_path / "before"))
    assert copy_frozen("vae", place, tmp_path / "model", False) == {"vae": ["diffusers", load_class(tmp_path / "before")]}
    before, after = load_vae(place, CPU), load_vae(str(tmp_path / "model/vae"), CPU)
    z = torch.randn(2, before.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before.decode(z), after.decode(z))


def load_class(folder):
    return json.loads((folder / "config.json").read_text())["_class_name"]


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("family", TEXT_ENCODERS)
def test_a_text_encoder_reads_as_before(family, drop, tmp_path):
    place = str(TEXT_ENCODERS[family](tmp_path / "before"))
    parts = copy_frozen("text_encoder", place, tmp_path / "model", False)
    tokens = 77 if family == "open_clip" else TOKENS
    expected, lengths = load_text_encoder(place, tokens, CPU, drop).encode(PROMPTS)
    copied = load_text_encoder(str(tmp_path / "model/text_encoder"), tokens, CPU, drop)
    plain = TextEncoder(_plain(tmp_path / "model", parts), tokens, drop)
    for found, counts in (copied.encode(PROMPTS), plain.encode(PROMPTS)):
        assert torch.equal(counts, lengths)
        if family == "open_clip":  # in the order of another library
            assert (found - expected).norm() < 1e-6 * expected.norm()
        else:
            assert torch.equal(found, expected)


def _plain(folder, parts):
    """As plain diffusers loads the parts that a model_index.json names."""
    model, tokenizer = (
        getattr(transformers, parts[name][1]).from_pretrained(folder / name) for name in ("text_encoder", "tokenizer")
    )
    assert isinstance(model, transformers.PreTrainedModel) and isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
    return TOWERS[family_of_type(model.config.model_type) or "decoder"](model.eval(), tokenizer)


def test_of_two_towers_the_text_is_copied_alone(tmp_path):
    save_clip(tmp_path / "both")
    copy_frozen("text_encoder", str(tmp_path / "both"), tmp_path / "model", False)
    _, report = transformers.CLIPTextModel.from_pretrained(tmp_path / "model/text_encoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_an_open_clip_tower_of_another_kind_is_refused(tmp_path):
    save_open_clip(tmp_path / "before", no_causal_mask=True)
    with pytest.raises(UserError, match="its text tower has no_causal_mask, which transformers' CLIP has not"):
        copy_frozen("text_encoder", str(tmp_path / "before"), tmp_path / "model", False)


def test_weights_under_another_name_are_refused(tmp_path):
    save_clip(tmp_path / "before")
    (tmp_path / "before/model.safetensors").rename(tmp_path / "before/other.safetensors")
    with pytest.raises(UserError, match=r"no model\.safetensors in .*before; save it with save_pretrained"):
        copy_frozen("text_encoder", str(tmp_path / "before"), tmp_path / "model", False)
