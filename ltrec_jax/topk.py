"""The k best items of each user, in blocks of users: one compiled function, shared by the evaluator and the service.

The order is total and the same everywhere: higher score first, equal scores by ascending item id. Scores of one user
computed in blocks of different sizes may differ in their last bits, so two callers that must agree use one block size.
Nothing of size U x I exists: a block of scores is reduced to its top k before the next one is asked for.
Out of scope: where scores come from, what a good list is.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.types import Array

NO_ITEM = -1
"""Fills the end of a list when fewer than k items may be listed; its score is -inf."""
BLOCK_USERS = 256
_MOST_SCORES = 1 << 23
_SMALLEST_EXCLUSION = 1024


def users_per_block(num_items: int) -> int:
    """How many users to rank at a time: 256, fewer (a power of two, at least 8) where their scores would pass 32 MB."""
    fitting = _MOST_SCORES // max(num_items, 1)
    return min(BLOCK_USERS, max(8, 1 << max(fitting.bit_length() - 1, 0)))


class ItemLists(Protocol):
    """A list of item ids for each of U users, end to end: user u has items[offsets[u] : offsets[u + 1]]."""

    @property
    def offsets(self) -> np.ndarray:
        """int64 [U + 1]."""
        ...

    @property
    def items(self) -> np.ndarray:
        """int32 [N]."""
        ...


@functools.partial(jax.jit, static_argnames=("k",))
def top_k(scores_BxI: Array, k: int, allowed_BxI: Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The k highest scores of each row: items int32 [B, k] and scores float32 [B, k], best first, ties by item id.

    An item whose score is -inf, or which is not in `allowed_BxI` (bool [B, I]; None: all are), is never listed; where
    fewer than k are left (k may exceed I) the list ends in item -1 with score -inf. Scores must not be NaN: this
    function does not look (`ranked` does).
    """
    scores_BxI = jnp.asarray(scores_BxI, jnp.float32)
    if allowed_BxI is not None:
        scores_BxI = jnp.where(allowed_BxI, scores_BxI, -jnp.inf)
    # lax.top_k orders -0.0 below 0.0, which would break the tie between them by something else than the item id.
    scores_BxI = jnp.where(scores_BxI == 0.0, 0.0, scores_BxI)
    listed = min(k, scores_BxI.shape[1])
    best_Bxk, items_Bxk = jax.lax.top_k(scores_BxI, listed)
    items_Bxk = jnp.where(best_Bxk == -jnp.inf, NO_ITEM, items_Bxk.astype(jnp.int32))
    missing = ((0, 0), (0, k - listed))
    return (
        jnp.pad(items_Bxk, missing, constant_values=NO_ITEM),
        jnp.pad(best_Bxk, missing, constant_values=-jnp.inf),
    )


def ranked(
    score: Callable[[np.ndarray], Array],
    users_U: np.ndarray,
    *,
    num_items: int,
    k: int,
    seen: ItemLists | None = None,
    allowed_I: np.ndarray | None = None,
    block_users: int = BLOCK_USERS,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `top_k` (items int32 [b, k], scores float32 [b, k]) of consecutive blocks of `users_U`, b <= `block_users`.

    `score` is always called with exactly `block_users` users (the last block is filled up with its own last user), so
    it compiles once, and the next block is dispatched before the last one is read back. `seen` (a list for every user
    id) is taken out of the lists, `allowed_I` bool [I] restricts them. Without users nothing is yielded. `ValueError`
    if the scores have another shape than [block_users, num_items] or hold a NaN.
    """
    blocks = ranked_among(score, users_U, [allowed_I], num_items=num_items, k=k, seen=seen, block_users=block_users)
    return (lists for (lists,) in blocks)


def ranked_among(
    score: Callable[[np.ndarray], Array],
    users_U: np.ndarray,
    candidates: Sequence[np.ndarray | None],
    *,
    num_items: int,
    k: int,
    seen: ItemLists | None = None,
    block_users: int = BLOCK_USERS,
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """As `ranked`, with one list for each candidate set (bool [I], None: all items): scores are computed once."""
    if k < 1 or block_users < 1:
        raise ValueError(f"k and block_users must be at least 1, not {k} and {block_users}")
    waiting = None
    for start in range(0, len(users_U), block_users):
        users = np.asarray(users_U[start : start + block_users])
        filled = np.concatenate([users, np.full(block_users - len(users), users[-1], users.dtype)])
        scores = score(filled)
        if scores.shape != (block_users, num_items):
            raise ValueError(f"scores have shape {scores.shape}, not {(block_users, num_items)}")
        excluded = _excluded(users, seen, block_users)
        dispatched = users, [_top_k_block(scores, *excluded, allowed_I, k=k) for allowed_I in candidates]
        if waiting is not None:
            yield _read(*waiting)
        waiting = dispatched
    if waiting is not None:
        yield _read(*waiting)


@functools.partial(jax.jit, static_argnames=("k",))
def _top_k_block(
    scores_BxI: Array, rows_N: Array, items_N: Array, allowed_I: Array | None, *, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    not_a_number = jnp.isnan(scores_BxI).any()
    scores_BxI = jnp.asarray(scores_BxI, jnp.float32).at[rows_N, items_N].set(-jnp.inf, mode="drop")
    allowed_BxI = None if allowed_I is None else jnp.broadcast_to(jnp.asarray(allowed_I)[None, :], scores_BxI.shape)
    return *top_k(scores_BxI, k, allowed_BxI), not_a_number


def _excluded(users_B: np.ndarray, seen: ItemLists | None, block_users: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (row, item) to strike out, padded to a power of two with a row outside the block, which is dropped."""
    if seen is None:
        return np.full(1, block_users, np.int32), np.zeros(1, np.int32)
    starts, lengths = seen.offsets[users_B], seen.offsets[users_B + 1] - seen.offsets[users_B]
    total = int(lengths.sum())
    in_list = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    size = max(_SMALLEST_EXCLUSION, 1 << (total - 1).bit_length())
    rows, items = np.full(size, block_users, np.int32), np.zeros(size, np.int32)
    rows[:total] = np.repeat(np.arange(len(users_B), dtype=np.int32), lengths)
    items[:total] = seen.items[np.repeat(starts, lengths) + in_list]
    return rows, items


def _read(
    users: np.ndarray, results: list[tuple[jax.Array, jax.Array, jax.Array]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for items, scores, not_a_number in jax.device_get(results):
        if not_a_number:
            raise ValueError(f"a score is NaN for one of the users {users[0]}..{users[-1]}")
        found.append((items[: len(users)], scores[: len(users)]))
    return found
