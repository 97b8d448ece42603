from dataclasses import replace

import pytest
import torch

from pipeline.errors import UserError
from pipeline.export import save_model_folder
from pipeline.export.program import example, run
from pipeline.model import PRESETS, MicroDiT

INFO = {"px": 32, "sampler": {"steps": 2, "guidance": 1.0}, "frozen": {"vae": None, "text_encoder": None}, "trained": {}}


@pytest.mark.parametrize("drop_text_padding", [False, True])
def test_a_program_is_the_network_for_any_batch(tmp_path, drop_text_padding):
    config = replace(PRESETS["small"], depth=3, drop_text_padding=drop_text_padding)
    network = MicroDiT(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():  # so that every output depends on every input
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_model_folder(tmp_path / "model", config, network.state_dict(), INFO)
    run(tmp_path / "model", tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir() if path.name != "model"] == ["model.pt2"]
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 2, 5):
        x, c_noise, text = example(config, batch)
        text[:, 9:] = 0  # padding
        with torch.no_grad():
            expected, found = network(x, c_noise, text), program(x, c_noise, text)
        assert expected.std() > 0.1
        assert (found - expected).norm() < 1e-6 * expected.norm()


def test_the_file_ends_as_torch_wants(tmp_path):
    with pytest.raises(UserError, match=r"--out .*model\.onnx: programs of torch\.export are written as \.pt2"):
        run(tmp_path, tmp_path / "model.onnx")
