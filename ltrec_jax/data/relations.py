"""The relational steps from raw events to a coded dataset, as Ibis expressions: one text for DuckDB and for Spark.

events(user_id, item_id, rating, timestamp, row_order) -> pairs(user, item, rating, timestamp), one for each user and
item, with codes in the order of the external ids: whole numbers first, by value, then the others, as texts.

Out of scope: reading (`ingest`), judging rows (`validate`), who executes (`engines`), the same rules for coded events
in arrays (`settle`).
"""

import dataclasses
import itertools
from collections.abc import Mapping
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
CODE_OF = {columns.USER_ID: columns.USER, columns.ITEM_ID: columns.ITEM}
"""The column of the codes that stand for the ids of another column."""
_ROW_BITS = 1 << 50


def in_time_range(events: "ir.Table", start: int | None, end: int | None) -> "ir.Table":
    """Events with start <= timestamp < end."""
    if start is not None:
        events = events.filter(events.timestamp >= start)
    if end is not None:
        events = events.filter(events.timestamp < end)
    return events


def counted(events: "ir.Table", key: str) -> "ir.Table":
    """(id, events): every distinct id as it is stored (perhaps a number), and its count."""
    return events.group_by(id=events[key]).agg(**{EVENTS: events.count()})


def numbered(ids: "ir.Table", key: str, code: str) -> "ir.Table":
    """The distinct ids, texts in the column `key`, each with its place, from 0, in the order of the ids."""
    import ibis

    order = [ibis.asc(ids[key].try_cast("int64"), nulls_first=False), ibis.asc(ids[key])]
    # Windows count from 0 in Ibis.
    return ids.mutate(**{code: ibis.row_number().over(order_by=order).cast("int32")})


def coded(events: "ir.Table", codes: Mapping[str, "ir.Table"]) -> "ir.Table":
    """The events with codes instead of the ids that `codes` tells: for user_id and item_id the tables of `Coded.codes`.

    Ids that are stored as numbers are joined as numbers, which is several times faster than as texts.
    """
    for key, ids in codes.items():
        events = events.join(ids.select("id", CODE_OF[key]), events[key] == ids.id).drop("id", key)
    return events


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
    """The ids of the events and of the catalogue with their codes: the tables all_users and all_items of the engine."""

    codes: Mapping[str, "ir.Table"]
    """For user_id (id, events, user_id, user) of every user: the id as it is stored, its count, its text, its code.
    For item_id (id, events, item_id, item); id and events are missing where the catalogue alone has the item.
    """
    described: "ir.Table"
    """(item) of the items in the catalogue, which stay whatever happens to their events."""
    missing: int
    """Items of the events that the catalogue lacks; 0 where there is no catalogue."""


def code_ids(engine: Engine, options: PrepareOptions, ids: Mapping[str, "ir.Table"], *, listed: bool) -> Coded:
    """Give a code to every id in `ids` (for user_id and item_id what `counted` gives) and to every item of items_kept.

    Items that the catalogue lacks are a `UserError` under `strict`, if one was `listed`.
    """
    users, items = (ids[key].mutate(**{key: ids[key].id.cast("string")}) for key in CODE_OF)
    users = engine.create("all_users", numbered(users, columns.USER_ID, columns.USER), "coding users")
    catalogue = engine.table("items_kept").select(columns.ITEM_ID)
    joined = items.outer_join(catalogue, columns.ITEM_ID)
    either = joined[columns.ITEM_ID].coalesce(joined[f"{columns.ITEM_ID}_right"])
    every_item = joined.select("id", EVENTS, **{columns.ITEM_ID: either})
    items = engine.create("all_items", numbered(every_item, columns.ITEM_ID, columns.ITEM), "coding items")
    # No item stands in the catalogue twice.
    missing = engine.count("all_items") - engine.count("items_kept") if listed else 0
    if missing and options.strict:
        _refuse(engine, items.anti_join(catalogue, columns.ITEM_ID), missing)
    described = items.semi_join(catalogue, columns.ITEM_ID).select(columns.ITEM)
    return Coded({columns.USER_ID: users, columns.ITEM_ID: items}, described, missing)


def relate(engine: Engine, options: PrepareOptions, *, listed: bool) -> tuple[dict[str, int], int]:
    """From events, items_kept to final(user, item, rating, timestamp) and final_users_codes(user_id, user),
    final_items_codes(item_id, item); gives the number of interactions after each step, and the number of items that
    the catalogue lacks.
    """
    events = in_time_range(engine.table("events"), options.start, options.end)
    ids = {key: engine.create(f"counted_{key}", counted(events, key), "collecting ids") for key in CODE_OF}
    given = code_ids(engine, options, ids, listed=listed)
    events = engine.create("coded", coded(events, given.codes), "joining")
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


def _refuse(engine: Engine, absent: "ir.Table", count: int) -> None:
    """Stop because of items of the interactions that the table of items lacks."""
    example = engine.fetch(absent.agg(example=absent[columns.ITEM_ID].min()))["example"][0]
    raise UserError(
        f"{count:,} items of the interactions are missing from the table of items, such as {str(example)!r}. "
        "Complete the table, or keep them with empty texts by leaving out `strict`."
    )
