"""A space of vectors to search: a bundle's rows through an `Index`, and rows that came later, merged.

Rows are numbers; later rows go on counting where the index ends. A reader sees a row once it is whole.
"""

from collections.abc import Sequence

import numpy as np

from ltrec_jax import topk
from ltrec_jax.serve.index import Among, Index

_FIRST_CAPACITY = 256


class Rows:
    """Rows of a fixed width that can be appended: an array that doubles when it is full."""

    def __init__(self, *width: int) -> None:
        self._array = np.zeros((_FIRST_CAPACITY, *width), np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def array(self) -> np.ndarray:
        """The rows so far."""
        return self._array[: self._count]

    def append(self, row: np.ndarray | float) -> None:
        """One row more."""
        if self._count == len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        self._array[self._count] = row
        self._count += 1


class Space:
    """Vectors and biases by number; `base_NxD` and `base_N` are the rows that `index` holds, `mu` what every score has.

    With `cosine` the index holds unit rows, and later rows are searched as unit rows.
    """

    def __init__(
        self, index: Index, base_NxD: np.ndarray, base_N: np.ndarray, mu: float = 0.0, *, cosine: bool = False
    ) -> None:
        self.index, self._mu, self._cosine = index, mu, cosine
        self._base_NxD, self._base_N = base_NxD, base_N
        self._vectors, self._biases = Rows(base_NxD.shape[1]), Rows()

    def append(self, vector_D: np.ndarray, bias: float = 0.0) -> None:
        """One row more: the next number."""
        self._biases.append(bias)
        self._vectors.append(vector_D)  # last: `search` counts vectors

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(vectors [N, D], biases [N]) of numbers."""
        numbers = np.asarray(numbers, np.int64)
        return _pick(numbers, self._base_NxD, self._vectors.array), _pick(numbers, self._base_N, self._biases.array)

    def search(
        self,
        p_BxD: np.ndarray,
        b_B: np.ndarray,
        k: int,
        excluded: Sequence[np.ndarray],
        allowed: np.ndarray,
        factor: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`Index.search` over all rows; `allowed` bool [numbers] may be shorter than the rows: later ones are not.

        `factor` float32, of the same length: what scores are multiplied by (None: 1).
        """
        base = len(self._base_N)
        first = None if allowed[:base].all() else allowed[:base]
        turned = None if factor is None else factor[:base]
        inside = [numbers[numbers < base] for numbers in excluded]
        items, scores = self.index.search(p_BxD, b_B, k, Among(inside, first, turned))
        vectors = self._vectors.array
        mask = allowed[base : base + len(vectors)]
        if not mask.any():
            return items, scores
        vectors, biases = vectors[: len(mask)], self._biases.array[: len(mask)]
        if self._cosine:
            vectors = unit(vectors)
        later = (self._mu + b_B[:, None] + biases[None, :] + p_BxD @ vectors.T).astype(np.float32)
        if factor is not None:
            later *= factor[base : base + len(mask)]
        later[:, ~mask] = -np.inf
        for row, numbers in enumerate(excluded):
            late = numbers[(numbers >= base) & (numbers < base + len(mask))] - base
            later[row, late] = -np.inf
        numbers = np.concatenate([items, np.broadcast_to(np.arange(base, base + len(mask)), later.shape)], axis=1)
        values = np.concatenate([scores, later], axis=1)
        order = np.lexsort((numbers, -values), axis=1)[:, :k]
        values = np.take_along_axis(values, order, axis=1)
        numbers = np.where(values == -np.inf, topk.NO_ITEM, np.take_along_axis(numbers, order, axis=1))
        return numbers.astype(np.int32), values


def unit(rows_NxD: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, float32; a zero row stays zero."""
    rows_NxD = np.asarray(rows_NxD, np.float32)
    return rows_NxD / np.maximum(np.linalg.norm(rows_NxD, axis=-1, keepdims=True), 1e-12)


def _pick(numbers: np.ndarray, base: np.ndarray, later: np.ndarray) -> np.ndarray:
    result = np.zeros((len(numbers), *later.shape[1:]), np.float32)
    early = numbers < len(base)
    result[early] = base[numbers[early]]
    result[~early] = later[numbers[~early] - len(base)]
    return result
