"""What is known of a user or an item beside its ratings, as columns in named blocks: the anchors of `bayes`.

Blocks are made from TRAINING events alone and standardised over the rows that have some; a row that lacks a block has
zeros there (the mean). Any of them may be left out. Out of scope: what the columns are worth, which the model learns.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.linalg

from ltrec_jax.errors import UserError, unknown_name

INTERCEPT = "intercept"
BLOCKS = (INTERCEPT, "text", "words", "popularity", "singular", "history", "profile")
"""The blocks that are not columns of a table."""
TEXT_DIMS = 20
SINGULAR_VECTORS = 19
_SEPARATOR = "|"
_FEWEST = 10
"""Rows that a value of an attribute needs for a column of its own."""


@dataclasses.dataclass(frozen=True)
class SideInformation:
    """columns float32 [R, F]; group int32 [F] says which of `names` (the blocks) each column belongs to.

    `scaling`: of each block, the mean and deviation of its columns before they were standardised and which of them were
    kept, [F_b] each. `per_item` (of users): what an event with each item adds to a block that events tell, [I, F_b].
    """

    columns: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    scaling: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    per_item: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def assemble(blocks: Mapping[str, np.ndarray], known_R: np.ndarray) -> SideInformation:
    """Blocks [R, F_b] side by side behind an intercept, each standardised over the rows `known_R` (bool [R]).

    Every column by itself, principal components too (0.8810 instead of 0.8824 on a validation part of MovieLens-100K
    where they kept their proportions). Columns that are constant over the known rows are dropped. A block with another
    number of rows, or with a number that is not finite, is a `UserError`.
    """
    parts, names, scaling = [np.ones((len(known_R), 1), np.float32)], [INTERCEPT], {}
    for name, block in blocks.items():
        if len(block) != len(known_R) or not np.isfinite(block).all():
            raise UserError(f"Side information {name!r} must have a finite row for each of the {len(known_R)} rows.")
        block = np.asarray(block, np.float64)
        mean, deviation, varies = _scaling(block, known_R)
        if varies.any():
            parts.append(((block - mean)[:, varies] / deviation[varies]).astype(np.float32))
            names.append(name)
            scaling[name] = mean, deviation, varies
    group = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    return SideInformation(np.concatenate(parts, axis=1), group.astype(np.int32), tuple(names), scaling)


def text(vectors_IxE: np.ndarray, known_I: np.ndarray, dims: int = TEXT_DIMS) -> np.ndarray:
    """The leading principal components of the text vectors, float64 [I, dims] (fewer where there are fewer items).

    Components are those of the items (or users) with training events; a cold one's text is projected on them.
    """
    vectors_IxE = np.asarray(vectors_IxE, np.float64)
    if not known_I.any():
        return np.zeros((len(vectors_IxE), 0))
    shifted = vectors_IxE - vectors_IxE[known_I].mean(axis=0)
    _, _, right = np.linalg.svd(shifted[known_I], full_matrices=False)
    right = right[:dims]
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    return shifted @ (right * np.where(largest < 0, -1, 1)).T


def popularity(counts_R: np.ndarray) -> np.ndarray:
    """log(1 + n) and its centred square, float64 [R, 2]; a row without events has the mean of the others.

    It may be obscure or just new, and a trend drawn on to n = 0 takes every new item for a bad one. Validation RMSE of
    items without events so, and by the trend: 1.086 and 1.192 (MovieLens-100K, a fifth of the items held out), 1.701
    and 1.733 (MovieTweetings, a random split). The mean of the events instead of the items: 1.038 and 1.908.
    """
    counts_R = np.asarray(counts_R)
    log_R = np.log1p(counts_R.astype(np.float64))
    found = np.stack([log_R, (log_R - log_R.mean()) ** 2], axis=1)
    known = counts_R > 0
    if known.any():
        found[~known] = found[known].mean(axis=0)
    return found


def attribute(column: pd.Series) -> np.ndarray:
    """A column of a table as numbers, float64 [R, F]: numeric as it is (missing: the mean), words as indicators.

    Words may be lists ("Action|Comedy", or space-separated as sources keep genres); a value that fewer than 10 rows
    have gets no indicator.
    """
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().mean() > 0.5:
        return numbers.fillna(numbers.mean()).to_numpy(np.float64)[:, None]
    words = column.fillna("").astype(str).str.replace(", ", _SEPARATOR, regex=False).str.get_dummies(_SEPARATOR)
    return words.loc[:, words.sum() >= _FEWEST].to_numpy(np.float64)


def history_mean(features_IxF: np.ndarray, user_N: np.ndarray, item_N: np.ndarray, num_users: int) -> np.ndarray:
    """The mean of an item block over each user's training events, float64 [U, F]; without any: the users' mean."""
    counts_U = np.bincount(user_N, minlength=num_users)
    table = scipy.sparse.csr_matrix((np.ones(len(user_N)), (user_N, item_N)), (num_users, len(features_IxF)))
    mean_UxF = (table @ features_IxF) / np.maximum(counts_U, 1)[:, None]
    if counts_U.any():
        mean_UxF[counts_U == 0] = mean_UxF[counts_U > 0].mean(axis=0)
    return mean_UxF


def singular_vectors(
    user_N: np.ndarray, item_N: np.ndarray, num_users: int, num_items: int, rank: int = SINGULAR_VECTORS
) -> tuple[np.ndarray, np.ndarray]:
    """Left [U, rank] and right [I, rank] singular vectors of D_u^-1/2 B D_i^-1/2, B the binary training matrix.

    The first pair only says how many events a row has and is left out. Deterministic (a fixed start, signs that make
    the largest entry of a right vector positive). Fewer columns where the matrix is too small, rows without events 0.
    """
    left, right, _ = _singular(user_N, item_N, num_users, num_items, rank)
    return left, right


def _singular(
    user_N: np.ndarray, item_N: np.ndarray, num_users: int, num_items: int, rank: int = SINGULAR_VECTORS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`singular_vectors`, and s [I, rank]: a user's left vector is the sum of its events' s over the root of their
    number, for B right = D_u^1/2 left values D_i^1/2."""
    rank = min(rank, min(num_users, num_items) - 2)
    if rank < 1 or len(user_N) == 0:
        return np.zeros((num_users, 0)), np.zeros((num_items, 0)), np.zeros((num_items, 0))
    seen = scipy.sparse.csr_matrix((np.ones(len(user_N)), (user_N, item_N)), (num_users, num_items))
    seen.data[:] = 1.0
    root_U = np.sqrt(np.maximum(np.asarray(seen.sum(axis=1)).ravel(), 1))
    root_I = np.sqrt(np.maximum(np.asarray(seen.sum(axis=0)).ravel(), 1))
    scaled = scipy.sparse.diags_array(1 / root_U) @ seen @ scipy.sparse.diags_array(1 / root_I)
    start = np.random.default_rng(0).normal(size=min(scaled.shape))
    left, values, right = scipy.sparse.linalg.svds(scaled.tocsr(), k=rank + 1, v0=start)
    order = np.argsort(-values)[1:]
    left, values, right = left[:, order], values[order], right[order]
    sign = np.where(np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)[:, 0] < 0, -1.0, 1.0)
    left, right = left * sign, right.T * sign
    return left, right, right / root_I[:, None] / np.maximum(values, 1e-12)


def of_ratings(
    user_N: np.ndarray,
    item_N: np.ndarray,
    num_users: int,
    num_items: int,
    *,
    text_IxE: np.ndarray | None = None,
    words_IxR: np.ndarray | None = None,
    profile_UxE: np.ndarray | None = None,
    item_attributes: Mapping[str, pd.Series] | None = None,
    user_attributes: Mapping[str, pd.Series] | None = None,
    blocks: Sequence[str] = (),
) -> tuple[SideInformation, SideInformation]:
    """Everything that the training events, texts and tables give: side information of the users and of the items.

    Blocks: text, words (items: their texts by TF-IDF, as `text`), popularity, singular, history (users: mean text of
    the training history), profile (users: their own texts, as `text` for items) and each attribute by its name.
    A column with the name of another block is called "column NAME". `blocks` names those to use, of users and of items
    alike (default: all); a name that neither has is a `UserError`.
    """
    counts_U, counts_I = np.bincount(user_N, minlength=num_users), np.bincount(item_N, minlength=num_items)
    left, right, by_event = _singular(user_N, item_N, num_users, num_items)
    users, items, per_item = {"popularity": popularity(counts_U), "singular": left}, {}, {"singular": by_event}
    if text_IxE is not None:
        items["text"] = per_item["history"] = text(text_IxE, counts_I > 0)
        users["history"] = history_mean(items["text"], user_N, item_N, num_users)
    if words_IxR is not None:
        items["words"] = text(words_IxR, counts_I > 0)
    if profile_UxE is not None:
        users["profile"] = text(profile_UxE, counts_U > 0)
    items |= {"popularity": popularity(counts_I), "singular": right}
    items |= {_own_name(name): attribute(column) for name, column in (item_attributes or {}).items()}
    users |= {_own_name(name): attribute(column) for name, column in (user_attributes or {}).items()}
    known = [*items, *(name for name in users if name not in items)]
    for name in blocks:
        if name not in known:
            raise unknown_name("block of side information", name, known)
    of_users = assemble({name: block for name, block in users.items() if name in (blocks or users)}, counts_U > 0)
    of_items = assemble({name: block for name, block in items.items() if name in (blocks or items)}, counts_I > 0)
    return dataclasses.replace(of_users, per_item=per_item), of_items


def _own_name(column: str) -> str:
    return f"column {column}" if column in BLOCKS else column


def _scaling(block: np.ndarray, known_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of each column over the known rows, and whether it varies there: [F_b]."""
    if not known_R.any():
        nothing = np.zeros(block.shape[1])
        return nothing, nothing, np.zeros(block.shape[1], bool)
    mean = block[known_R].mean(axis=0)
    deviation = (block[known_R] - mean).std(axis=0)
    return mean, deviation, deviation > 1e-9
