"""Several processes that train one model: how they find each other, and how they decide together.

Every process runs the same program. What must happen once is done by the first one; what must not differ between them
(an error, a choice, a request to stop) is told by one and heard by all. With one process each function is what it would
be without the others. Out of scope: arrays and devices (`parallel`).
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from ltrec_jax.errors import UserError

DETECT = "auto"
"""As a coordinator: let JAX find address, count and index itself (SLURM, GKE, Open MPI, Cloud TPU)."""
COORDINATOR, COUNT, INDEX = "LTREC_COORDINATOR", "LTREC_NUM_PROCESSES", "LTREC_PROCESS_ID"
"""Environment variables that stand for the three settings of `connect`."""


def connect(coordinator: str = "", count: int | None = None, index: int | None = None) -> None:
    """Join the other processes of this run; call it before anything asks JAX for a device.

    `coordinator`: HOST:PORT of process 0, or "auto". What is not given is read from the environment
    (`LTREC_COORDINATOR`, `LTREC_NUM_PROCESSES`, `LTREC_PROCESS_ID`); without a coordinator this process is alone.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR, "")
    count = _number(COUNT) if count is None else count
    index = _number(INDEX) if index is None else index
    if not coordinator:
        if count is not None or index is not None:
            raise UserError("Several processes need a coordinator: --coordinator HOST:PORT of process 0, or auto.")
        return
    if coordinator != DETECT and (count is None or index is None or not 0 <= index < count):
        raise UserError(
            f"The coordinator {coordinator} needs --num-processes N and --process-id I with 0 <= I < N, not "
            f"N = {count} and I = {index}. Under SLURM, GKE, Open MPI or on a Cloud TPU use --coordinator auto."
        )
    _keep_stdout_ours()
    try:
        jax.distributed.initialize(None if coordinator == DETECT else coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"Cannot join the other processes (coordinator {coordinator}): {reason}") from error


def number() -> int:
    """How many processes train together."""
    return int(jax.process_count())


def is_first() -> bool:
    """Whether this is the process that writes and reports."""
    return bool(jax.process_index() == 0)


def first_does(work: Callable[[], None]) -> None:
    """Run something in the first process, the others wait; its `UserError` is raised in all of them."""
    if number() == 1:
        work()
        return
    message = ""
    if is_first():
        try:
            work()
        except UserError as error:
            message = str(error)
    if told := _from_first(message):
        raise UserError(told)


def first_makes(work: Callable[[], None], proof: Path) -> None:
    """`first_does` of what makes the file `proof`: a `UserError` in all of them where one does not see it."""
    first_does(work)
    if any(anywhere(not proof.is_file())):
        raise UserError(f"{proof.parent} is not seen by all processes. It must be on a file system that they share.")


def anywhere(*asked: bool) -> tuple[bool, ...]:
    """For each question, whether any process says yes. All processes must ask at the same point of the program."""
    if number() == 1:
        return asked
    answers = np.asarray(multihost_utils.process_allgather(np.asarray(asked)))
    return tuple(map(bool, np.any(answers, axis=0)))


def of_first(value: float) -> float:
    """The first process's value (float64), so that a choice made from it is the same everywhere."""
    if number() == 1:
        return value
    # As two halves: JAX would narrow a float64.
    halves = np.array([value], np.float64).view(np.uint32)
    return float(np.asarray(multihost_utils.broadcast_one_to_all(halves), np.uint32).view(np.float64)[0])


def _from_first(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(max(length, 1), np.uint8)
    if is_first():
        padded[: len(data)] = data
    told = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    return told[:length].tobytes().decode()


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"The environment variable {variable} must be a number, not {text!r}.")
    return int(text)


def _keep_stdout_ours() -> None:
    """Send what C++ libraries print to stderr (gloo greets its peers on stdout); Python's stdout stays what it was."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding="utf-8", buffering=1)
