"""Which items of a catalogue score highest for a vector: every item is looked at, on the device, in one program.

    score(u, i) = mu + b_u + b_i + <p_u, q_i>

"float32" gives the evaluator's ranking, bit for bit (`model.two_tower.scores`, `topk`); "bfloat16" and "int8" read a
half and a quarter of the memory and say at build time how much of the exact lists they keep. Out of scope: approximate
search (`faiss_index`), items that came after the bundle (`live_items`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax import topk
from ltrec_jax.model import two_tower
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.types import Array

IndexPrecision = Literal["float32", "bfloat16", "int8"]
_SMALLEST_K = 32
_CHECKED_USERS = 256


Found = tuple[np.ndarray, np.ndarray]
"""(items int32 [B, k], scores float32 [B, k]), best first; -1 and -inf where fewer than k may be listed."""


class Among(NamedTuple):
    """Which items may be listed for B vectors: those of `allowed_I` bool [I] (None: all) without the numbers in
    `excluded[b]` (None: nothing is left out). Their scores are multiplied by `factor_I` float32 [I] (None: by 1)."""

    excluded: Sequence[np.ndarray] | None = None
    allowed_I: np.ndarray | None = None
    factor_I: np.ndarray | None = None


EVERY = Among()


class Index(Protocol):
    """Top lists for vectors. Items are numbers 0..I-1; ties go to the lower number."""

    @property
    def num_items(self) -> int:
        """I."""
        ...

    def search(self, p_BxD: np.ndarray, b_B: np.ndarray, k: int, among: Among = EVERY) -> Found:
        """The k items with the highest scores for each of B vectors."""
        ...


@dataclasses.dataclass(frozen=True)
class ExactIndex:
    """All I items, scored for every request. `scale_I` are the rows' scales of int8 vectors, else ones."""

    mu: float
    q_IxD: jax.Array
    b_I: jax.Array
    scale_I: jax.Array
    precision: IndexPrecision

    @property
    def num_items(self) -> int:
        return int(self.q_IxD.shape[0])

    def search(self, p_BxD: np.ndarray, b_B: np.ndarray, k: int, among: Among = EVERY) -> Found:
        # A few values of k, so that a few programs serve every request.
        asked = max(_SMALLEST_K, 1 << (max(k, 1) - 1).bit_length())
        factor_1xI = None if among.factor_I is None else jnp.asarray(among.factor_I, jnp.float32)[None, :]

        def scores(rows: np.ndarray) -> Array:
            plain = self.scores(p_BxD[rows], b_B[rows])
            return plain if factor_1xI is None else plain * factor_1xI

        lists = topk.ranked(
            scores,
            np.arange(len(b_B)),
            num_items=self.num_items,
            k=asked,
            seen=None if among.excluded is None else as_lists(among.excluded),
            allowed_I=among.allowed_I,
            block_users=two_tower.score_rows(self.num_items),
        )
        found = list(lists)
        if not found:
            return np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
        return tuple(np.concatenate(part)[:, :k] for part in zip(*found, strict=True))  # type: ignore[return-value]

    def scores(self, p_BxD: np.ndarray, b_B: np.ndarray) -> Array:
        """Scores of all items for B vectors, float32 [B, I]."""
        if self.precision == "float32":
            return two_tower.scores(self.mu, p_BxD, b_B, self.q_IxD, self.b_I)
        return _quantised_scores(self.mu, p_BxD, b_B, self.q_IxD, self.b_I, self.scale_I, precision=self.precision)


@dataclasses.dataclass(frozen=True)
class _Lists:
    offsets: np.ndarray
    items: np.ndarray


def as_lists(lists: Sequence[np.ndarray]) -> topk.ItemLists:
    """Lists of item numbers as one compressed sparse row structure."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return _Lists(offsets, np.concatenate([np.zeros(0, np.int32), *lists]).astype(np.int32))


def exact_index(vectors: Vectors, precision: IndexPrecision = "float32") -> ExactIndex:
    """The index over a bundle's item vectors."""
    q_IxD, b_I = jnp.asarray(vectors.item_vectors, jnp.float32), jnp.asarray(vectors.item_biases, jnp.float32)
    ones = jnp.ones(q_IxD.shape[0], jnp.float32)
    if precision == "bfloat16":
        return ExactIndex(vectors.mu, q_IxD.astype(jnp.bfloat16), b_I, ones, precision)
    if precision == "int8":
        return ExactIndex(vectors.mu, *_rounded(q_IxD, b_I), precision)
    return ExactIndex(vectors.mu, q_IxD, b_I, ones, precision)


def agreement(
    index: Index, exact: Index, vectors: Vectors, group_of_item: np.ndarray, names: Sequence[str], *, k: int = 20
) -> Mapping[str, float]:
    """Share of the exact top k that an index finds, "all" and by the popularity group of the item that is sought.

    Asked for up to 256 users, spread evenly. A group that the exact lists never show is left out.
    """
    users = np.unique(np.linspace(0, len(vectors.user_biases) - 1, _CHECKED_USERS).astype(np.int64))
    p_BxD, b_B = vectors.user_vectors[users], vectors.user_biases[users]
    wanted, _ = exact.search(p_BxD, b_B, k)
    found, _ = index.search(p_BxD, b_B, k)
    kept = (wanted[:, :, None] == found[:, None, :]).any(axis=2)
    real = wanted != topk.NO_ITEM
    group = np.where(real, group_of_item[wanted], -1)
    shares = {"all": float(kept[real].mean())} if real.any() else {}
    for code, name in enumerate(names):
        if (group == code).any():
            shares[name] = float(kept[group == code].mean())
    return shares


def _rounded(q_IxD: jax.Array, b_I: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    scale_I = jnp.maximum(jnp.abs(q_IxD).max(axis=1), 1e-12) / 127.0
    return jnp.round(q_IxD / scale_I[:, None]).astype(jnp.int8), b_I, scale_I


@functools.partial(jax.jit, static_argnames="precision")
def _quantised_scores(
    mu: float, p_BxD: Array, b_B: Array, q_IxD: Array, b_I: Array, scale_I: Array, *, precision: IndexPrecision
) -> jax.Array:
    p_BxD, b_B = jnp.asarray(p_BxD), jnp.asarray(b_B)
    if precision == "bfloat16":
        products = jnp.dot(p_BxD.astype(jnp.bfloat16), jnp.asarray(q_IxD).T, preferred_element_type=jnp.float32)
    else:
        step_B = jnp.maximum(jnp.abs(p_BxD).max(axis=1), 1e-12) / 127.0
        rounded = jnp.round(p_BxD / step_B[:, None]).astype(jnp.int8)
        sums = jnp.dot(rounded, jnp.asarray(q_IxD).T, preferred_element_type=jnp.int32)
        products = sums.astype(jnp.float32) * step_B[:, None] * jnp.asarray(scale_I)[None, :]
    return mu + b_B[:, None] + jnp.asarray(b_I)[None, :] + products
