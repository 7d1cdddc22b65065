"""Memory of training on a CPU.

glibc gives every freed block of more than 32 MiB, and the free end of its heap, back to the system. A training step
frees all its activations, so that each step has the kernel map and zero the same pages again: a quarter of a step of a
ViT-B in bfloat16 (`benchmarks/pretrain_mae.py step`).
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST = 2**31 - 1
"""`mallopt` takes an int."""


def keep_freed_memory() -> bool:
    """Let this process reuse what it freed; False where the C library has no such setting (not glibc, or below 2.35).

    The peak of the memory is that of a step before and after; between steps it is no longer given back.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The second alone would be harmful: any of them also fixes the limit of 32 MiB at its start, 128 KiB.
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
