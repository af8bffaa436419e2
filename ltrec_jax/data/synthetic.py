"""A long-tail catalogue whose truth is known, for tests and notebooks, and raw events in bulk for scale benchmarks.

Popularity follows Zipf's law, some items are cold, ratings come from latent factors that the item's topic explains in
part, and the texts tell the topic: so text can help on cold items, and how much is known. Out of scope: the wording of
the texts (`synthetic_texts`), the formulas of the truth (`synthetic_truth`), splits, anything learnt.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data import columns, synthetic_texts
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.data.synthetic_truth import SIGNAL, Truth, quarter
from ltrec_jax.errors import UserError

_CELLS = 1 << 22
_START, _SPAN = 1_577_836_800, 4 * 365 * 86_400  # four years from 2020-01-01
_USER_ZIPF = 0.5
_BIAS = 0.3  # standard deviation of a bias, in quarters of the scale


def catalogue(
    num_users: int,
    num_items: int,
    num_interactions: int,
    *,
    zipf: float = 1.0,
    cold_share: float = 0.1,
    topics: int = 8,
    dim: int = 8,
    topic_share: float = 0.7,
    noise: float = 0.5,
    selection: float = 0.5,
    scale: tuple[int, int] = (1, 5),
    seed: int = 0,
) -> tuple[Dataset, Truth]:
    """A dataset of exactly `num_interactions` different (user, item) pairs, in order of time, and its truth.

    The warm item of rank r has an expected count ~ r^-zipf, rounded, at least 1 and at most `num_users`;
    round(cold_share * num_items) items have none. `topic_share` is the share of an item's factors that its topic
    explains (1: text tells all, 0: nothing). `selection`: how much users pick what they like (0: what they rate does
    not depend on what they think of it). Memory is that of `num_users` floats at a time, time that of all pairs: for
    benchmarks of scale there is `stream`. Shares, counts and scales that cannot be met are `UserError`.
    """
    num_cold = _num_cold(num_users, num_items, num_interactions, cold_share, topics, scale)
    if not 0 <= topic_share <= 1:
        raise UserError(f"topic_share = {topic_share} is not a share between 0 and 1.")
    rng = np.random.default_rng(seed)
    count_I = np.zeros(num_items, np.int64)
    warm = rng.permutation(num_items)[: num_items - num_cold]
    count_I[warm] = _zipf_counts(len(warm), num_interactions, num_users, zipf)
    topic_I = rng.integers(topics, size=num_items)
    unit = quarter(scale)
    centre_TxD, own_IxD = rng.normal(size=(topics, dim)), rng.normal(size=(num_items, dim))
    item_IxD = np.sqrt(topic_share) * centre_TxD[topic_I] + np.sqrt(1 - topic_share) * own_IxD
    user_UxD = rng.normal(size=(num_users, dim)) * (SIGNAL * unit / np.sqrt(dim))
    activity_U = (1.0 + rng.permutation(num_users)) ** -_USER_ZIPF
    wish_UxD = user_UxD * (selection / (SIGNAL * unit))
    user_N, item_N, odds_I = _observe(count_I, activity_U, wish_UxD, item_IxD, rng)
    truth = Truth(
        topic_I=topic_I,
        user_UxD=user_UxD,
        item_IxD=item_IxD,
        user_bias_U=_BIAS * unit * rng.normal(size=num_users),
        item_bias_I=_BIAS * unit * rng.normal(size=num_items),
        base=scale[0] + 0.6 * (scale[1] - scale[0]),
        noise=noise,
        scale=scale,
        count_I=count_I,
        activity_U=activity_U,
        odds_I=odds_I,
        selection=selection,
    )
    mean_N = truth.mean(user_N, item_N) + noise * rng.normal(size=len(user_N))
    rating_N = np.clip(np.floor(mean_N + 0.5), *scale).astype(np.float32)
    # An item cannot be rated before it came out.
    released_I = rng.uniform(0.0, 0.8, size=num_items)
    time_N = released_I[item_N] + (1 - released_I[item_N]) * rng.uniform(size=len(user_N))
    time_N = (_START + _SPAN * time_N).astype(np.int64)
    order = np.lexsort((item_N, user_N, time_N))
    items = synthetic_texts.texts(topic_I, rng).to_pandas()
    items.insert(0, columns.ITEM_ID, [f"item-{i}" for i in range(num_items)])
    settings = {
        **{"num_users": num_users, "num_items": num_items, "num_interactions": num_interactions, "zipf": zipf},
        **{"cold_share": cold_share, "topics": topics, "dim": dim, "topic_share": topic_share, "noise": noise},
        **{"selection": selection, "scale": list(scale), "seed": seed},
    }
    dataset = Dataset(
        name="synthetic",
        interactions=Interactions(user_N[order], item_N[order], rating_N[order], time_N[order]),
        users=pd.DataFrame({columns.USER_ID: [f"user-{u}" for u in range(num_users)]}),
        items=items,
        info={
            "synthetic": settings,
            "scale": list(scale),
            "positive_rating": round(scale[0] + 0.75 * (scale[1] - scale[0])),
            "template": synthetic_texts.TEMPLATE,
        },
    )
    return dataset, truth


def stream(
    directory: Path,
    num_users: int,
    num_items: int,
    num_interactions: int,
    *,
    zipf: float = 1.0,
    cold_share: float = 0.1,
    topics: int = 8,
    scale: tuple[int, int] = (1, 5),
    rows_per_shard: int = 1 << 20,
    seed: int = 0,
    replace: bool = False,
) -> Path:
    """Write raw events as Parquet shards, `directory/interactions/part-*.parquet`, and `directory/items.parquet`.

    Events (user_id, item_id: strings, rating, timestamp) are independent draws: repeated pairs occur, as in a real
    log, and nothing is sorted. Items and users of rank r are drawn with P ~ integral of x^-s over [r, r + 1], where s
    is `zipf` and 0.5: Zipf's law but for the first ranks. A user likes some topics; cold items are in the item table
    only. A shard depends on `seed` and its number alone; memory is that of one shard and of the ids.
    """
    num_cold = _num_cold(num_users, num_items, num_interactions, cold_share, topics, scale)
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard = {rows_per_shard} must be at least 1.")
    rng = np.random.default_rng(seed)
    topic_I = rng.integers(topics, size=num_items)
    item_of_rank, user_of_rank = rng.permutation(num_items).astype(np.int32), rng.permutation(num_users)
    user_ids, item_ids = _ids("u", num_users), _ids("i", num_items)
    unit = quarter(scale)
    taste_UxT = rng.normal(scale[0] + 0.6 * (scale[1] - scale[0]), unit, (num_users, topics)).astype(np.float32)
    starts = range(0, num_interactions, rows_per_shard)
    with storage.new_directory(Path(directory), replace=replace) as new:
        items = synthetic_texts.texts(topic_I, rng).add_column(0, columns.ITEM_ID, item_ids)
        pq.write_table(items, new / "items.parquet", compression="zstd")
        (new / "interactions").mkdir()
        with tqdm(total=num_interactions, desc="events", unit=" rows", unit_scale=True, delay=1.0) as bar:
            for number, start in enumerate(starts):
                draw = np.random.default_rng([seed, number])
                rows = min(rows_per_shard, num_interactions - start)
                user_N = user_of_rank[_power_law_ranks(num_users, rows, _USER_ZIPF, draw)]
                item_N = item_of_rank[_power_law_ranks(num_items - num_cold, rows, zipf, draw)]
                rating_N = taste_UxT[user_N, topic_I[item_N]] + np.float32(unit) * draw.standard_normal(
                    rows, np.float32
                )
                events = {
                    columns.USER_ID: user_ids.take(pa.array(user_N)),
                    columns.ITEM_ID: item_ids.take(pa.array(item_N)),
                    columns.RATING: np.clip(np.rint(rating_N), *scale).astype(np.float32),
                    columns.TIMESTAMP: _START + draw.integers(_SPAN, size=rows),
                }
                shard = new / "interactions" / f"part-{number:05d}.parquet"
                pq.write_table(pa.table(events), shard, compression="zstd")
                bar.update(rows)
    return Path(directory)


def _num_cold(
    num_users: int, num_items: int, num_events: int, cold_share: float, topics: int, scale: tuple[int, int]
) -> int:
    """How many items are cold; sizes that make no catalogue are `UserError`."""
    known = len(synthetic_texts.TOPICS)
    if not 1 <= topics <= known:
        raise UserError(f"topics = {topics}: there are words for 1 to {known} topics.")
    if not scale[0] < scale[1]:
        raise UserError(f"scale = {scale} must rise.")
    if min(num_users, num_items, num_events) < 1:
        raise UserError("num_users, num_items and num_interactions must all be at least 1.")
    if not 0 <= cold_share <= 1:
        raise UserError(f"cold_share = {cold_share} is not a share between 0 and 1.")
    num_cold = round(cold_share * num_items)
    if num_cold == num_items:
        raise UserError(f"With {num_cold} of {num_items} items cold there is no item left to interact with.")
    return num_cold


def _zipf_counts(num_items: int, total: int, most: int, exponent: float) -> np.ndarray:
    """Whole numbers ~ rank^-exponent with this total, each in 1..most: int64[num_items], descending."""
    if not num_items <= total <= num_items * most:
        raise UserError(
            f"num_interactions = {total} cannot be met by {num_items} warm items with 1 to {most} users each "
            f"({num_items} to {num_items * most})."
        )
    weight = np.arange(1, num_items + 1, dtype=np.float64) ** -exponent
    low, high = 0.0, most / weight.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * weight, 1, most).sum() < total else (low, middle)
    share = np.clip(low * weight, 1, most)
    count = np.floor(share + 1e-9).astype(np.int64)
    # Largest remainders first; a count at its limit has none.
    count[np.argsort(count - share, kind="stable")[: total - count.sum()]] += 1
    return -np.sort(-count)


def _observe(
    count_I: np.ndarray, activity_U: np.ndarray, wish_UxD: np.ndarray, item_IxD: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the users of every item: (users int32[N], items int32[N], odds float64[I]).

    User u is drawn for item i with probability p = min(1, odds_i activity_u exp(<wish_u, q_i>)), where odds_i makes
    them add up to count_i: systematic sampling over the users in random order, which has exactly these probabilities
    and exactly count_i users (Madow, Annals of Mathematical Statistics 20, 1949).
    """
    num_users = len(activity_U)
    odds_I = np.zeros(len(count_I))
    warm = np.flatnonzero(count_I)
    users, items = [], []
    block = max(1, _CELLS // num_users)
    for start in tqdm(range(0, len(warm), block), desc="drawing users of items", delay=1.0):
        item_B = warm[start : start + block]
        weight_BxU = activity_U * np.exp(item_IxD[item_B] @ wish_UxD.T)
        odds_I[item_B] = _odds(weight_BxU, count_I[item_B])
        chance_BxU = np.minimum(1.0, odds_I[item_B, None] * weight_BxU)
        order_BxU = rng.permuted(np.broadcast_to(np.arange(num_users, dtype=np.int32), chance_BxU.shape), axis=1)
        reached_BxU = np.cumsum(np.take_along_axis(chance_BxU, order_BxU, axis=1), axis=1)
        reached_BxU[:, -1] = count_I[item_B]
        passed_BxU = np.floor(np.minimum(reached_BxU, count_I[item_B, None]) + rng.uniform(size=(len(item_B), 1)))
        row, place = np.nonzero(np.diff(passed_BxU, axis=1, prepend=0.0))
        users.append(order_BxU[row, place])
        items.append(item_B[row].astype(np.int32))
    return np.concatenate(users), np.concatenate(items), odds_I


def _odds(weight_BxU: np.ndarray, count_B: np.ndarray) -> np.ndarray:
    """The factor of each row for which min(1, factor * weight) adds up to its count."""
    full_BxU = np.zeros(weight_BxU.shape, bool)
    while True:
        left_B = np.where(full_BxU, 0.0, weight_BxU).sum(axis=1)
        # Where every user is drawn any large factor will do.
        factor_B = np.where(left_B > 0, (count_B - full_BxU.sum(axis=1)) / np.maximum(left_B, 1e-300), 0.0)
        factor_B = np.where(factor_B > 0, factor_B, 1.0 / weight_BxU.min(axis=1))
        above_BxU = factor_B[:, None] * weight_BxU >= 1.0
        if np.array_equal(above_BxU | full_BxU, full_BxU):
            return factor_B
        full_BxU |= above_BxU


def _power_law_ranks(count: int, rows: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """`rows` ranks 0..count-1 by inversion of the integral of x^-exponent over [1, count + 1]."""
    uniform = rng.random(rows)
    if exponent == 1.0:
        place = np.exp(uniform * np.log(count + 1))
    else:
        power = 1.0 - exponent
        place = (1.0 + uniform * ((count + 1) ** power - 1.0)) ** (1.0 / power)
    return np.minimum(place.astype(np.int64) - 1, count - 1)


def _ids(letter: str, count: int) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.cast(pa.array(np.arange(count)), pa.string()), "")
