"""Freed memory that stays with the process, in processes of their own: the setting lasts until they end."""

import platform
import subprocess
import sys

import pytest

from pipeline.fingerprint import ROOT

PAGES = 64 * 2**20 // 4096
SCRIPT = """
import resource, sys, torch
from pipeline.engine.memory import keep_freed_blocks
if sys.argv[1] == "keep":
    assert keep_freed_blocks()
for _ in range(12):  # the first few still grow the heap
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20 // 4)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(how):
    """Pages that the kernel had to clear for the last of several equal tensors of 64 MB."""
    return int(subprocess.run([sys.executable, "-c", SCRIPT, how], cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself what it keeps")
def test_a_freed_block_is_handed_out_again():
    assert faults("keep") < PAGES / 100
    # Huge pages, where the system gives them unasked, are 512 times fewer.
    assert faults("leave") >= PAGES / 512
