"""Taking promised files out of archives: nothing leaves the target folder, damage is one line.

Out of scope: where archives come from (`mirrors`).
"""

import contextlib
import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

_CHUNK = 1 << 20
_BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile)


class MirrorError(Exception):
    """This mirror could not deliver; the message is the reason in one line."""


def inside(directory: Path, relative: str) -> Path:
    """`directory / relative`; `ValueError` for an absolute path or one that would leave the directory."""
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\\" in relative or ":" in relative:
        raise ValueError(f"{relative!r} is not a path inside the artifact's folder")
    return directory / path


def extract(archive: Path, members: Mapping[str, str], directory: Path, *, kind: str = ".zip") -> None:
    """Take `members` (our relative path -> member) out of a zip or tar.gz archive; links and specials are refused."""
    with archive_errors(archive):
        if kind.endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                for relative, member in members.items():
                    with _named_member(member), opened.open(member) as source:
                        copy(source, place(directory, relative))
        else:
            with tarfile.open(archive, "r:gz") as tar:
                for relative, member in members.items():
                    with _named_member(member):
                        entry = tar.getmember(member)
                    content = tar.extractfile(entry) if entry.isreg() else None
                    if content is None:
                        raise MirrorError(f"its member {member} is not a plain file")
                    with content:
                        copy(content, place(directory, relative))


def place(directory: Path, relative: str) -> Path:
    """`inside`, with its folder made."""
    target = inside(directory, relative)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def copy(source: IO[bytes] | gzip.GzipFile, target: Path) -> None:
    """Write all of a stream to a file."""
    with target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)


@contextlib.contextmanager
def archive_errors(archive: Path) -> Iterator[None]:
    """A damaged archive is a `MirrorError`, and is removed, so that the next attempt starts anew."""
    try:
        yield
    except _BROKEN_ARCHIVE as error:
        archive.unlink(missing_ok=True)
        raise MirrorError(f"the download is damaged ({one_line(str(error)) or type(error).__name__})") from error


@contextlib.contextmanager
def _named_member(member: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise MirrorError(f"the archive has no member {member}") from error


def is_archive(name: str) -> bool:
    """Whether `extract` can open a file of this name."""
    return name.endswith((".zip", ".tar.gz", ".tgz"))


def one_line(text: str) -> str:
    """The text without line breaks, cut at 200 characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else flat[:197] + "..."
