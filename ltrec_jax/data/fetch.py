"""A cache of downloaded artifacts: mirrors in order, SHA-256 of every file, whole or not at all, offline mode.

An artifact lies in `cache_directory()/artifacts/<name>/` beside a manifest of what was checked. The second call needs
no network. Out of scope: how each kind of mirror delivers (`mirrors`), what the files mean (`sources`, the encoder).
"""

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data.archives import MirrorError, inside
from ltrec_jax.data.mirrors import Hub, LocalFolder, Mirror, Together, Url, Wheel
from ltrec_jax.errors import UserError

__all__ = ["Artifact", "Hub", "LocalFolder", "Mirror", "Together", "Url", "Wheel", "cached", "fetch", "fetch_any"]

_MANIFEST = ".fetched.json"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Named files with the SHA-256 of each (None: not known, any bytes are taken) and where they can be had."""

    name: str
    files: Mapping[str, str | None]
    mirrors: tuple[Mirror, ...]
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        for relative in (self.name, *self.files):
            inside(Path(), relative)

    @property
    def directory(self) -> Path:
        return storage.cache_directory() / "artifacts" / self.name


def fetch(artifact: Artifact, *, offline: bool | None = None) -> Path:
    """The folder with the artifact's files, checked; downloaded if the cache does not hold them.

    `offline` (default: `LTREC_OFFLINE=1`) skips every mirror that needs the network. Mirrors are tried in the stated
    order; when none delivers, one `UserError` lists the reason of each. A file with a wrong SHA-256 is set aside as
    `*.rejected` and never used.
    """
    return fetch_any([artifact], offline=offline)[1]


def fetch_any(artifacts: Sequence[Artifact], *, offline: bool | None = None) -> tuple[Artifact, Path]:
    """The first artifact of several forms of the same thing that the cache or a mirror has, and its folder."""
    for artifact in artifacts:
        if cached(artifact):
            return artifact, artifact.directory
    offline = _offline_by_environment() if offline is None else offline
    reasons: list[str] = []
    for artifact in artifacts:
        waiting = f"Another process is fetching {artifact.name}; waiting for it."
        lock = storage.cache_directory() / "artifacts" / f".{artifact.name}.lock"
        with storage.lock(lock, on_wait=lambda text=waiting: tqdm.write(text, file=sys.stderr)):  # type: ignore[misc]
            if cached(artifact) or _fetch_locked(artifact, offline, reasons):
                return artifact, artifact.directory
    hint = "Unset LTREC_OFFLINE" if offline else "Check the network connection"
    raise UserError(
        f"Cannot fetch {artifacts[0].name}: {'; '.join(reasons)}. {hint}, or point LTREC_CACHE "
        f"(now {storage.cache_directory()}) at a cache that holds it."
    )


def cached(artifact: Artifact, *, full: bool = False) -> bool:
    """Whether the cache holds the artifact: every file with its recorded size and the declared SHA-256.

    `full` hashes the files again instead of trusting the manifest.
    """
    try:
        recorded: dict[str, Any] = storage.read_json(artifact.directory / _MANIFEST)
    except UserError:  # missing or damaged: fetching again mends both
        return False
    for relative, declared in artifact.files.items():
        entry, path = recorded.get(relative), artifact.directory / relative
        if entry is None or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        if (declared or entry["sha256"]) != entry["sha256"]:
            return False
        if full and storage.sha256_file(path) != entry["sha256"]:
            return False
    return True


def _fetch_locked(artifact: Artifact, offline: bool, reasons: list[str]) -> bool:
    partial = storage.cache_directory() / "artifacts" / ".partial" / artifact.name
    for mirror in artifact.mirrors:
        if offline and mirror.network:
            reasons.append(f"{mirror.label}: skipped, offline mode")
            continue
        try:
            with storage.new_directory(artifact.directory, replace=True) as directory:
                partial.mkdir(parents=True, exist_ok=True)
                mirror.retrieve(directory, partial)
                storage.write_json(directory / _MANIFEST, _verify(artifact, directory))
        except MirrorError as error:
            reasons.append(f"{mirror.label}: {error}")
        else:
            shutil.rmtree(partial)
            return True
    return False


def _verify(artifact: Artifact, directory: Path) -> dict[str, Any]:
    manifest = {}
    for relative, declared in artifact.files.items():
        path = directory / relative
        if not path.is_file():
            raise MirrorError(f"it did not deliver {relative}")
        found = storage.sha256_file(path)
        if declared is not None and found != declared:
            aside = artifact.directory.with_name(f"{artifact.name}-{relative.replace('/', '-')}.rejected")
            path.replace(aside)
            raise MirrorError(f"wrong SHA-256 of {relative}: {found} instead of {declared}; set aside as {aside}")
        manifest[relative] = {"bytes": path.stat().st_size, "sha256": found}
    return manifest


def _offline_by_environment() -> bool:
    return os.environ.get("LTREC_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
