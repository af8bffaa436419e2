"""SIGINT and SIGTERM: a wish to stop, kept for a good moment (`deferred`) or fulfilled at once (`at_once`).

Who asked is remembered by the signal handlers themselves, of which a process has one set. Out of scope: what is saved
when a run stops (`loop`, `fit`).
"""

import contextlib
import inspect
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ltrec_jax import processes, storage
from ltrec_jax.errors import StoppedError

RESUME = "Run the same command with --resume to go on."
_CAUGHT = (signal.SIGINT, signal.SIGTERM)
_RENAMING = {inspect.unwrap(f).__code__ for f in (storage.new_file, storage.new_directory, storage.remove_directory)}


class Stop:
    """A signal handler that remembers the name of the signal; empty until there was one."""

    def __init__(self, asked: str = "") -> None:
        self.asked = asked

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number).name


class _Interrupt(Stop):
    """Ends the work where it is, but for the renaming of what has been written, which is finished first."""

    def __init__(self, asked: str, told: str) -> None:
        super().__init__(asked)
        # Asked here: JAX may be holding a lock when a signal comes.
        self.told, self.alone = told, processes.number() == 1

    def __call__(self, number: int, frame: FrameType | None) -> None:
        super().__call__(number, frame)
        # Several processes must stop at one point, or those that go on wait for the others for ever.
        # A later signal counts too: the first may have come while files were renamed.
        if self.alone and not _renames(frame):
            # Not an exception that a library may take for a failure of its own.
            raise KeyboardInterrupt

    def error(self) -> StoppedError:
        return StoppedError(f"Stopped on {self.asked or 'a signal'}{self.told}")


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """Within, a signal is a request that `Stop.asked` tells of; one that came before is handed in.

    A request that came and was not honoured by an exception goes on to who handled signals before. Main thread only.
    """
    stop = Stop(asked=_asked())
    with _handled_by(stop):
        yield stop
    if stop.asked and threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.Signals[stop.asked])


@contextlib.contextmanager
def at_once(told: str) -> Iterator[None]:
    """Within, a signal ends the work in a `StoppedError` ("Stopped on SIGTERM" and `told`).

    In one process that is at once, unless files are being renamed, or inside a `deferred`; in several, or then, at the
    next `check` or at the end. Whatever is written meanwhile must be safe from a kill, as it is through `storage`.
    """
    stop = _Interrupt(_asked(), told)
    with _handled_by(stop):
        try:
            yield
            check()
        except KeyboardInterrupt:
            if not stop.asked:
                raise
            raise stop.error() from None


def check() -> None:
    """Raise the `StoppedError` of the `at_once` around, if this or another process was asked to stop.

    All processes must call it at the same point of the program.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if isinstance(stop, _Interrupt) and any(processes.anywhere(bool(stop.asked))):
        raise stop.error()


def _asked() -> str:
    handler: Any = signal.getsignal(signal.SIGTERM)
    return handler.asked if isinstance(handler, Stop) else ""


def _renames(frame: FrameType | None) -> bool:
    """Whether `storage` is at the beginning or end of a write, where the old may be gone and the new not yet there."""
    while frame is not None and frame.f_code not in _RENAMING:
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def _handled_by(stop: Stop) -> Iterator[None]:
    previous: dict[int, Any] = {}
    try:
        for caught in _CAUGHT:
            # Raises ValueError outside the main thread, where Python delivers no signals: nothing to restore then.
            with contextlib.suppress(ValueError):
                previous[caught] = signal.signal(caught, stop)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
