"""Let the C library return the memory of pictures to the system, which otherwise keeps some for each thread that decoded one."""

from __future__ import annotations

import ctypes

LARGE_BLOCK = 4 * 2**20
"""Bytes from which a block is taken from the system, and returned to it when it is freed."""
_M_MMAP_THRESHOLD = -3


def return_large_blocks() -> bool:
    """Fix the size from which glibc maps a block by itself; return whether the C library knows this setting.

    By default glibc raises that size to that of the largest freed block, up to 32 MB, and then keeps blocks of pictures in the
    heap of each thread (mallopt(3), M_MMAP_THRESHOLD). It is a setting of the process: a program calls it at its start.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK))
