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
    assert memory.keep_freed(one_heap=sys.argv[2] == "one")
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


# Two threads that hold a block each: whether both lie in one heap. Heaps of threads begin at multiples of 64 MB.
HEAPS = """
import ctypes, sys, threading
from ltrec_jax import memory
memory.keep_freed(one_heap=sys.argv[1] == "one")
memory.keep_freed(one_heap=sys.argv[1] != "one")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
together, places = threading.Barrier(2), []
def hold():
    together.wait()
    places.append(libc.malloc(100_000))
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(abs(places[0] - places[1]) < 48 << 20)
"""


def faults(mode: str, heaps: str = "one") -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode, heaps], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.fixture(autouse=True)
def glibc() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")


def test_freed_memory_is_used_again_without_page_faults():
    most = 0.01 * faults("leave")
    assert faults("keep", "one") < most
    assert faults("keep", "each") < most


@pytest.mark.parametrize("heaps", ["one", "each"])
def test_threads_share_a_heap_or_not_as_the_first_call_says(heaps):
    done = subprocess.run([sys.executable, "-c", HEAPS, heaps], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(heaps == "one")
