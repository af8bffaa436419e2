"""Words shared by every room: array aliases, dimension letters and protocols. No knowledge of any implementation.

Dimension letters, used as suffixes of array names in numeric code (`q_KxD`, `s_BxI`, `mask_KxL`):

    B users in a block       D embedding          K item slots in a batch   P rating pairs in a batch
    E encoder's hidden size  F feed-forward       L tokens in a row         R rows of a batch
    G popularity groups      H attention heads    M history entries         U users
    I items                  V vocabulary         N layers
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any


@runtime_checkable
class Recommender(Protocol):
    """Anything that scores items for users; the evaluator and the service know models only as this.

    Scores are float32, deterministic and never NaN. Users and items are internal int32 ids.
    A model whose scores are not on the rating scale says so by an attribute `predicts_ratings = False`.
    """

    def score(self, users_B: np.ndarray) -> Array:
        """Scores of all items for a block of users: float32 [B, I]."""
        ...

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> Array:
        """Scores of single (user, item) pairs: float32 [P]."""
        ...


class Objective(Protocol):
    """A loss over pairs: arrays in, (sum, count) out, both float32 scalars. It knows no model."""

    def __call__(self, scores: Array, targets: Array, *, weights: Array) -> tuple[jax.Array, jax.Array]: ...


class MetricWriter(Protocol):
    """Where the training loop reports numbers (JSONL always; others are added beside it)."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record one row of metrics at a step."""
        ...

    def rewind(self, phase: str, step: int) -> None:
        """Forget the rows of a phase after a step: a resumed run writes them again."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


Texts = Sequence[str]
