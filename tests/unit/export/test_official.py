import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.export import export_official, import_official
from pipeline.export.layout import infer_config
from pipeline.model import PRESETS, MicroDiT, at_resolution, position_table, state_layout

LAYOUTS = json.loads((Path(__file__).parents[2] / "data" / "official_layouts.json").read_text())
SMALL = replace(PRESETS["small"], depth=3, caption_length=77)


@pytest.fixture(scope="module")
def state():
    return MicroDiT(SMALL, seed=1).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_round_trip_is_bit_exact(state, tmp_path):
    odd = {**state, "final_layer.linear.bias": torch.full((4,), float("nan"))}
    export_official(SMALL, odd, tmp_path / "model.pt")
    config, found = import_official(tmp_path / "model.pt")
    assert config == SMALL
    assert found.keys() == odd.keys()
    for name, value in odd.items():
        assert value.numpy().tobytes() == found[name].numpy().tobytes(), name
    export_official(config, found, tmp_path / "again.pt")
    assert same(
        {**import_official(tmp_path / "again.pt")[1], "final_layer.linear.bias": torch.zeros(4)},
        {**found, "final_layer.linear.bias": torch.zeros(4)},
    )


def test_exported_file_is_a_plain_state_dictionary(state, tmp_path):
    export_official(SMALL, state, tmp_path / "model.pt")
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), dict(state))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "step": 3},
        lambda s: {"model": s},
        lambda s: {"state": {"model": s}},
        lambda s: {"state": {"model": {f"dit.{k}": v for k, v in s.items()} | {"vae.x": torch.ones(1)}}},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"model": {k.replace("blocks.1.", "blocks.1._orig_mod."): v for k, v in s.items()}},
    ],
)
def test_accepted_forms(state, tmp_path, wrap):
    torch.save(wrap(dict(state)), tmp_path / "model.pt")
    config, found = import_official(tmp_path / "model.pt")
    assert config == SMALL
    assert same(found, dict(state))


@pytest.mark.parametrize(("preset", "official"), [("tiny2", "MicroDiT_Tiny_2"), ("xl2", "MicroDiT_XL_2")])
@pytest.mark.parametrize("side", [32, 64])
def test_official_architectures_are_recognised(preset, official, side):
    config = at_resolution(PRESETS[preset], side)
    state = {name: torch.empty(shape, device="meta") for name, shape in LAYOUTS[official].items()}
    state["pos_embed"] = position_table(config)
    assert infer_config(Path("x.pt"), state) == config


@pytest.mark.parametrize(
    "change",
    [
        {"num_experts": 0, "expert_capacity": 1.0},
        {"mixer_depth": 0, "mixer_dim": 96, "mask_mode": "naive"},
        {"experts_every_n": 1},
        {"in_channels": 16},
        {"patch_size": 2},
        {"mixer_dim": 96},
    ],
)
def test_variants_are_recognised(change):
    config = replace(SMALL, **change)
    found = infer_config(Path("x.pt"), MicroDiT(config).state_dict())
    assert state_layout(found) == state_layout(config)
    assert found.head_dim == config.head_dim


def test_half_precision_stays_as_it_is(state, tmp_path):
    half = {name: value.bfloat16() for name, value in state.items()}
    torch.save(half, tmp_path / "model.pt")
    config, found = import_official(tmp_path / "model.pt")
    assert config == SMALL
    assert same(found, half)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.1.norm1.weight"), "missing: blocks.1.norm1.weight"),
        (lambda s: s.pop("blocks.1.attn.proj.weight"), "missing: blocks.1.attn.proj.weight"),
        (lambda s: s.update({"lora.a": torch.ones(1)}), "unexpected: lora.a"),
        (
            lambda s: s.update({"blocks.2.attn.proj.weight": torch.ones(96, 7)}),
            "misshaped: blocks.2.attn.proj.weight [96, 7] instead of [96, 96]",
        ),
        (lambda s: s.update({"final_layer.linear.bias": torch.ones(5)}), "misshaped: final_layer.linear.bias [5] instead of [4]"),
        (lambda s: s.pop("pos_embed"), "missing: pos_embed"),
        (lambda s: s.pop("x_embedder.proj.weight"), "missing: x_embedder.proj.weight"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(3)}), "not a MicroDiT checkpoint"),
        (lambda s: s.update({"pos_embed": torch.ones(1, 16, 96)}), "pos_embed is not the fixed table"),
        (lambda s: s.update({"mask_token": 3}), "mask_token is not a tensor"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("blocks.1.")], "and 10 more"),
    ],
)
def test_a_wrong_tensor_is_named_in_one_line(state, tmp_path, change, words):
    wrong = dict(state)
    change(wrong)
    torch.save(wrong, tmp_path / "model.pt")
    with pytest.raises(ValueError) as caught:
        import_official(tmp_path / "model.pt")
    assert words in str(caught.value)
    assert str(tmp_path / "model.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_given_config_is_held_to(state, tmp_path):
    torch.save(dict(state), tmp_path / "model.pt")
    assert import_official(tmp_path / "model.pt", SMALL)[0] == SMALL
    with pytest.raises(ValueError, match="misshaped"):
        import_official(tmp_path / "model.pt", replace(SMALL, head_dim=32))


def test_two_models_in_one_file_are_refused(state, tmp_path):
    torch.save({f"{p}.{k}": v for k, v in state.items() for p in ("dit", "ema")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"several models \(prefixes 'dit.', 'ema.'\)"):
        import_official(tmp_path / "model.pt")


class Malicious:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_never_runs(state, tmp_path, legacy):
    target = tmp_path / "pwned"
    torch.save(
        {"state_dict": dict(state), "extra": Malicious(target)}, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy
    )
    words = r"refused, nothing in it was run: it holds the object \w+\.system"
    with pytest.raises(ValueError, match=words) as caught:
        import_official(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)
    assert not target.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the file is as bad as it claims
    assert target.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04cut", None])
def test_a_broken_file_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt") as caught:
        import_official(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_told(state, tmp_path):
    torch.save(dict(state), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable torch checkpoint"):
        import_official(tmp_path / "model.pt")


def test_export_refuses_tensors_of_another_model(state, tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        export_official(replace(SMALL, depth=4), state, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
