import json

import pytest
import torch

from pipeline.diffusion import EDM, Loss
from pipeline.train.metrics import Losses, MetricsFile
from pipeline.train.processes import Processes


@pytest.fixture
def processes():
    return Processes("cpu")


def loss(values, log_sigma):
    values = torch.tensor(values)
    return Loss(values.mean(), values, values, torch.tensor(log_sigma).exp())


def test_means_by_quartile_of_the_noise_level(processes):
    losses = Losses(EDM(p_mean=1.0, p_std=2.0), [])
    losses.add([loss([1.0, 2.0], [-5.0, 0.0]), loss([4.0], [1.5])], torch.tensor(3.0))
    losses.add([loss([3.0, 6.0, 8.0], [-9.0, 2.0, 2.2])], torch.tensor(5.0))
    assert len(losses.collect(processes)) == 2 and losses.collect(processes) == []
    means = losses.means()
    assert means["loss"] == 4.0 and means["grad_norm"] == 4.0
    assert means["loss_by_noise"] == [2.0, 2.0, 6.0, None]
    assert losses.rows == []


def test_quartiles_hold_a_quarter_each(processes):
    log_sigma = (0.3 + 1.7 * torch.randn(20000, generator=torch.Generator().manual_seed(0))).tolist()
    losses = Losses(EDM(p_mean=0.3, p_std=1.7), [])
    losses.add([loss([1.0] * 20000, log_sigma)], torch.tensor(1.0))
    (row,) = losses.collect(processes)
    assert row[4:8] == pytest.approx([5000] * 4, rel=0.05)


def test_a_loss_that_is_no_number_stays_in_its_quartile(processes):
    losses = Losses(EDM(p_mean=0.0, p_std=1.0), [])
    losses.add([loss([1.0, float("nan")], [-3.0, 3.0])], torch.tensor(1.0))
    (row,) = losses.collect(processes)
    assert row[0] == 1.0 and row[3] != row[3]


def test_the_file_is_cut_back_to_where_training_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0, writes=True)
    assert file.last("images") == 0
    for images in (10, 20, 30):
        file.write({"images": images})
    path.write_text(path.read_text() + '{"images": 40, "lo')  # killed while writing
    assert [line["images"] for line in MetricsFile(path, 40, writes=True).lines] == [10, 20, 30]
    again = MetricsFile(path, 20, writes=True)
    again.write({"images": 25})
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == [10, 20, 25]
    assert again.last("images") == 25


def test_other_processes_leave_the_file_alone(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0, writes=False)
    file.write({"images": 10})
    assert file.last("images") == 10 and not any(tmp_path.iterdir())
