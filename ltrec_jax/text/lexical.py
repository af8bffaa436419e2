"""The words of a text as a short dense vector (TF-IDF, truncated SVD): a channel beside the encoder, and its control.

Words are the encoder's own tokens, so every text that can be encoded has one, in any language, at no further cost.
Out of scope: what a model makes of it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from ltrec_jax.errors import UserError
from ltrec_jax.text.store import TokenStore


@dataclasses.dataclass(frozen=True)
class Lexical:
    """A fitted channel: idf [V] and the right singular vectors [V, R]; float32. Special tokens have idf 0."""

    idf: np.ndarray
    components: np.ndarray

    def vectors(self, tokens: TokenStore) -> np.ndarray:
        """Unit vectors [T, R], float32, of the texts of a store; a text without a known token has zeros."""
        dense = _weighted(tokens, self.idf) @ self.components
        return dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-6)

    def tensors(self) -> dict[str, np.ndarray]:
        """The channel as named arrays, of the tokens alone that the texts had: a tenth of a vocabulary is enough."""
        token = np.flatnonzero(self.idf).astype(np.int32)
        return {"token": token, "idf": self.idf[token], "components": self.components[token]}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray], vocab_size: int) -> Self:
        """What `tensors` gave, for the same vocabulary; its vectors are the same to the last bit."""
        idf = np.zeros(vocab_size, np.float32)
        components = np.zeros((vocab_size, tensors["components"].shape[1]), np.float32)
        idf[tensors["token"]], components[tensors["token"]] = tensors["idf"], tensors["components"]
        return cls(idf, components)


def fit_lexical(tokens: TokenStore, vocab_size: int, *, rank: int = 128, special: tuple[int, ...] = ()) -> Lexical:
    """Fit on the texts of a store: rows l2-normalised tf (1 + ln(count)) times idf = ln((1 + T) / (1 + texts)) + 1.

    The `rank` leading right singular vectors are kept (fewer where there are fewer texts). Deterministic: a fixed start
    vector, and signs that make the largest entry positive. Fewer than two texts are a `UserError`.
    """
    if len(tokens) < 2:
        raise UserError("A lexical channel needs at least two texts.")
    counts = _counts(tokens, vocab_size)
    found_V = np.bincount(counts.indices, minlength=vocab_size)
    idf = np.where(found_V > 0, np.log((1 + len(tokens)) / (1 + found_V)) + 1, 0.0).astype(np.float32)
    idf[list(special)] = 0.0
    weighted = _weighted(tokens, idf)
    rank = min(rank, min(weighted.shape) - 1)
    start = np.random.default_rng(0).normal(size=min(weighted.shape)).astype(np.float32)
    _, _, right_RxV = scipy.sparse.linalg.svds(weighted, k=rank, v0=start)
    right_RxV = right_RxV[::-1]
    largest = np.take_along_axis(right_RxV, np.abs(right_RxV).argmax(axis=1)[:, None], axis=1)
    return Lexical(idf, (right_RxV * np.where(largest < 0, -1, 1)).T.astype(np.float32))


def _counts(tokens: TokenStore, vocab_size: int) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(tokens.values), np.float32)
    table = scipy.sparse.csr_matrix(
        (ones, np.array(tokens.values), np.array(tokens.offsets)), shape=(len(tokens), vocab_size)
    )
    table.sum_duplicates()
    return table


def _weighted(tokens: TokenStore, idf: np.ndarray) -> scipy.sparse.csr_matrix:
    table = _counts(tokens, len(idf))
    table.data = (1 + np.log(table.data)) * idf[table.indices]
    length = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    return scipy.sparse.diags(1 / np.maximum(length, 1e-12)) @ table
