"""Approximate search by FAISS, for catalogues where looking at every item is too slow. Extra: `faiss`.

The inner product of [p_u | 1] and [q_i | b_i] is the score without mu and b_u. What an index loses against the exact
one is measured by popularity group (`index.agreement`) when it is built: rare items are what such graphs lose first.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ltrec_jax import storage, topk
from ltrec_jax.errors import UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.index import EVERY, Among, Found

FaissKind = Literal["hnsw", "ivf"]
_LINKS = 32
_BUILD_EFFORT, _SEARCH_EFFORT = 200, 256
_TRAINING_ROWS_PER_LIST = 64
_POOL = 1000
"""Items found by score before factors change their order: an item beyond them is not listed, whatever its factor."""


@dataclasses.dataclass(frozen=True)
class FaissIndex:
    """A FAISS index with the interface of `index.ExactIndex`; `engine` is the library's object."""

    mu: float
    engine: Any
    kind: FaissKind

    @property
    def num_items(self) -> int:
        return int(self.engine.ntotal)

    def search(self, p_BxD: np.ndarray, b_B: np.ndarray, k: int, among: Among = EVERY) -> Found:
        """As `Index.search`; a list may end early (-1, -inf) although the catalogue has more items."""
        faiss = _library()
        lists = among.excluded or [np.zeros(0, np.int64)] * len(b_B)
        items_Bxk = np.full((len(b_B), k), topk.NO_ITEM, np.int32)
        scores_Bxk = np.full((len(b_B), k), -np.inf, np.float32)
        selector = None if among.allowed_I is None else faiss.IDSelectorBatch(np.flatnonzero(among.allowed_I))
        queries = np.hstack([p_BxD, np.ones((len(b_B), 1))]).astype(np.float32)
        wanted = k if among.factor_I is None else max(k, _POOL)
        for row, (query, left_out) in enumerate(zip(queries, lists, strict=True)):
            asked = min(wanted + len(left_out), self.num_items)
            products, items = self.engine.search(query[None], asked, params=self._parameters(selector, asked))
            kept = (items[0] >= 0) & ~np.isin(items[0], left_out)
            found, value = items[0][kept], self.mu + b_B[row] + products[0][kept]
            if among.factor_I is not None:
                value = value * among.factor_I[found]
            order = np.lexsort((found, -value))[:k]
            items_Bxk[row, : len(order)] = found[order]
            scores_Bxk[row, : len(order)] = value[order]
        return items_Bxk, scores_Bxk

    def save(self, path: Path) -> None:
        """Write the index in FAISS's own format, whole or not at all."""
        with storage.new_file(path) as temporary:
            _library().write_index(self.engine, str(temporary))

    def _parameters(self, selector: Any, asked: int) -> Any:
        faiss = _library()
        chosen = {} if selector is None else {"sel": selector}
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(_SEARCH_EFFORT, asked), **chosen)
        return faiss.SearchParametersIVF(nprobe=max(1, self.engine.nlist // 8), **chosen)


def faiss_index(vectors: Vectors, kind: FaissKind) -> FaissIndex:
    """Build an index over a bundle's item vectors: a graph ("hnsw") or inverted lists ("ivf")."""
    faiss = _library()
    rows = np.hstack([vectors.item_vectors, vectors.item_biases[:, None]]).astype(np.float32)
    if kind == "hnsw":
        engine = faiss.IndexHNSWFlat(rows.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        engine.hnsw.efConstruction = _BUILD_EFFORT
    else:
        lists = max(1, min(int(4 * np.sqrt(len(rows))), len(rows) // _TRAINING_ROWS_PER_LIST))
        quantizer = faiss.IndexFlatIP(rows.shape[1])
        engine = faiss.IndexIVFFlat(quantizer, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        engine.own_fields = True
        quantizer.this.disown()
        engine.train(rows)
    engine.add(rows)
    return FaissIndex(float(vectors.mu), engine, kind)


def _library() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("Approximate search needs FAISS: pip install 'ltrec-jax[faiss]'.") from error
    return faiss
