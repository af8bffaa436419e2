"""How the process keeps freed memory: one setting of the C library, made before the first threads start.

Out of scope: what is allocated. Nothing here needs JAX, so that a command can call it before anything else.
"""

import ctypes

# Numbers of <malloc.h>.
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
_GIB = 1 << 30


_told: list[bool] = []


def keep_freed(*, one_heap: bool = True) -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the kernel; whether it could be told.

    XLA's CPU client takes the temporaries of a step as one block of hundreds of MB and frees it afterwards. glibc maps
    and unmaps such a block each time, and every page of it is a fault: a fine-tuning step of MiniLM has 54,000 of them
    and takes 198 ms, without them 163 (2 cores, 960 tokens, bfloat16). So blocks up to 1 GiB come from one heap for all
    threads, which is never trimmed. Threads that have allocated before keep heaps of their own, which are too small for
    such a block: call it early; the first call of a process decides. Where the C library is not glibc nothing is done.

    `one_heap` false: a heap for each thread, for a process that only encodes. Its blocks are small, and calls side by
    side wait for each other at the one heap: 224,000 tokens in texts of 180 to 410 take 21.4 s instead of 19.9
    (bfloat16, 2 cores of an AMD EPYC without AMX; medians of three processes; float32 the same).
    """
    if not _told:
        _told.append(_tell(one_heap))
    return _told[0]


def _tell(one_heap: bool) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    settings = [(_M_MMAP_THRESHOLD, _GIB), (_M_TRIM_THRESHOLD, -1)]
    if one_heap:
        settings.append((_M_ARENA_MAX, 1))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
