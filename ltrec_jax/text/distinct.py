"""Which texts of a token store are equal: some 50 bytes of memory per text, however long. Nothing else."""

import hashlib

import numpy as np
from tqdm import tqdm

from ltrec_jax.text.store import TokenStore

_DIGEST = 16


def distinct_texts(tokens: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse), int64: the first text of each distinct token sequence, and for every text its place there.

    `first` ascends. Texts are compared by 128-bit BLAKE2b digests: among 10 million texts the chance that any two
    different ones are taken for equal is 1e-25.
    """
    offsets = np.asarray(tokens.offsets)
    digests = bytearray(_DIGEST * len(tokens))
    for text in tqdm(range(len(tokens)), "compare texts", unit=" texts", delay=1.0):
        digest = hashlib.blake2b(tokens.values[offsets[text] : offsets[text + 1]].data, digest_size=_DIGEST).digest()
        digests[_DIGEST * text : _DIGEST * (text + 1)] = digest
    high, low = np.frombuffer(digests, np.uint64).reshape(-1, 2).T
    # Stable, so that of equal texts the first comes first.
    order = np.lexsort((low, high))
    starts = np.ones(len(order), bool)
    starts[1:] = (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]])
    found = order[starts]
    rank = np.empty(len(found), np.int64)
    rank[np.argsort(found)] = np.arange(len(found))
    inverse = np.empty(len(order), np.int64)
    inverse[order] = rank[np.cumsum(starts) - 1]
    return np.sort(found), inverse
