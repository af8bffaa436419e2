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
    """`channel` makes vectors w [K, R] of tokens, `projection` [R, D] their part of an anchor, `text_bias` [R] that of
    its bias, float32.

    `vectors` [I, R] are those of the catalogue.
    """

    channel: Lexical
    projection: np.ndarray
    text_bias: np.ndarray
    vectors: np.ndarray

    def anchors(self, tokens: TokenStore) -> tuple[np.ndarray, np.ndarray]:
        """What the words of K texts add to their anchors [K, D] and text biases [K], float32."""
        return self._placed(self.channel.vectors(tokens))

    def of_items(self, items_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of items of the catalogue, float32 [N, D] and [N]."""
        return self._placed(np.asarray(self.vectors[items_N], np.float32))

    def _placed(self, words_KxR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return words_KxR @ self.projection, words_KxR @ self.text_bias

    def tensors(self) -> dict[str, np.ndarray]:
        """Channel and maps as named arrays; the catalogue's vectors are kept beside them."""
        return {**self.channel.tensors(), "projection": self.projection, "text_bias": self.text_bias}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray], vectors_IxR: np.ndarray, vocab_size: int) -> Self:
        """What `tensors` gave, with the catalogue's vectors. Bundles of earlier versions have no biases of words."""
        projection = tensors["projection"]
        text_bias = tensors.get("text_bias", np.zeros(len(projection), np.float32))
        return cls(Lexical.of_tensors(tensors, vocab_size), projection, text_bias, vectors_IxR)
