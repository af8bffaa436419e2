"""A trace of a few training steps, for the profiler's viewers. Out of scope: figures of every run (`meter`)."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

_COMPILING_STEPS = 2


@contextlib.contextmanager
def profiled(step: Callable[..., Any], directory: Path, steps: int) -> Iterator[Callable[..., Any]]:
    """The step, of which calls 3 to `steps` + 2 are traced into `directory`: the first ones compile. 0 steps: as it is.

    Written for TensorBoard and, as `perfetto_trace.json.gz`, for ui.perfetto.dev.
    """
    calls, tracing = 0, False

    def stop() -> None:
        nonlocal tracing
        if tracing:
            jax.profiler.stop_trace()
        tracing = False

    def traced(*arguments: Any) -> Any:
        nonlocal calls, tracing
        calls += 1
        if calls == _COMPILING_STEPS + 1:
            jax.block_until_ready(arguments)
            jax.profiler.start_trace(str(directory), create_perfetto_trace=True)
            tracing = True
        result = step(*arguments)
        if calls == _COMPILING_STEPS + steps:
            jax.block_until_ready(result)
            stop()
        return result

    try:
        yield traced if steps else step
    finally:
        stop()
