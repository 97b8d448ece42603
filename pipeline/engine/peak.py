"""What a device could do at most: its datasheet, and large matmuls timed on the spot."""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# Dense bfloat16 tensor throughput in TFLOP/s, from the vendors' datasheets. The first name whose words the device's has counts.
DATASHEET = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A40": 150.0,
    "RTX 5090": 210.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}

LARGE, LARGE_FOR_A_CPU = 8192, 4096  # sides of a matmul that no cache holds


class Peak(NamedTuple):
    flops: float  # a second
    source: str  # "datasheet" or "measured"


def peak(device: torch.device, precision: torch.dtype) -> Peak:
    """The datasheet's for bfloat16 on a GPU that is known, else that of a large matmul, measured now."""
    known = datasheet(device) if precision == torch.bfloat16 else None
    return Peak(known, "datasheet") if known else Peak(measured(device, precision), "measured")


def datasheet(device: torch.device) -> float | None:
    """FLOP/s in bfloat16 by the name of the GPU; None for a CPU or a GPU that is not in the table."""
    return listed(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def listed(name: str) -> float | None:
    """FLOP/s in bfloat16 of the GPU that calls itself `name`; None if it is not in the table.

    Whole words are compared: an RTX A4000 is no A40, an L40 no L4.
    """
    return next((1e12 * value for words, value in DATASHEET.items() if re.search(rf"\b{words}\b", name)), None)


def measured(device: torch.device, precision: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of a square matmul, the best of several. Without `side` it is done at once, on a CPU too."""
    side = side or (LARGE if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, repeats=10 if device.type == "cuda" else 4)


def large_matmul(device: torch.device, precision: torch.dtype) -> float:
    """FLOP/s of a large square matmul: what benchmarks compare with."""
    return measured(device, precision, LARGE if device.type == "cuda" else LARGE_FOR_A_CPU)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Wall time of `work`, the best of `repeats` after one to warm up; waits for the device."""
    best = float("inf")
    for attempt in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if attempt:
            best = min(best, time.perf_counter() - start)
    return best


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
