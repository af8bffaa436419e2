"""Files and directories that appear whole or not at all; content hashes; locks. The only place that writes to disk.

Everything is written under a temporary name beside its target, flushed to the device and renamed, so a reader sees the
old content or the new one, and a full disk or a kill leaves the old one intact.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ltrec_jax.errors import UserError

_CHUNK = 1 << 20
TEMPORARY_MARK = ".tmp-"
_FATAL_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EFBIG: "the file is larger than this file system or process may write",
}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(*parts: Any) -> str:
    """Hex SHA-256 of a sequence of str, bytes, int, float, bool, None, list, dict or numpy arrays.

    Every part is preceded by its kind and length, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            kind, data = b"b", part
        elif isinstance(part, str):
            kind, data = b"s", part.encode()
        elif isinstance(part, np.ndarray):
            array = np.ascontiguousarray(part)
            kind, data = f"a{array.dtype.str}{array.shape}".encode(), array.tobytes()
        else:
            kind, data = b"j", json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
        digest.update(kind + str(len(data)).encode() + b":")
        digest.update(data)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and the like into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        reason = _FATAL_WRITE_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        raise UserError(
            f"Cannot write {path}: {reason}. Free some space or choose another place; what was saved before is intact."
        ) from error


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write; it becomes `path` when the block ends without error and vanishes otherwise."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(path)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory to fill; it becomes `path` when the block ends without error and vanishes otherwise.

    An existing `path` is an error unless `replace`, in which case the old directory is removed after the new one
    stands complete beside it.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"{path} exists already. Choose another place, or remove it first.")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                retired = _temporary_name(path)
                path.rename(retired)
                temporary.rename(path)
                shutil.rmtree(retired)
            else:
                temporary.rename(path)
            _sync(path.parent)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (NaN is refused with `ValueError`), indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; one that is missing, damaged or something else is a `UserError`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return value


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one .npy file whole or not at all. Object arrays are refused (they would need pickle)."""
    with new_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read (or memory-map, read-only) one .npy file; a missing or damaged one is a `UserError`. Never unpickles."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    return array


@contextlib.contextmanager
def lock(path: Path, *, on_wait: Callable[[], None] | None = None, timeout: float = 3600.0) -> Iterator[None]:
    """Hold an advisory lock on `path` (a file made for that purpose) so that two processes do not do the same work.

    `on_wait` is called once if somebody else holds it. After `timeout` seconds: `UserError`.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(path)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            if on_wait is not None:
                on_wait()
            try:
                held.acquire(timeout=timeout)
            except filelock.Timeout as error:
                raise UserError(
                    f"Another process has held {path} for {timeout:.0f} s. Stop it, or remove the file if it is gone."
                ) from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock on `path` unless somebody else does: whether it is held. Waits for nobody."""
    held = filelock.FileLock(path)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def remove_directory(path: Path) -> None:
    """Remove a directory: a reader finds it whole or not at all. What is mapped from it stays readable (POSIX)."""
    retired = _temporary_name(Path(path))
    Path(path).rename(retired)
    shutil.rmtree(retired)


def cache_directory() -> Path:
    """Where downloads and reusable artefacts live: `LTREC_CACHE`, or the platform's user cache directory."""
    named = os.environ.get("LTREC_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("ltrec-jax")
