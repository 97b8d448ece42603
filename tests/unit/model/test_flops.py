from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import PRESETS, MicroDiT, at_resolution, forward_flops, keep_ids, text_flops, training_flops


@pytest.mark.parametrize(("side", "ratio", "tera"), [(32, 0.75, 0.282), (32, 0, 0.714), (64, 0.75, 1.069), (64, 0, 3.003)])
def test_the_recipe(side, ratio, tera):
    assert round(training_flops(at_resolution(PRESETS["xl2"], side), ratio) / 1e12, 3) == tera


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", ["small", "equal widths", "naive", "dense"])
def test_equals_what_torch_counts(name, ratio):
    config = replace(
        PRESETS["small"],
        **{
            "small": {},
            "equal widths": {"mixer_dim": 96},
            "dense": {"num_experts": 0},
            "naive": {"mask_mode": "naive", "mixer_depth": 0},
        }[name],
    )
    with torch.device("meta"):
        model = MicroDiT(config)
        inputs = (torch.empty(1, 4, 4, 4), torch.empty(1), torch.empty(1, 24, 64))
        ids = keep_ids(torch.empty(1, 16), ratio) if ratio else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, ids)
    assert forward_flops(config, ratio) == counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, {"mixer_dim": 96}, {"mask_mode": "naive", "mixer_depth": 0}])
def test_text_that_is_encoded_once_equals_what_torch_counts(changes):
    config = replace(PRESETS["small"], **changes)
    with torch.device("meta"):
        model, text = MicroDiT(config), torch.empty(1, 24, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoded = model.encode_text(text)
    assert text_flops(config) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        model(torch.empty(1, 4, 4, 4), torch.empty(1), encoded)
    assert forward_flops(config) - text_flops(config) == counter.get_total_flops()
