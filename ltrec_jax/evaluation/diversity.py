"""What a list holds beyond accuracy: useful surprises, and items that differ from one another.

Lists are items int32 [V, k] with -1 where a list is shorter; figures come as sums per list owner. Out of scope: the
catalogue as a whole (`longtail`), the user's own taste (`profiles`).
"""

import numpy as np

from ltrec_jax.evaluation.ranking import contained
from ltrec_jax.evaluation.significance import UserSums

_BLOCK_ELEMENTS = 4_000_000


def serendipity(items_Vxk: np.ndarray, hits_Vxk: np.ndarray, obvious_Vxk: np.ndarray) -> UserSums:
    """Share of a list that is useful and not obvious, averaged over users, 0..1.

    S_u = |hits among the first k that the obvious list lacks| / |list|. The obvious list is what a primitive
    recommender shows the same user: the most popular unseen items. Source: Ge, Delgado-Battenfeld & Jannach (RecSys
    2010), with usefulness = a target of the test, after Murakami et al. (2008). Users without a list are skipped.
    """
    rows = np.arange(len(items_Vxk), dtype=np.int64)[:, None]
    stride = max(items_Vxk.max(initial=0), obvious_Vxk.max(initial=0)) + 1
    listed = obvious_Vxk >= 0
    keys = np.sort((rows * stride + obvious_Vxk)[listed])
    # The key of item -1 may be another row's, but -1 is never a hit.
    obvious = contained(keys, rows * stride + items_Vxk)
    length_V = (items_Vxk >= 0).sum(1)
    found_V = (hits_Vxk & ~obvious).sum(1)
    share_V = np.divide(found_V, length_V, out=np.zeros(len(found_V)), where=length_V > 0)
    return UserSums(share_V, (length_V > 0).astype(np.float64))


def intra_list_diversity(items_Vxk: np.ndarray, vectors_IxE: np.ndarray) -> UserSums:
    """Mean distance 1 - cos(x_i, x_j) of the pairs in a list, averaged over users: 0 = copies, 1 = unrelated, 2 most.

    ILD_u = 1 - (|sum_i x_i|^2 - sum_i |x_i|^2) / (n (n - 1)) with rows x of length 1 (a zero row has cosine 0 with
    everything): linear in k. Users with fewer than two items are skipped. Source: Smyth & McClave (2001), Ziegler et
    al. (WWW 2005).
    """
    diversity_V, counted_V = np.zeros(len(items_Vxk)), (items_Vxk >= 0).sum(1) > 1
    block = max(1, _BLOCK_ELEMENTS // max(items_Vxk.shape[1] * vectors_IxE.shape[1], 1))
    norm_I = np.linalg.norm(vectors_IxE.astype(np.float32), axis=1)
    unit_IxE = vectors_IxE / np.where(norm_I > 0, norm_I, 1.0)[:, None]
    for start in range(0, len(items_Vxk), block):
        items = items_Vxk[start : start + block]
        listed = items >= 0
        rows = unit_IxE[np.maximum(items, 0)].astype(np.float32) * listed[:, :, None]
        length = listed.sum(1)
        together = (rows.sum(1) ** 2).sum(1, dtype=np.float64) - (rows**2).sum((1, 2), dtype=np.float64)
        pairs = length * (length - 1)
        diversity_V[start : start + block] = 1.0 - np.divide(together, pairs, out=np.zeros(len(items)), where=pairs > 0)
    return UserSums(np.where(counted_V, diversity_V, 0.0), counted_V.astype(np.float64))
