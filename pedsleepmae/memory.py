"""How this process treats memory that it has freed."""

import ctypes

# Numbers of mallopt's parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that arrays free; False where the C library is not glibc.

    By default glibc gives blocks of 32 MB and more back to the system each time, and the kernel
    hands them out again page by page: a third of the time of work on whole nights or on tensors.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # Windows, macOS, musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
