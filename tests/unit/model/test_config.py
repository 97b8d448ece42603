import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.architecture.config import attention_width, backbone_shapes, dense_hidden, expert_hidden, mixer_shapes
from pipeline.model import PRESETS, MicroDiTConfig, at_resolution


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_through_json(name):
    config = PRESETS[name]
    assert MicroDiTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_left_out_keys_take_their_defaults():
    assert MicroDiTConfig.from_dict({"dim": 512}) == MicroDiTConfig(dim=512)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim is 0; give a whole number of at least 1"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"num_experts": -1}, "num_experts is -1; give a whole number of at least 0"),
        ({"qkv_ratio": (0.5,)}, "qkv_ratio is (0.5,); give two numbers"),
        ({"ffn_ratio": (0.0, 4.0)}, "ffn_ratio is (0.0, 4.0)"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; give a number above 0"),
        ({"expert_capacity": float("nan")}, "expert_capacity is nan"),
        ({"input_size": 33}, "input_size 33 is not a multiple of patch_size 2"),
        ({"dim": 1000}, "dim 1000 is not a multiple of head_dim 64"),
        ({"mixer_dim": 700}, "mixer_dim 700 is not a multiple of head_dim 64"),
        ({"dim": 6, "head_dim": 2, "mixer_dim": 2}, "dim 6 is not a multiple of 4"),
        ({"expert_capacity": 9.0}, "expert_capacity is 9.0; give a number of at most num_experts (8)"),
        ({"mask_mode": "late"}, "mask_mode is 'late'; give one of deferred, naive, none"),
        ({"mask_mode": "naive"}, "mask_mode naive drops tokens before any mixer, but mixer_depth is 6"),
        ({"mixer_depth": 0}, "mask_mode deferred drops tokens after the mixer, but mixer_depth is 0"),
    ],
)
def test_a_mistake_is_told_in_one_line(change, words):
    with pytest.raises(ValueError, match=r"^model: ") as caught:
        replace(PRESETS["xl2"], **change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_key_is_named():
    with pytest.raises(ValueError, match="unknown key 'dims'"):
        MicroDiTConfig.from_dict({"dims": 3})


def test_widths_of_the_page():
    assert [attention_width(1024, ratio, 64) for ratio in (0.5, 0.52, 1.0)] == [512, 640, 1024]
    assert attention_width(48, 1.0, 16) == 48  # no rounding at ratio 1
    assert dense_hidden(1024, 4.0, 256) == 2816
    assert expert_hidden(768, 4.0, 256) == 3072


@given(st.integers(1, 64), st.floats(0.1, 1.0), st.sampled_from([4, 16, 64]))
def test_attention_width_is_the_next_multiple(heads, ratio, head_dim):
    dim = heads * head_dim
    width = attention_width(dim, ratio, head_dim)
    assert width >= dim * ratio * (1 - 1e-6)
    assert ratio == 1 or (width % (2 * head_dim) == 0 and width - dim * ratio < 2 * head_dim)


def test_experts_sit_in_every_second_block_but_the_last():
    config = PRESETS["xl2"]
    backbone = [i for i, shape in enumerate(backbone_shapes(config)) if shape.experts]
    assert backbone == [i for i in range(27) if i % 2]
    assert [i for i, shape in enumerate(mixer_shapes(config)) if shape.experts] == [1, 3, 5]
    assert not any(shape.experts for shape in backbone_shapes(replace(config, num_experts=0)))


def test_experts_in_every_block_leave_out_the_ends():
    config = replace(PRESETS["tiny2"], experts_every_n=1)
    assert [i for i, shape in enumerate(backbone_shapes(config)) if shape.experts] == list(range(15))
    assert [i for i, shape in enumerate(mixer_shapes(config)) if shape.experts] == [1, 2, 3]


def test_resolutions_compose():
    small = PRESETS["small"]
    assert at_resolution(small, 8).pos_interp_scale == 2.0
    assert at_resolution(at_resolution(small, 8), 4) == small
