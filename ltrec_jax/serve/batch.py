"""Lists for the whole user base, in blocks, as one Parquet file. The same lists as the service gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ltrec_jax import storage, topk
from ltrec_jax.bundle import Bundle
from ltrec_jax.data import columns
from ltrec_jax.data.popularity import GROUPS
from ltrec_jax.errors import UserError
from ltrec_jax.serve.live_items import NEW

_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("group", pa.dictionary(pa.int8(), pa.string())),
    ]
)


def recommend_all(bundle: Bundle, out: Path, k: int = 10) -> int:
    """Write user_id, rank (from 1), item_id, score and group of every user's `k` best unseen items; returns the rows.

    Users come in the bundle's order; one who has seen everything has no row. The file appears whole or not at all.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}.")
    user_ids = bundle.users[columns.USER_ID].astype(str).to_numpy()
    item_ids = bundle.items[columns.ITEM_ID].astype(str).to_numpy()
    group_I = np.where(bundle.counts == 0, len(GROUPS), bundle.group)
    names = pa.array([*GROUPS, NEW])
    users = np.arange(bundle.num_users)
    blocks = topk.ranked(bundle.score, users, num_items=bundle.num_items, k=k, seen=bundle.history)
    start = rows = 0
    with storage.new_file(out) as temporary, pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
        bar = tqdm(total=len(users), unit=" users", desc="recommend", delay=1.0)
        for items, scores in blocks:
            row, place = np.nonzero(items != topk.NO_ITEM)
            chosen = items[row, place]
            writer.write_table(
                pa.table(
                    [
                        pa.array(user_ids[start + row]),
                        pa.array((place + 1).astype(np.int32)),
                        pa.array(item_ids[chosen]),
                        pa.array(scores[row, place]),
                        pa.DictionaryArray.from_arrays(pa.array(group_I[chosen].astype(np.int8)), names),
                    ],
                    schema=_SCHEMA,
                )
            )
            start, rows = start + len(items), rows + len(row)
            bar.update(len(items))
        bar.close()
    return rows
