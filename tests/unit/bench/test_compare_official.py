"""The comparison with the official model, its turns and its judgement. The official code itself is not needed here."""

import math
import sys
from statistics import median

import pytest
import torch

from benchmarks import compare_official as compare
from benchmarks import official_worker as worker
from pipeline.errors import UserError
from pipeline.model import training_flops

CASE = worker.Case("small", px=32, mask=0.75, images=2, work="step", device="cpu", precision="float32", compiled=False)
PEAK = 2e11  # FLOP/s of a large matmul

# This project's network behind the official call; SCALE is 1, or what a wrong implementation would do.
STAND_IN = """
from pipeline.model import PRESETS, MicroDiT

def get_mask(batch, length, mask_ratio, device):
    raise AssertionError("the mask is given from outside")

class MicroDiT_Small(MicroDiT):
    def __init__(self, input_size, pos_interp_scale):
        super().__init__(PRESETS["small"])

    def forward(self, x, t, y, mask_ratio=0):
        mask = get_mask(len(x), self.num_tokens, mask_ratio, x.device) if mask_ratio else {}
        return {"sample": SCALE * super().forward(x, t, y, mask.get("ids_keep"))}
"""


class Near:
    """A worker in this process, asked as the parent asks one in another."""

    def __init__(self, role, checkout):
        self.role, self.worker = role, worker.Worker(role, checkout)

    def ask(self, do, **values):
        return getattr(self.worker, do)(**values)


@pytest.fixture
def sides(tmp_path, monkeypatch):
    """(ours, official) for a checkout whose network is off by the factor given."""
    monkeypatch.setitem(worker.OFFICIAL_NAMES, "small", "MicroDiT_Small")
    monkeypatch.setattr(worker, "large_matmul", lambda device, precision: PEAK)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(scale):
        path = tmp_path / "micro_diffusion/models/dit.py"
        path.parent.mkdir(parents=True)
        path.write_text(STAND_IN.replace("SCALE", scale))
        return Near("ours", tmp_path), Near("official", tmp_path)

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "micro_diffusion"]:
        del sys.modules[name]


def test_two_equal_models_agree_and_their_rounds_are_timed(sides, tmp_path):
    row = compare.compare(CASE, *sides("1.0"), tmp_path, steps=3, warmup=1)
    assert max(row["errors"].values()) == 0
    assert set(row["errors"]) == {
        "float32 forward, mask 0",
        "float32 forward, mask 0.75",
        "gradient norms",
        "float32 loss of a step",
    }
    assert [len(row["seconds"][role]) for role in ("official", "ours")] == [3, 3]
    assert "small" in compare.table([row]) and "step" in compare.table([row])
    assert row["large_matmul_tflops"] == PEAK / 1e12
    for role, seconds in row["seconds"].items():
        share = 2 * training_flops(CASE.config, 0.75) / median(seconds) / PEAK
        assert row["share_of_large_matmul"][role] == pytest.approx(share)


def test_bfloat16_is_checked_beside_float32(sides, tmp_path):
    case = worker.Case(**{**vars(CASE), "precision": "bfloat16", "mask": 0.0})
    errors = compare.compare(case, *sides("1.0"), tmp_path, steps=1, warmup=1)["errors"]
    # The official side's LayerNorms run in bf16, ours in float32: near, and not equal.
    assert 0 < errors["bfloat16 forward, mask 0"] < compare.BFLOAT16_LIMIT
    assert errors["float32 forward, mask 0"] == 0


def test_a_model_that_differs_is_refused(sides, tmp_path):
    with pytest.raises(UserError, match=r"small, 32 px, mask 0\.75: float32 forward, mask 0 differs by 1\.0e-05, above 2e-06"):
        compare.compare(CASE, *sides("1.00001"), tmp_path, steps=1, warmup=1)


def test_backward_leaves_the_weights_alone_and_a_step_does_not(sides, tmp_path):
    ours, _ = sides("1.0")
    ours.ask("weights", case=vars(CASE), path=str(tmp_path / "w.safetensors"))
    for work, moves in (("backward", False), ("step", True)):
        ours.ask("load", case={**vars(CASE), "work": work}, path=str(tmp_path / "w.safetensors"))
        first, second = ours.ask("step")["loss"], ours.ask("step")["loss"]
        assert (first != second) == moves


def test_no_weight_starts_at_zero(tmp_path):
    worker.save_weights(CASE, tmp_path / "w.safetensors")
    state = worker.load_weights(tmp_path / "w.safetensors")
    assert [name for name, tensor in state.items() if not tensor.any()] == ["mask_token"]


def test_inputs_follow_from_the_case():
    first, again = (worker.make_inputs(CASE, 0.75) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.ids_keep.shape == (2, 4)
    assert worker.make_inputs(CASE, 0.0).ids_keep is None


def test_the_official_form_of_a_mask():
    ids = torch.tensor([[1, 4], [0, 5]])
    given = worker.mask_of(ids, 6)
    assert given["mask"].tolist() == [[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]
    assert torch.equal(given["ids_keep"], ids)
    kept_then_dropped = torch.tensor([[1, 4, 0, 2, 3, 5], [0, 5, 1, 2, 3, 4]])
    assert torch.equal(kept_then_dropped.gather(1, given["ids_restore"]), torch.arange(6).expand(2, 6))


def test_low_precision_layer_norm_lowers_under_autocast_alone():
    norm = torch.nn.LayerNorm(8, bias=False)
    x = torch.linspace(-1, 1, 16).view(2, 8)
    expected = norm(x)
    norm.__class__ = worker.LowPrecisionLayerNorm
    assert torch.equal(norm(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
        torch.testing.assert_close(norm(x).float(), expected, atol=2e-2, rtol=2e-2)


def test_a_worker_that_lacks_a_package_says_which(tmp_path):
    path = tmp_path / "micro_diffusion/models/dit.py"
    path.parent.mkdir(parents=True)
    path.write_text("import open_clip_of_nobody\n")
    side = compare.Side("official", sys.executable, tmp_path)
    with pytest.raises(UserError, match=r"No module named 'open_clip_of_nobody'.*-m pip install open_clip_of_nobody"):
        side.ask("describe", device="cpu")
    side.close()


def test_an_interpreter_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--official-python"):
        compare.Side("official", str(tmp_path / "python"), tmp_path)


def test_a_worker_that_dies_is_noticed(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    side = compare.Side("official", str(python), tmp_path)
    with pytest.raises(UserError, match="official worker ended at 'describe' with exit code 3"):
        side.ask("describe", device="cpu")
    side.close()


@pytest.mark.parametrize(("room", "work"), [(40e9, "step"), (20e9, "backward")])
def test_the_optimiser_is_left_out_where_its_state_does_not_fit(room, work):
    assert compare.choose_work("auto", 1_165_442_320, int(room)) == work
    assert compare.choose_work("step", 1_165_442_320, int(room)) == "step"


def test_two_models_that_do_not_fit():
    with pytest.raises(UserError, match="need 17 GB of memory and 8 GB are free"):
        compare.choose_work("auto", 1_165_442_320, int(8e9))


def test_spread_pairs_the_rounds():
    assert compare.spread([2.0, 4.0, 9.0], [1.0, 1.0, 3.0]) == {"median": 3.0, "low": 2.5, "high": 3.5, "min": 2.0, "max": 4.0}
    assert compare.spread([3.0], [2.0]) == {"median": 1.5, "low": 1.5, "high": 1.5, "min": 1.5, "max": 1.5}


def test_largest_difference():
    assert compare.largest_difference([1.0, 0.0, 3.0], [1.0, 0.0, 2.0]) == 0.5
    assert compare.largest_difference([1.0], [0.0]) == math.inf
    assert math.isnan(compare.largest_difference([2.0, math.nan, 1.0], [1.0, 1.0, 1.0]))


def test_faults_know_the_limit_of_each_kind():
    errors = {"float32 forward, mask 0": 5e-6, "bfloat16 forward, mask 0": 1e-2, "gradient norms": math.nan}
    assert [fault.split(" differs")[0] for fault in compare.faults(errors, "cpu")] == [
        "float32 forward, mask 0",
        "gradient norms",
    ]
    assert [fault.split(" differs")[0] for fault in compare.faults(errors, "cuda")] == ["gradient norms"]


def test_every_combination_is_a_case():
    options = compare.parser().parse_args(["--official", ".", "--px", "256", "512", "--images", "2"])
    found = list(compare.cases(options, "cpu", int(40e9)))
    assert [(case.px, case.mask, case.config.num_tokens) for case in found] == [
        (256, 0.75, 256),
        (256, 0.0, 256),
        (512, 0.75, 1024),
        (512, 0.0, 1024),
    ]
    assert {(case.precision, case.compiled) for case in found} == {("float32", False)}
    assert {(case.precision, case.compiled) for case in compare.cases(options, "cuda", int(40e9))} == {("bfloat16", True)}


def test_zero_images_are_refused(capsys):
    with pytest.raises(SystemExit):
        compare.parser().parse_args(["--official", ".", "--images", "0"])
    assert "give a whole number of at least 1" in capsys.readouterr().err


def test_a_folder_without_the_official_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_official.py", "--official", str(tmp_path)])
    assert compare.main() == 1
    assert capsys.readouterr().err.startswith(f"error: --official {tmp_path}: no micro_diffusion/models/dit.py there")
