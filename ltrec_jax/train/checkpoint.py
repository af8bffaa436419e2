"""Checkpoints of a training run: orbax behind one file. Asynchronous, atomic, nothing unpickled.

Kept: the newest few and the one that the last save called best. A save that is cut short is never a checkpoint, and a
deletion that is cut short leaves none: what is no longer kept is renamed first, which is whole or not at all.
"""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ltrec_jax import processes, storage
from ltrec_jax.errors import UserError
from ltrec_jax.types import PyTree

_DROPPED = "dropped"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back: the step it was saved at, the state, and the notes saved with it."""

    step: int
    state: PyTree
    notes: dict[str, Any]


class _Named:
    """Preserves the step that it is told. Orbax's own `BestN` ranks anew, and knows no error of an earlier process."""

    def __init__(self) -> None:
        self.step = 0

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        return [info.step == self.step for info in checkpoints]


class Checkpoints:
    """The checkpoints under one directory. Use as a context manager: leaving it waits for pending saves."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        # Absl's logger reports every save at INFO; a person follows the progress bar instead.
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.directory = Path(directory).absolute()
        self._best, self._saving = _Named(), False
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), self._best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, cleanup_tmp_directories=True, todelete_subdir=_DROPPED
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        with _disk_errors(self.directory):
            self._delete_dropped()
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _disk_errors(self.directory):
            self._manager.close()
            self._delete_dropped()

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, notes: Mapping[str, Any], *, best: int = 0) -> None:
        """Start saving; returns as soon as the arrays are copied. The step `best` stays beside the newest ones."""
        with _disk_errors(self.directory):
            self._delete_dropped()
            self._best.step, self._saving = best, True
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(dict(notes))),
                force=True,
            )

    def _delete_dropped(self) -> None:
        if processes.is_first():
            # One by one: orbax may be moving the next one into the directory at this moment.
            for step in (self.directory / _DROPPED).glob("*"):
                shutil.rmtree(step)

    def wait(self) -> None:
        """Return when all saves are on disk. Without one under way it costs nothing."""
        if self._saving:
            with _disk_errors(self.directory):
                self._manager.wait_until_finished()
            self._saving = False

    def restore(self, like: PyTree, step: int | None = None) -> Restored | None:
        """The checkpoint of a step (default: the newest), placed like the arrays of `like`; None if there is none.

        A damaged checkpoint, or one of another model, is a `UserError` that names its directory and what to do.
        """
        self.wait()
        found = self.steps
        if step is None and not found:
            return None
        step = found[-1] if step is None else step
        if step not in found:
            raise UserError(f"{self.directory} has no checkpoint of step {step}; it has {found or 'none'}.")
        place = self.directory / str(step)
        others = [s for s in found if s != step]
        remedy = f"Remove that directory to go on from {f'step {others[-1]}' if others else 'the start'}."
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            saved = self._manager.item_metadata(step)["state"].tree
            # Asked first: a restore that meets a wrong shape half-way leaves its other reads dangling.
            if differing := _differing_shapes(saved, target):
                raise UserError(f"The checkpoint {place} belongs to another model ({differing}). {remedy}")
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target), notes=ocp.args.JsonRestore()),
            )
        except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"The checkpoint {place} is damaged ({reason}). {remedy}") from error
        return Restored(step, read["state"], read["notes"])


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    with storage.disk_errors(directory):
        try:
            yield
        except ValueError as error:
            # Tensorstore puts what the system said into the text of a ValueError.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(directory)) from error


def _differing_shapes(saved: PyTree, target: PyTree) -> str:
    """The first leaf whose place or shape differs between what is saved and what is wanted; empty if none does."""
    # Orbax's metadata gives tuples as lists and dataclasses as dicts: the leaves' order by name is what compares.
    have, want = (
        {_plain_path(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (saved, target)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            return f"{name}: saved {have.get(name, 'nothing')}, wanted {want.get(name, 'nothing')}"
    return ""


def _plain_path(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
