"""Where the speeds of a plan come from."""

import json

import pytest

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.plan.rates import DEVICES, fits, rates
from tests.unit.plan.test_plan import PAPER, config

RECORD = ROOT / "benchmarks/results/cpu-2-cores/plan.json"


def test_numbers_of_the_cores_are_those_of_the_recorded_measurement():
    record = json.loads(RECORD.read_text())
    assert DEVICES["cpu_2_cores"].numbers == record["numbers"] and set(record["from"]) == set(record["numbers"])
    assert str(RECORD.relative_to(ROOT)) in DEVICES["cpu_2_cores"].origin


def test_the_devices_of_the_configuration_are_those_that_were_measured():
    named = load(ROOT / "config.yaml").plan.__class__.model_fields["device"].annotation.__args__
    assert set(named) == {"auto", *DEVICES}


def test_without_gpus_the_cores_count_and_with_gpus_the_papers_run():
    cores, gpus = rates(config()), rates(load(*PAPER))
    assert cores.device == "cpu_2_cores" and gpus.device == "h100_paper"
    assert cores.training["only"].value == pytest.approx(0.208e12 * 0.394) and "benchmarks/" in cores.training["only"].origin
    assert gpus.training["base_full"].value == pytest.approx(989e12 * 0.185) and "499 H100-hours" in gpus.peak.origin
    assert gpus.sampling.value == gpus.training["base_full"].value and gpus.sampling.origin == "as in training"
    assert gpus.captions.origin == gpus.encodes.origin == "assumed" and "benchmarks/" in gpus.start.origin


def test_what_the_configuration_says_counts_and_is_named():
    known = rates(config(plan={"device": "h100_paper", "captions_per_second": 3, "train_share": 0.4, "fetch_mb_per_second": 20}))
    assert (known.captions.value, known.captions.origin) == (3, "plan.captions_per_second")
    assert known.training["only"].value == pytest.approx(0.4 * 989e12) and known.training["only"].origin == "plan.train_share"
    assert known.fetch.value == 20e6


def measured(file, chosen, **changes):
    numbers = {"peak_tflops": 2.0, "train_share": 0.25, "sample_share": 0.5, "captions_per_second": 7.0, "start_seconds": 3.0}
    machine = {"device": "a machine", "date": "2026-01-02", "commit": "0123456789ab"}
    disk = {"write": 500.0, "read": 200.0}
    value = {"fits": fits(chosen), "machine": machine, "numbers": numbers, "disk_megabytes_per_second": disk}
    value["training_flops_per_second"] = {"only": 4e11}
    file.write_text(json.dumps({**value, **changes}))
    return file


def test_a_measurement_replaces_what_it_measured_and_nothing_else(tmp_path):
    known = rates(config(), measured(tmp_path / "measured.json", config()))
    assert known.device == "measured here"
    assert known.training["only"].value == 4e11 and known.sampling.value == 1e12 and known.captions.value == 7
    assert known.captions.origin == "measured on a machine, 2026-01-02, commit 0123456"
    assert [rate.value for rate in known.disk] == [5e8, 2e8] and rates(config()).disk is None
    assert known.encodes.value == DEVICES["cpu_2_cores"].numbers["encodes_per_second"] and "benchmarks/" in known.encodes.origin


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"dim": 32}},
        {"models": {"vae": "hf:some/vae@main"}},
        {"stages": {"only": {"px": 32, "mask_ratio": 0.5, "images": 4000, "batch_images": 100}}},
        {"runtime": {"gpus": 1}},
        {"plan": {"device": "cpu_2_cores"}},
    ],
    ids=str,
)
def test_of_another_configuration_it_says_nothing(tmp_path, other):
    assert rates(config(**other), measured(tmp_path / "measured.json", config())).device != "measured here"


def test_it_holds_for_more_images_and_another_price(tmp_path):
    other = config(report={"dollars_per_hour": 3}, sources={"mine": {"kind": "synthetic", "count": 9000, "store_side": 64},
                   "held": {"kind": "synthetic", "count": 10, "role": "evaluation"}})  # fmt: skip
    assert rates(other, measured(tmp_path / "measured.json", config())).device == "measured here"


@pytest.mark.parametrize(
    "changes",
    [{"numbers": 3}, {"machine": {}}, {"training_flops_per_second": {"only": "fast"}}, {"disk_megabytes_per_second": {}}],
)
def test_a_file_that_is_no_measurement_is_named(tmp_path, changes):
    file = measured(tmp_path / "measured.json", config(), **changes)
    with pytest.raises(UserError, match=r"measured\.json: not a measurement"):
        rates(config(), file)
