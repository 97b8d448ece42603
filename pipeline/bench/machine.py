"""What every bench on a network says of the machine and of its own run."""

import resource
import sys
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch

from pipeline.fingerprint import git_commit


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def pick_precision(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA, else float32."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, wanted)


def facts(bench: str, arguments: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Command, commit, date, device and version of torch."""
    return {
        "command": f"python -m pipeline bench {bench} " + " ".join(arguments),
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)",
        "torch": torch.__version__,
    }


def peak_memory_gb(device: torch.device) -> float:
    """10^9 bytes: allocated on the GPU since the statistics were reset, else the most that was resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return round((torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident) / 1e9, 2)
