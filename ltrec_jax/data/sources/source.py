"""What a public dataset is to us: where its files are, who made it under which licence, how they become tables.

Out of scope: reading a format (`reading` and the family files), finding a source by name (`sources`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltrec_jax.data import fetch

if TYPE_CHECKING:
    import duckdb

Reader = Callable[["duckdb.DuckDBPyConnection", Path], None]
"""Makes the tables `events`, `items` and perhaps `users` (see `reading.assemble`) from the files of a folder."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One form in which the data are published: its files and what reads them."""

    artifact: fetch.Artifact
    read: Reader


@dataclasses.dataclass(frozen=True)
class Source:
    """A public dataset. Its variants are tried in order; all give the same interactions in the same order.

    `template` renders an item as text and `user_template` a user ("" where users have no attributes). `scale` is the
    range of ratings (None: counts of plays, without a bound) and `positive_rating` the least one that counts as liked.
    `official_splits` gives the test rows of each published fold as [first, end). `counts` (users, items, interactions)
    are checked where they are known.
    """

    name: str
    domain: str
    size: str
    licence: str
    citation: str
    url: str
    variants: tuple[Variant, ...]
    template: str
    scale: tuple[float, float] | None
    positive_rating: float
    user_template: str = ""
    aliases: tuple[str, ...] = ()
    official_splits: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    counts: tuple[int, int, int] | None = None

    def info(self) -> dict[str, Any]:
        """What a dataset of this source records about itself, as JSON values."""
        return {
            "source": self.name,
            "domain": self.domain,
            "url": self.url,
            "licence": self.licence,
            "citation": self.citation,
            "template": self.template,
            "user_template": self.user_template,
            "scale": None if self.scale is None else list(self.scale),
            "positive_rating": self.positive_rating,
            "official_splits": {fold: list(rows) for fold, rows in self.official_splits.items()},
        }


def local_folder(name: str, files: Iterable[str]) -> fetch.LocalFolder:
    """The user's own copy, for whoever has no network or must accept terms first: `LTREC_` + the name in capitals."""
    return fetch.LocalFolder(f"LTREC_{name.upper().replace('-', '_')}", {file: file for file in files})
