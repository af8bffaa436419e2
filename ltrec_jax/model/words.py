"""What the words of a text add to its item's anchor, beside what the encoder's vector gives (`head`): channel and map.

Out of scope: where the map comes from (`solve`), the channel itself (`text.lexical`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from ltrec_jax.text.lexical import Lexical
from ltrec_jax.text.store import TokenStore


@dataclasses.dataclass(frozen=True)
class Words:
    """`channel` makes vectors w [K, R] of tokens, `projection` [R, D] their part of an anchor, float32.

    `vectors` [I, R] are those of the catalogue.
    """

    channel: Lexical
    projection: np.ndarray
    vectors: np.ndarray

    def anchors(self, tokens: TokenStore) -> np.ndarray:
        """What the words of K texts add to their anchors, float32 [K, D]."""
        return self.channel.vectors(tokens) @ self.projection

    def of_items(self, items_N: np.ndarray) -> np.ndarray:
        """The same of items of the catalogue, float32 [N, D]."""
        return np.asarray(self.vectors[items_N], np.float32) @ self.projection

    def tensors(self) -> dict[str, np.ndarray]:
        """Channel and map as named arrays; the catalogue's vectors are kept beside them."""
        return {**self.channel.tensors(), "projection": self.projection}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray], vectors_IxR: np.ndarray, vocab_size: int) -> Self:
        """What `tensors` gave, with the catalogue's vectors."""
        return cls(Lexical.of_tensors(tensors, vocab_size), tensors["projection"], vectors_IxR)
