import time

import pytest
import torch

from pipeline.engine.peak import datasheet, listed, measured, peak, seconds

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A40", 150),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_gpus_of_the_table(name, teraflops):
    assert listed(name) == teraflops * 1e12


@pytest.mark.parametrize("name", ["NVIDIA RTX A4000", "NVIDIA L40", "Tesla T4", "AMD Instinct MI300X", ""])
def test_a_gpu_that_is_not_in_the_table_is_none_that_looks_alike(name):
    assert listed(name) is None


def test_a_cpu_has_no_datasheet_and_is_measured():
    assert datasheet(CPU) is None
    found = peak(CPU, torch.float32)
    assert found.source == "measured" and 1e8 < found.flops < 1e15


def test_what_is_measured_is_a_rate():
    for side in (64, 256):
        assert 1e6 < measured(CPU, torch.float32, side) < 1e15


def test_seconds_are_the_best_of_the_repeats_without_the_first(monkeypatch):
    clock, lasts = [100.0], iter([1.0, 7.0, 5.0, 6.0])  # the first is the warm-up
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += next(lasts)

    assert seconds(work, CPU, repeats=3) == 5.0
    assert list(lasts) == []
