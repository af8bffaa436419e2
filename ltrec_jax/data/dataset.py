"""What a dataset is: int-coded interactions, the tables of its users and items, and a split of it. Frozen.

Out of scope: reading raw files (`prepare`, `sources`), choosing a split (`splits`), counting (`popularity`),
files (`directory`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from ltrec_jax import storage
from ltrec_jax.data import columns, directory
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    from ltrec_jax.data.leaks import LeakReport


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Columns of N events: user int32[N], item int32[N], rating float32[N], timestamp int64[N] (perhaps mapped)."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in columns.DTYPES}
        if len(lengths) != 1:
            raise ValueError(f"interaction columns differ in length: {sorted(lengths)}")
        for name, dtype in columns.DTYPES.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"interaction column {name!r} is {getattr(self, name).dtype}, not {np.dtype(dtype)}")

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Self:
        """The events of these rows (indices or a boolean mask), copied into memory."""
        return type(self)(*(np.asarray(column[rows]) for column in self.columns().values()))

    def columns(self) -> dict[str, np.ndarray]:
        """The columns by name."""
        return {name: getattr(self, name) for name in columns.INTERACTION_COLUMNS}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Interactions with the tables of users and items. Row u of `users` is user u, row i of `items` is item i.

    `users` has the column `user_id`, `items` has `item_id` (strings, unique); the other columns are text and
    attributes as the source gave them. `info` is free-form provenance (source, licence, citation, what was rejected).
    """

    name: str
    interactions: Interactions
    users: pd.DataFrame
    items: pd.DataFrame
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        for kind, frame, key in (("users", self.users, columns.USER_ID), ("items", self.items, columns.ITEM_ID)):
            if key not in frame.columns:
                raise UserError(f"Dataset {self.name!r}: the table of {kind} has no column {key!r}.")
            if not frame[key].is_unique:
                twice = frame[key][frame[key].duplicated()].iloc[0]
                raise UserError(f"Dataset {self.name!r}: {key} {twice!r} stands twice in the table of {kind}.")
        for kind, codes, count in (
            ("user", self.interactions.user, self.num_users),
            ("item", self.interactions.item, self.num_items),
        ):
            if len(codes) and (codes.min() < 0 or codes.max() >= count):
                raise UserError(f"Dataset {self.name!r}: an interaction's {kind} code is outside 0..{count - 1}.")

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the interactions and of both tables: equal data, equal fingerprint, wherever it lies."""
        if self.path is not None:
            recorded = storage.read_json(self.path / "dataset.json").get("fingerprint")
            if isinstance(recorded, str):
                return recorded
        return directory.fingerprint(directory.column_digests(self.interactions.columns()), self.users, self.items)

    def user_index(self, user_id: str) -> int:
        """The internal id of an external user id; `UserError` if there is none."""
        return _position(self.users[columns.USER_ID], user_id, "user", self.name)

    def item_index(self, item_id: str) -> int:
        """The internal id of an external item id; `UserError` if there is none."""
        return _position(self.items[columns.ITEM_ID], item_id, "item", self.name)

    def save(self, path: Path, *, replace: bool = False) -> "Dataset":
        """Write the dataset directory, whole or not at all, and return the dataset read back from it (mapped)."""
        with storage.new_directory(Path(path), replace=replace) as folder:
            digests = directory.write_interactions(folder, len(self.interactions), [self.interactions.columns()])
            directory.write_table(self.users, folder / "users.parquet")
            directory.write_table(self.items, folder / "items.parquet")
            fingerprint = functools.partial(directory.fingerprint, digests, self.users, self.items)
            directory.write_description(folder, self.name, fingerprint, dict(self.info))
        return Dataset.load(path)

    @staticmethod
    def from_pandas(
        interactions: pd.DataFrame,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        **settings: Any,
    ) -> "Dataset":
        """The dataset of data frames of events, items and users: see `prepare.from_pandas` for rules and settings."""
        from ltrec_jax.data import prepare

        return prepare.from_pandas(interactions, items, users, **settings)

    @classmethod
    def load(cls, path: Path) -> "Dataset":
        """Open a dataset directory; the interaction columns are memory-mapped. Anything missing or damaged is named."""
        path = Path(path)
        description = directory.read_description(path)
        try:
            interactions = Interactions(**directory.read_columns(path))
        except ValueError as error:
            raise UserError(f"{path}/columns is damaged: {error}. Prepare the dataset again.") from error
        dataset = cls(
            name=description["name"],
            interactions=interactions,
            users=directory.read_table(path / "users.parquet"),
            items=directory.read_table(path / "items.parquet"),
            info=description["info"],
            path=path,
        )
        counts = {"users": dataset.num_users, "items": dataset.num_items, "interactions": len(interactions)}
        if counts != description["counts"]:
            raise UserError(
                f"{path} is damaged: dataset.json counts {description['counts']}, the files hold {counts}. "
                "Prepare it again."
            )
        return dataset


@dataclasses.dataclass(frozen=True)
class Split:
    """Disjoint row numbers (int64, ascending) of a dataset's interactions: what may be learnt from, chosen on, scored.

    `name` says how it was made ("official/u1", "random", ...), `settings` with what. A row in none of the three is
    unused. `Split` knows nothing of the rules; `splits` makes and checks them.
    """

    dataset: Dataset
    name: str
    train_rows: np.ndarray
    validation_rows: np.ndarray
    test_rows: np.ndarray
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def train(self) -> Interactions:
        return self.dataset.interactions.take(self.train_rows)

    @property
    def validation(self) -> Interactions:
        return self.dataset.interactions.take(self.validation_rows)

    @property
    def test(self) -> Interactions:
        return self.dataset.interactions.take(self.test_rows)

    def with_validation_in_train(self) -> "Split":
        """The split for the final fit: validation joins training, the test stays as it is."""
        rows = np.sort(np.concatenate([self.train_rows, self.validation_rows]))
        return dataclasses.replace(self, train_rows=rows, validation_rows=np.zeros(0, np.int64))

    def check(self) -> "LeakReport":
        """What leaks from one part into another: `leaks.check`, which stands above this module."""
        from ltrec_jax.data import leaks

        return leaks.check(self)


def _position(ids: pd.Series, wanted: str, kind: str, name: str) -> int:
    found = np.flatnonzero(ids.to_numpy() == str(wanted))
    if len(found) == 0:
        examples = ", ".join(repr(x) for x in ids.head(3))
        raise UserError(
            f"Unknown {kind} {wanted!r} in dataset {name!r}. Its {len(ids)} {kind} ids look like {examples}."
        )
    return int(found[0])
