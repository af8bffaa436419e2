"""Public datasets by name: `load("movielens-100k")`, `available()`. One file per family says where it lives.

Out of scope: the users' own files (`data.prepare`).
"""

import dataclasses
from pathlib import Path

from ltrec_jax import storage
from ltrec_jax.data import fetch
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.data.sources import amazon, goodbooks, lastfm, mind, movielens, movietweetings
from ltrec_jax.data.sources.source import Source, Variant
from ltrec_jax.errors import UserError, unknown_name

_FAMILIES = (movielens, movietweetings, goodbooks, lastfm, mind, amazon)
# Raised whenever a reader changes what it makes of the same files: datasets prepared before are made again.
_READER_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """One line of `ltrec data list`."""

    name: str
    domain: str
    size: str
    licence: str
    citation: str
    url: str


def available() -> list[SourceInfo]:
    """Every public dataset that `load` knows, in families."""
    names = [field.name for field in dataclasses.fields(SourceInfo)]
    return [SourceInfo(**{name: getattr(source, name) for name in names}) for source in _sources()]


def load(name: str, *, cache: Path | None = None, offline: bool | None = None) -> Dataset:
    """The public dataset of this name: fetched, read and kept as a dataset directory; from then on just opened.

    `cache` is where prepared datasets are kept (default: `datasets/` in the cache directory). An unknown name is a
    `UserError` that suggests the nearest; so are unreachable files, a bad row (with file and line) and wrong counts.
    """
    return _open(locate(name, cache=cache, offline=offline), find(name))


def locate(name: str, *, cache: Path | None = None, offline: bool | None = None) -> Path:
    """The dataset directory of what `load` opens, made if it is not there yet."""
    source = find(name)
    folder = storage.cache_directory() / "datasets" if cache is None else Path(cache)
    places = {variant.artifact.name: folder / f"{source.name}-{_key(variant)}" for variant in source.variants}
    for place in places.values():
        if place.is_dir():
            return place
    artifact, files = fetch.fetch_any([variant.artifact for variant in source.variants], offline=offline)
    variant = next(variant for variant in source.variants if variant.artifact is artifact)
    place = places[artifact.name]
    with storage.lock(folder / f".{place.name}.lock"):
        if not place.is_dir():
            read(source, variant, files).save(place)
    return place


def find(name: str) -> Source:
    """The source of a name or alias, in any case; `UserError` with the nearest name otherwise."""
    known = {alias: source for source in _sources() for alias in (source.name, *source.aliases)}
    if name.lower() not in known:
        # One line must hold the list: the many categories of one family only show when they are meant.
        meant = name.lower().startswith("amazon")
        listed = [source.name for source in _sources() if source.name.startswith("amazon") == meant]
        raise unknown_name("dataset", name, listed if meant else [*listed, "amazon-2023-<category>"])
    return known[name.lower()]


def read(source: Source, variant: Variant, files: Path) -> Dataset:
    """The dataset of the raw files in a folder, in memory; counts other than the published ones are a `UserError`."""
    from ltrec_jax.data.sources import reading

    with reading.connection() as connection:
        variant.read(connection, files)
        dataset = reading.assemble(connection, source.name, source.info() | {"files": variant.artifact.name})
    found = (dataset.num_users, dataset.num_items, len(dataset.interactions))
    if source.counts is not None and found != source.counts:
        raise UserError(
            f"{files} holds {found} users, items and interactions, but {source.name} has {source.counts}. "
            "Remove that folder and load the dataset again."
        )
    return dataset


def _open(place: Path, source: Source) -> Dataset:
    try:
        return Dataset.load(place)
    except UserError as error:
        raise UserError(f"{error} Here that means: remove {place} and load {source.name!r} again.") from error


def _sources() -> list[Source]:
    return [source for family in _FAMILIES for source in family.SOURCES]


def _key(variant: Variant) -> str:
    return storage.content_hash(_READER_VERSION, variant.artifact.name, dict(variant.artifact.files))[:12]
