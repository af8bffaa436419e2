"""How the process keeps freed memory: one setting of the C library, made before the first threads start.

Out of scope: what is allocated. Nothing here needs JAX, so that a command can call it before anything else.
"""

import ctypes
import functools

# Numbers of <malloc.h>.
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
_GIB = 1 << 30


@functools.cache
def keep_freed() -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the kernel; whether it could be told.

    XLA's CPU client takes the temporaries of a step as one block of hundreds of MB and frees it afterwards. glibc maps
    and unmaps such a block each time, and every page of it is a fault: a fine-tuning step of MiniLM has 54,000 of them
    and takes 198 ms, without them 163 (2 cores, 960 tokens, bfloat16). So blocks up to 1 GiB come from one heap for all
    threads, which is never trimmed. Threads that have allocated before keep heaps of their own, which are too small for
    such a block: call it early. Where the C library is not glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _GIB), (_M_TRIM_THRESHOLD, -1))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
