"""Blocks of memory that a step frees and the next asks for again."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = -1  # as the threshold, which malloc reads without a sign


def keep_freed_blocks() -> bool:
    """Have malloc keep what this process frees, instead of giving it back to the kernel; whether it will.

    glibc maps every block above 32 MB anew and unmaps it when it is freed, so the kernel clears the same pages over and
    over: batched matmuls of experts, whose weights are of that size, ran at two thirds of their speed. Other
    C libraries are left as they are. The process stays as large as it was at its largest.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
