import json
import resource

import pytest
import torch

from pipeline.diffusion import EDM, Loss
from pipeline.engine.step import Measured
from pipeline.errors import UserError
from pipeline.train.metrics import JsonLines, Losses
from pipeline.train.processes import Processes


@pytest.fixture
def processes():
    return Processes("cpu")


def measured(*parts, norm=1.0, skipped=0.0):
    """A step of microbatches (losses, logarithms of the noise levels)."""
    losses = [Loss(torch.tensor(0.0), torch.tensor(v), torch.tensor(v), torch.tensor(s).exp()) for v, s in parts]
    return Measured(losses, torch.tensor(norm), torch.tensor(skipped))


def test_means_by_quartile_of_the_noise_level(processes):
    losses = Losses(EDM(p_mean=1.0, p_std=2.0), [], 3, 0)
    losses.add(measured(([1.0, 2.0], [-5.0, 0.0]), ([4.0], [1.5]), norm=3.0))
    losses.add(measured(([3.0, 6.0, 8.0], [-9.0, 2.0, 2.2]), norm=5.0))
    assert len(losses.collect(processes)) == 2 and losses.collect(processes) == []
    means = losses.means()
    assert means["loss"] == 4.0 and means["grad_norm"] == 4.0
    assert means["loss_by_noise"] == [2.0, 2.0, 6.0, None]
    assert losses.rows == []


def test_quartiles_hold_a_quarter_each(processes):
    log_sigma = (0.3 + 1.7 * torch.randn(20000, generator=torch.Generator().manual_seed(0))).tolist()
    losses = Losses(EDM(p_mean=0.3, p_std=1.7), [], 20000, 0)
    losses.add(measured(([1.0] * 20000, log_sigma)))
    ((row, _),) = losses.collect(processes)
    assert row.counts == pytest.approx([5000] * 4, rel=0.05)


def test_a_skipped_step_counts_in_no_mean_and_names_its_places(processes):
    losses = Losses(EDM(p_mean=0.0, p_std=1.0), [], 6, 3)  # the second of two processes
    nan = float("nan")
    losses.add(measured(([1.0, 3.0], [-3.0, -3.0]), ([nan], [3.0]), norm=nan, skipped=1.0))
    losses.add(measured(([1.0, 2.0, 3.0], [3.0, 3.0, 3.0]), norm=7.0))
    (skipped, places), (taken, none) = losses.collect(processes)
    assert (skipped.skipped, places, taken.skipped, none) == (True, [5], False, [])
    assert skipped.sums[:3] == [4.0, 0.0, 0.0] and skipped.sums[3] != skipped.sums[3]  # it stays in its quartile
    assert losses.rows == [taken] and losses.means() == {"loss": 2.0, "loss_by_noise": [None, None, None, 2.0], "grad_norm": 7.0}
    assert losses.means() == {"loss": None, "loss_by_noise": [None] * 4, "grad_norm": None}


def test_rows_of_a_checkpoint_go_on_to_the_same_means(processes):
    def line(cut):
        losses = Losses(EDM(), [], 2, 0)
        for value in (0.1, 0.7, 1e-7, 12345.678):
            losses.add(measured(([value, value / 3], [-1.0, 1.0]), norm=value))
            losses.collect(processes)
            if cut:
                losses = Losses(EDM(), json.loads(json.dumps([list(row) for row in losses.rows])), 2, 0)
        return losses.means()

    assert line(cut=True) == line(cut=False)


def test_the_file_is_cut_back_to_where_training_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path, 0, writes=True)
    assert file.newest("loss") == {}
    for images in (10, 20, 30):
        file.write({"images": images, "loss": images / 7})
    file.write({"images": 30, "validation_loss": 1.0})
    path.write_text(path.read_text() + '{"images": 40, "lo')  # killed while writing
    assert [line["images"] for line in JsonLines(path, 40, writes=True).lines] == [10, 20, 30, 30]
    again = JsonLines(path, 20, writes=True)
    again.write({"images": 25})
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == [10, 20, 25]
    assert again.newest("loss") == {"images": 20, "loss": 20 / 7}


def test_a_number_that_is_not_finite_becomes_null(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl", 0, writes=True)
    file.write({"images": 1, "a": float("nan"), "b": {"c": [1.0, float("inf")]}})
    assert file.path.read_text() == '{"images": 1, "a": null, "b": {"c": [1.0, null]}}\n'


def test_a_line_that_the_disk_has_no_room_for_is_a_user_error(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    file, before = JsonLines(tmp_path / "metrics.jsonl", 0, writes=True), resource.getrlimit(resource.RLIMIT_FSIZE)
    file.write({"images": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written .*make room"):
            file.write({"images": 2, "a": "b" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [line["images"] for line in JsonLines(file.path, 2, writes=True).lines] == [1]


def test_other_processes_leave_the_file_alone(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl", 0, writes=False)
    file.write({"images": 10})
    assert file.lines == [{"images": 10}] and not any(tmp_path.iterdir())
