"""The relational steps from raw events to a coded dataset, as Ibis expressions: one text for DuckDB and for Spark.

events(user_id, item_id, rating, timestamp, row_order) -> pairs(user, item, rating, timestamp), one for each user and
item, with codes in the order of the external ids: whole numbers first, by value, then the others, as texts.

Out of scope: reading (`ingest`), judging rows (`validate`), who executes (`engines`).
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from ltrec_jax.data import columns
from ltrec_jax.data.engines import Engine
from ltrec_jax.data.prepare_options import Duplicates, PrepareOptions
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import ibis.expr.types as ir

_ROW_BITS = 1 << 50
_ITEMS = 1 << 32
_ROWS_PER_GIB = 5_000_000
_BINS = 4096


def in_time_range(events: "ir.Table", start: int | None, end: int | None) -> "ir.Table":
    """Events with start <= timestamp < end."""
    if start is not None:
        events = events.filter(events.timestamp >= start)
    if end is not None:
        events = events.filter(events.timestamp < end)
    return events


def named(events: "ir.Table", key: str) -> "ir.Table":
    """(id, key): every distinct id of the events as it is stored there (perhaps a number) and as a text."""
    distinct = events.select(id=events[key]).distinct()
    return distinct.mutate(**{key: distinct.id.cast("string")})


def codes(ids: "ir.Table", key: str, code: str) -> "ir.Table":
    """(key, code): every distinct id, a text, with its place, from 0, in the order of the ids."""
    import ibis

    distinct = ids.select(key).distinct()
    order = [ibis.asc(distinct[key].try_cast("int64"), nulls_first=False), ibis.asc(distinct[key])]
    # Windows count from 0 in Ibis.
    return distinct.mutate(**{code: ibis.row_number().over(order_by=order).cast("int32")})


def coded(events: "ir.Table", users: "ir.Table", items: "ir.Table") -> "ir.Table":
    """(user, item, rating, timestamp, row_order) of all events; `users` and `items` hold the code of each stored id.

    Ids that are stored as numbers are joined as numbers, which is several times faster than as texts.
    """
    joined = events.join(users.drop(columns.USER_ID), events[columns.USER_ID] == users.id).drop("id")
    joined = joined.join(items.drop(columns.ITEM_ID), joined[columns.ITEM_ID] == items.id)
    return joined.select(columns.USER, columns.ITEM, columns.RATING, columns.TIMESTAMP, "row_order")


def one_per_pair(events: "ir.Table", policy: Duplicates) -> "ir.Table":
    """One row for each (user, item): that of the last or the first time, or the mean rating at the last time.

    Of several events at the same time the later row of the files counts as the later one.
    """
    import ibis

    moment = events.timestamp.cast("decimal(38, 0)") * _ROW_BITS + events.row_order
    keyed = events.mutate(moment=moment)
    # Both engines know it by this name; Ibis's own argmax sorts each group, which is slower and larger.
    signature = (("float32", "decimal(38, 0)"), "float32")
    max_by = ibis.udf.agg.builtin(lambda value, key: None, name="max_by", signature=signature)
    last = keyed.timestamp.max()
    if policy == "mean":
        rating = keyed.rating.cast("float64").mean()
    elif policy == "last":
        rating = max_by(keyed.rating, keyed.moment)
    else:
        rating, last = max_by(keyed.rating, -keyed.moment), keyed.timestamp.min()
    grouped = keyed.group_by(columns.USER, columns.ITEM)
    return grouped.agg(rating=rating.cast("float32"), timestamp=last)


def pair_keys(events: "ir.Table") -> "ir.Table":
    """(key): user and item of each coded event in one int64."""
    return events.select(key=events.user.cast("int64") * _ITEMS + events.item)


def unpacked(keys: "ir.Table") -> "ir.Table":
    """(user, item) of such keys."""
    parts = {columns.USER: keys.key // _ITEMS, columns.ITEM: keys.key % _ITEMS}
    return keys.select(**{code: part.cast("int32") for code, part in parts.items()})


def only_positive(pairs: "ir.Table", threshold: float) -> "ir.Table":
    """Pairs with rating >= threshold, as 1.0."""
    import ibis

    return pairs.filter(pairs.rating >= threshold).mutate(rating=ibis.literal(1.0).cast("float32"))


def frequent(pairs: "ir.Table", min_user: int, min_item: int) -> "ir.Table":
    """Pairs whose user and item both have enough pairs now: one step to the k-core, which is its fixed point."""
    kept = pairs
    for code, minimum in ((columns.USER, min_user), (columns.ITEM, min_item)):
        if minimum > 1:
            counts = pairs.group_by(code).agg(events=pairs.count())
            kept = kept.semi_join(counts.filter(counts.events >= minimum), code)
    return kept


def portions(engine: Engine, events: "ir.Table", users: int, rows: int) -> list[tuple[int, int]]:
    """Ranges (first, last) of user codes that part the coded events into pieces of about `rows`."""
    width = max(1, -(-users // _BINS))
    bins = events.select(bin=(events.user // width).cast("int32"))
    counted = engine.fetch(bins.group_by("bin").agg(rows=bins.count()))
    count = np.zeros(-(-users // width) if users else 1, np.int64)
    count[counted["bin"]] = counted["rows"]
    piece = (np.cumsum(count) - 1) // rows
    edges = [0, *((np.flatnonzero(np.diff(piece)) + 1) * width).tolist(), max(users, 1)]
    return [(first, end - 1) for first, end in itertools.pairwise(edges)]


def k_core(engine: Engine, table: str, min_user: int, min_item: int) -> str:
    """The name of the table with the k-core of the pairs in `table`: `frequent` until nothing more goes."""
    if max(min_user, min_item) <= 1:
        return table
    before = engine.count(table)
    for step in itertools.count(1):
        smaller = f"core_{step}"
        engine.create(smaller, frequent(engine.table(table), min_user, min_item), f"k-core, round {step}")
        engine.drop(table)
        table, after = smaller, engine.count(smaller)
        if after == before:
            break
        before = after
    return table


def relate(engine: Engine, options: PrepareOptions, *, listed: bool) -> tuple[dict[str, int], int]:
    """From events, items_kept to final(user, item, rating, timestamp) and final_users_codes(user_id, user),
    final_items_codes(item_id, item); gives the number of interactions after each step, and the number of items that
    the catalogue lacks (0 if none was `listed`; a `UserError` under `strict`).

    Every item of `items_kept` has a code, and every item and user of an interaction.
    """
    events = in_time_range(engine.table("events"), options.start, options.end)
    catalogue = engine.table("items_kept").select(columns.ITEM_ID)
    seen_users = engine.create("seen_users", named(events, columns.USER_ID), "collecting users")
    seen_items = engine.create("seen_items", named(events, columns.ITEM_ID), "collecting items")
    missing = _missing(engine, seen_items.anti_join(catalogue, columns.ITEM_ID), options.strict) if listed else 0
    every_item = catalogue.union(seen_items.select(columns.ITEM_ID))
    users = engine.create("all_users", codes(seen_users, columns.USER_ID, columns.USER), "coding users")
    items = engine.create("all_items", codes(every_item, columns.ITEM_ID, columns.ITEM), "coding items")
    joined = coded(events, seen_users.join(users, columns.USER_ID), seen_items.join(items, columns.ITEM_ID))
    events = engine.create("coded", joined, "joining")
    steps = {"in_time_range": engine.count("coded")}
    pairs, saved = _one_per_pair(engine, events, options)
    steps["one_per_pair"] = steps["in_time_range"] - saved
    if options.implicit_threshold is None and max(options.min_user_interactions, options.min_item_interactions) <= 1:
        steps["interactions"] = steps["one_per_pair"]
        engine.define("final", pairs, "one event for each pair")
        _all_codes_stay(engine)
        return steps, missing
    table = "pairs"
    if options.implicit_threshold is not None:
        pairs = only_positive(pairs, options.implicit_threshold)
    engine.create(table, pairs, "one event for each pair")
    engine.drop("coded")
    if options.implicit_threshold is not None:
        steps["positive"] = engine.count(table)
    table = k_core(engine, table, options.min_user_interactions, options.min_item_interactions)
    steps["interactions"] = engine.count(table)
    if steps["interactions"] == steps["one_per_pair"]:
        engine.rename(table, "final")
        _all_codes_stay(engine)
        return steps, missing
    pairs = engine.table(table)
    known = items.semi_join(catalogue, columns.ITEM_ID).select(columns.ITEM)
    for kind, all_ids, key, code, used in (
        ("users", users, columns.USER_ID, columns.USER, pairs.select(columns.USER)),
        ("items", items, columns.ITEM_ID, columns.ITEM, known.union(pairs.select(columns.ITEM))),
    ):
        kept = engine.create(f"left_{kind}", dense(all_ids.semi_join(used, code), code), f"numbering {kind}")
        engine.create(f"final_{kind}_codes", kept.select(**{key: kept[key], code: kept.dense}), f"numbering {kind}")
        pairs = renumbered(pairs, kept, code)
    ordered = [columns.USER, columns.ITEM, columns.RATING, columns.TIMESTAMP]
    engine.create("final", pairs.select(*ordered), "coding")
    return steps, missing


def _one_per_pair(engine: Engine, events: "ir.Table", options: PrepareOptions) -> tuple["ir.Table", int]:
    """`one_per_pair` of the coded events in the engine, and how many events fewer that are.

    Repeated pairs are few as a rule: to count the pairs is cheaper than to group whole events.
    """
    rows = round(_ROWS_PER_GIB * options.memory_gib)
    # Grouping some million events at a time stays in memory; all at once would spill, which takes thrice as long.
    bounds = portions(engine, events, engine.count("all_users"), rows)
    parts = [events.filter(events.user.between(*bound)) for bound in bounds]
    keys = engine.repeated("repeated", [pair_keys(part) for part in parts], "looking for repeated pairs")
    twice = engine.create("twice", unpacked(keys), "looking for repeated pairs")
    both = [columns.USER, columns.ITEM]
    single = events.anti_join(twice, both).select(*both, columns.RATING, columns.TIMESTAMP)
    pairs = engine.count("repeated")
    if not pairs:
        return single, 0
    grouped = int(engine.fetch(keys.agg(events=keys.events.sum()))["events"][0])
    merged = [
        one_per_pair(part.semi_join(twice, both), options.duplicates)
        for part in (parts if grouped > rows else [events])
    ]
    return single.union(engine.create("merged", merged, "merging repeated pairs")), grouped - pairs


def _all_codes_stay(engine: Engine) -> None:
    for kind in ("users", "items"):
        engine.rename(f"all_{kind}", f"final_{kind}_codes")


def _missing(engine: Engine, absent: "ir.Table", strict: bool) -> int:
    """How many items of the interactions the table of items lacks."""
    count = engine.total(absent)
    if strict and count:
        example = engine.fetch(absent.agg(example=absent[columns.ITEM_ID].min()))["example"][0]
        raise UserError(
            f"{count:,} items of the interactions are missing from the table of items, such as {str(example)!r}. "
            "Complete the table, or keep them with empty texts by leaving out `strict`."
        )
    return count


def dense(codes_left: "ir.Table", code: str) -> "ir.Table":
    """The table with a column `dense`: the place, from 0, of each of the codes that are left."""
    import ibis

    return codes_left.mutate(dense=ibis.row_number().over(order_by=codes_left[code]).cast("int32"))


def renumbered(pairs: "ir.Table", kept: "ir.Table", code: str) -> "ir.Table":
    """The pairs with each `code` replaced by its `dense` one in `kept`."""
    joined = pairs.join(kept.select(code, "dense"), code)
    return joined.drop(code).rename({code: "dense"})
