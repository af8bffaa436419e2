"""Privacy at the door: pseudonyms for ids, k-anonymity of what is known about users, columns left out.

What it does not do: the events themselves stay, and what somebody rated can identify him to those who know a few of
his ratings (Narayanan and Shmatikov, "Robust De-anonymization of Large Sparse Datasets", IEEE S&P 2008). How columns
are made coarser is in `generalise`.
"""

import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data import columns, generalise
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.errors import UserError, unknown_name

_LEAST_SALT = 16
_DIGITS = 32  # of a pseudonym: 128 bits, no collision among billions of ids


def read_salt(path: Path, *, outside: Iterable[Path] = (), create: bool = False) -> bytes:
    """The salt in a file, at least 16 bytes (white space around it is not part of it).

    `create` makes a missing file with 256 random bits that only its owner may read. A file inside a dataset directory,
    or inside one of the directories `outside`, is a `UserError`: who has both can undo the pseudonyms.
    """
    path = Path(path)
    for parent in path.resolve().parents:
        if (parent / "dataset.json").exists() or parent in {Path(other).resolve() for other in outside}:
            raise UserError(f"The salt file {path} lies in the dataset directory {parent}. Keep it in another place.")
    if create and not path.exists():
        with storage.new_file(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
    try:
        salt = path.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"Cannot read the salt file {path}: {error.strerror}. A new one has to be asked for."
        ) from error
    _check_salt(salt, str(path))
    return salt


def anonymise(
    dataset: Dataset,
    salt: bytes,
    *,
    k: int = 5,
    quasi_identifiers: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    pseudonymise_items: bool = False,
    max_suppressed: float = 0.05,
) -> Dataset:
    """The dataset under pseudonyms, where at least k users share every combination of quasi-identifiers.

    An id becomes the first 128 bits of HMAC-SHA256(salt, kind and id) in hex: the same for the same salt, another for
    another. Users stand in the order of their pseudonyms and events in order of time (within the folds of
    `info["official_splits"]`), since the old order would tell the ids; else the events are unchanged. Item ids are
    kept unless `pseudonymise_items`.

    `drop` names columns of users or items to leave out. `quasi_identifiers` are the columns of users by which somebody
    could be recognised (None: all that are not dropped; others stay as they are). They are made coarser, and users
    left in groups of fewer than k have them all removed: as few as possible, not more than the share `max_suppressed`
    unless nothing can be made coarser any more. `info["anonymised"]` says what was done, never the salt. An unknown
    column, a short salt, fewer than k users: `UserError`.
    """
    _check_salt(salt, "The salt")
    users, items = _without(dataset, drop)
    attributes = [str(column) for column in users.columns if column != columns.USER_ID]
    chosen = attributes if quasi_identifiers is None else list(quasi_identifiers)
    for column in chosen:
        if column not in attributes:
            raise unknown_name("quasi-identifier", column, attributes)
    kept = [column for column in attributes if column not in chosen]
    _check_no_id_in(users, kept)
    protected = generalise.k_anonymous(users[chosen], k=k, max_suppressed=max_suppressed)
    users = users.assign(**{column: protected.frame[column] for column in chosen})
    users, code_of_user = _renamed(users, columns.USER_ID, salt)
    code_of_item = np.arange(dataset.num_items, dtype=np.int32)
    if pseudonymise_items:
        items, code_of_item = _renamed(items, columns.ITEM_ID, salt)
    done = {
        "pseudonyms": "HMAC-SHA256, 128 bits",
        "of": [columns.USER_ID, columns.ITEM_ID] if pseudonymise_items else [columns.USER_ID],
        "dropped": list(drop),
        "kept_as_they_are": kept,
        "k": k,
        "quasi_identifiers": dict(protected.levels),
        "suppressed_users": protected.suppressed,
        "smallest_group": protected.smallest,
    }
    return Dataset(
        name=dataset.name,
        interactions=_relabelled(dataset, code_of_user, code_of_item),
        users=users,
        items=items,
        info={**_info_without(dataset.info, drop), "anonymised": done},
    )


def _check_salt(salt: bytes, where: str) -> None:
    if len(salt) < _LEAST_SALT:
        raise UserError(f"{where} has {len(salt)} bytes, which can be guessed. It needs at least {_LEAST_SALT}.")


def _without(dataset: Dataset, drop: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    known = {str(column) for frame in (dataset.users, dataset.items) for column in frame.columns}
    for column in drop:
        if column in (columns.USER_ID, columns.ITEM_ID):
            raise UserError(f"The column {column!r} cannot be dropped: pseudonyms stand in for it.")
        if column not in known:
            raise unknown_name("column to drop", column, known - {columns.USER_ID, columns.ITEM_ID})
    return dataset.users.drop(columns=list(drop), errors="ignore"), dataset.items.drop(
        columns=list(drop), errors="ignore"
    )


def _info_without(info: Mapping[str, Any], drop: Sequence[str]) -> dict[str, Any]:
    """The provenance without templates that name a column that is gone."""
    gone = {"{" + column + "}" for column in drop}
    return {
        key: value
        for key, value in info.items()
        if not (key.endswith("template") and any(field in str(value) for field in gone))
    }


def _check_no_id_in(users: pd.DataFrame, kept: Sequence[str]) -> None:
    """Refuse a column that is kept and repeats the ids, such as an e-mail address that is the id."""
    for column in kept:
        same = users[column].astype(str).to_numpy() == users[columns.USER_ID].astype(str).to_numpy()
        # Numbers may coincide; a text that is the id does so on purpose.
        if same.any() and (same.all() or not pd.api.types.is_numeric_dtype(users[column].dtype)):
            raise UserError(f"The column {column!r} of users repeats user ids. Drop it or name it a quasi-identifier.")


def _renamed(frame: pd.DataFrame, key: str, salt: bytes) -> tuple[pd.DataFrame, np.ndarray]:
    """The table under pseudonyms and in their order, and the new code of each old one, int32."""
    names = [
        hmac.digest(salt, f"{key}:{name}".encode("utf-8", "surrogatepass"), "sha256").hex()[:_DIGITS]
        for name in tqdm(frame[key].astype(str), desc=f"pseudonyms of {key}", delay=1.0)
    ]
    order = np.argsort(np.array(names))
    code = np.empty(len(frame), np.int32)
    code[order] = np.arange(len(frame), dtype=np.int32)
    return frame.assign(**{key: names}).iloc[order].reset_index(drop=True), code


def _relabelled(dataset: Dataset, code_of_user: np.ndarray, code_of_item: np.ndarray) -> Interactions:
    """The events with new codes, ordered by time, user and item within the folds of the official splits."""
    events = dataset.interactions
    user_N, item_N = code_of_user[events.user], code_of_item[events.item]
    folds: Mapping[str, Any] = dataset.info.get("official_splits") or {}
    edges = sorted({edge for fold in folds.values() for edge in fold})
    part_N = np.searchsorted(edges, np.arange(len(events)), side="right")
    order = np.lexsort((item_N, user_N, events.timestamp, part_N))
    moved = Interactions(user_N, item_N, np.asarray(events.rating), np.asarray(events.timestamp))
    return moved.take(order)
