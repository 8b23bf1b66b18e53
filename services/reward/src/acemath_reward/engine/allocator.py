"""The C library's allocator, told that a pass asks for the same buffers again and again, and when a model has gone."""

from __future__ import annotations

import ctypes
import logging
import sys

_log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_TRIM = 2**30  # bytes; mallopt takes an int
_MMAP = (2**30, 2**25)  # older versions of glibc take no more than 32 MiB


def keep_freed_memory() -> bool:
    """Let freed buffers stay with the process instead of going back to the kernel page by page at every operator.

    By default glibc maps a large buffer afresh and the kernel clears each of its pages: 7 % of a pass of 2,077 tokens
    (135M model, AMX). The process keeps what its largest pass needed, as it would ask for it again anyway; what a model
    that has gone leaves is another matter (`give_back_freed_memory`). Without glibc nothing happens.

    Returns:
        Whether the allocator took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP)
    taken = bool(mapped and mallopt(_M_TRIM_THRESHOLD, _TRIM))
    _log.debug("freed memory is kept: %s", taken)
    return taken


def give_back_freed_memory() -> bool:
    """Give the kernel what is free now: a model has gone, and nobody asks for its buffers again; blocks.

    glibc has an arena for each thread that allocates. A version is loaded by whichever thread is idle, so what versions
    leave adds up over the threads: 70 swaps of a 29 MB model made 289 MiB of it. The next pass gets its pages anew.

    Returns:
        Whether there was anything; never without glibc.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # not glibc
        return False
    return bool(trim(0))
