"""The C library's memory setting, in a process of its own: page faults of repeated large allocations."""

import ctypes
import subprocess
import sys

import pytest

# Allocates, touches and frees 300 MB ten times; prints the page faults of the last nine.
PROGRAM = """
import ctypes, resource, sys
from ltrec_jax import memory
if sys.argv[1] == "keep":
    assert memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for number in range(10):
    block = libc.malloc(300_000_000)
    ctypes.memset(block, 1, 300_000_000)
    libc.free(block)
    if number == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_used_again_without_page_faults():
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")
    assert faults("keep") < 0.01 * faults("leave")
