"""The relational steps from raw events to a coded dataset, as Ibis expressions: one text for DuckDB and for Spark.

events(user_id, item_id, rating, timestamp, row_order) -> pairs(user, item, rating, timestamp), one for each user and
item, with codes in the order of the external ids: whole numbers first, by value, then the others, as texts.

Out of scope: reading (`ingest`), judging rows (`validate`), who executes (`engines`), the same rules for coded events
in arrays (`settle`).
"""

import dataclasses
import itertools
from typing import TYPE_CHECKING

from ltrec_jax.data import columns
from ltrec_jax.data.engines import Engine
from ltrec_jax.data.prepare_options import Duplicates, PrepareOptions
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    import ibis.expr.types as ir

ROW_ORDER = "row_order"
"""Of two events at the same time the one with the greater number counts as the later one."""
EVENTS = "events"
"""How many events a user or item has."""
_ROW_BITS = 1 << 50


def in_time_range(events: "ir.Table", start: int | None, end: int | None) -> "ir.Table":
    """Events with start <= timestamp < end."""
    if start is not None:
        events = events.filter(events.timestamp >= start)
    if end is not None:
        events = events.filter(events.timestamp < end)
    return events


def named(events: "ir.Table", key: str) -> "ir.Table":
    """(id, events, key): every distinct id as it is stored (perhaps a number), its count, and the id as a text."""
    counted = events.group_by(id=events[key]).agg(**{EVENTS: events.count()})
    return counted.mutate(**{key: counted.id.cast("string")})


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
    joined = events.join(users.select("id", columns.USER), events[columns.USER_ID] == users.id).drop("id")
    joined = joined.join(items.select("id", columns.ITEM), joined[columns.ITEM_ID] == items.id)
    return joined.select(*columns.INTERACTION_COLUMNS, ROW_ORDER)


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


def only_positive(pairs: "ir.Table", threshold: float) -> "ir.Table":
    """Pairs with rating >= threshold, as 1.0."""
    import ibis

    least = ibis.literal(threshold).cast("float32")
    return pairs.filter(pairs.rating >= least).mutate(rating=ibis.literal(1.0).cast("float32"))


def frequent(pairs: "ir.Table", min_user: int, min_item: int) -> "ir.Table":
    """Pairs whose user and item both have enough pairs now: one step to the k-core, which is its fixed point."""
    kept = pairs
    for code, minimum in ((columns.USER, min_user), (columns.ITEM, min_item)):
        if minimum > 1:
            counts = pairs.group_by(code).agg(**{EVENTS: pairs.count()})
            kept = kept.semi_join(counts.filter(counts.events >= minimum), code)
    return kept


def dense(codes_left: "ir.Table", code: str) -> "ir.Table":
    """The table with a column `dense`: the place, from 0, of each of the codes that are left."""
    import ibis

    return codes_left.mutate(dense=ibis.row_number().over(order_by=codes_left[code]).cast("int32"))


def renumbered(pairs: "ir.Table", kept: "ir.Table", code: str) -> "ir.Table":
    """The pairs with each `code` replaced by its `dense` one in `kept`."""
    joined = pairs.join(kept.select(code, "dense"), code)
    return joined.drop(code).rename({code: "dense"})


@dataclasses.dataclass(frozen=True)
class Coded:
    """Events whose ids are codes. The engine's tables all_users and all_items hold the code of each id (a text)."""

    events: "ir.Table"
    """(user, item, rating, timestamp, row_order), not computed yet."""
    counts: "ir.Table"
    """(user, events) of every user."""
    described: "ir.Table"
    """(item) of the items in the catalogue, which stay whatever happens to their events."""
    missing: int
    """Items of the events that the catalogue lacks; 0 where there is no catalogue."""


def code_events(engine: Engine, options: PrepareOptions, *, listed: bool) -> Coded:
    """Code the events in the time range: every item of items_kept has a code, and every item and user of an event.

    Items that the catalogue lacks are a `UserError` under `strict`, if one was `listed`.
    """
    events = in_time_range(engine.table("events"), options.start, options.end)
    catalogue = engine.table("items_kept").select(columns.ITEM_ID)
    seen_users = engine.create("seen_users", named(events, columns.USER_ID), "collecting users")
    seen_items = engine.create("seen_items", named(events, columns.ITEM_ID), "collecting items")
    missing = _missing(engine, seen_items.anti_join(catalogue, columns.ITEM_ID), options.strict) if listed else 0
    every_item = catalogue.union(seen_items.select(columns.ITEM_ID))
    users = engine.create("all_users", codes(seen_users, columns.USER_ID, columns.USER), "coding users")
    items = engine.create("all_items", codes(every_item, columns.ITEM_ID, columns.ITEM), "coding items")
    coded_users = engine.create("coded_users", seen_users.join(users, columns.USER_ID), "coding users")
    coded_items = engine.create("coded_items", seen_items.join(items, columns.ITEM_ID), "coding items")
    return Coded(
        events=coded(events, coded_users, coded_items),
        counts=coded_users.select(columns.USER, EVENTS),
        described=items.semi_join(catalogue, columns.ITEM_ID).select(columns.ITEM),
        missing=missing,
    )


def relate(engine: Engine, options: PrepareOptions, *, listed: bool) -> tuple[dict[str, int], int]:
    """From events, items_kept to final(user, item, rating, timestamp) and final_users_codes(user_id, user),
    final_items_codes(item_id, item); gives the number of interactions after each step, and the number of items that
    the catalogue lacks.
    """
    given = code_events(engine, options, listed=listed)
    events = engine.create("coded", given.events, "joining")
    steps = {"in_time_range": engine.count("coded")}
    table = "pairs"
    engine.create(table, one_per_pair(events, options.duplicates), "one event for each pair")
    engine.drop("coded")
    steps["one_per_pair"] = engine.count(table)
    if options.implicit_threshold is not None:
        engine.create("positive", only_positive(engine.table(table), options.implicit_threshold), "positive events")
        engine.drop(table)
        table = "positive"
        steps["positive"] = engine.count(table)
    table = k_core(engine, table, options.min_user_interactions, options.min_item_interactions)
    steps["interactions"] = engine.count(table)
    if steps["interactions"] == steps["one_per_pair"]:
        engine.rename(table, "final")
        all_codes_stay(engine)
        return steps, given.missing
    pairs = engine.table(table)
    left = codes_left(
        engine, pairs.select(columns.USER).distinct(), given.described.union(pairs.select(columns.ITEM), distinct=True)
    )
    for code, kept in left.items():
        pairs = renumbered(pairs, kept, code)
    engine.create("final", pairs.select(*columns.INTERACTION_COLUMNS), "coding")
    return steps, given.missing


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


def all_codes_stay(engine: Engine) -> None:
    """The final codes are all codes."""
    for kind in ("users", "items"):
        engine.rename(f"all_{kind}", f"final_{kind}_codes")


def codes_left(engine: Engine, users: "ir.Table", items: "ir.Table") -> dict[str, "ir.Table"]:
    """Make the final codes of the `users` (user) and `items` (item) that are left, without gaps, in the same order.

    Gives for each of the columns user and item the table of old codes with their `dense` ones.
    """
    found = {}
    for kind, key, code, used in (
        ("users", columns.USER_ID, columns.USER, users),
        ("items", columns.ITEM_ID, columns.ITEM, items),
    ):
        remaining = engine.table(f"all_{kind}").semi_join(used, code)
        kept = engine.create(f"left_{kind}", dense(remaining, code), f"numbering {kind}")
        engine.create(f"final_{kind}_codes", kept.select(**{key: kept[key], code: kept.dense}), f"numbering {kind}")
        found[code] = kept
    return found


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
