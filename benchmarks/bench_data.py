"""The data stage at scale: `prepare` beside pandas, the token store beside a plain loop, batches beside the step.

    python benchmarks/bench_data.py --json benchmarks/results/bench_data.json

100 million interactions take some minutes and 6 GB below --folder, which is emptied afterwards.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from harness import arguments, in_child, median_seconds, ran_task, report

SHARD = 5_000_000
REPEATS = 2
SCALE_MEMORY_GIB, COMPARED_MEMORY_GIB = 4.0, 1.3
REPEAT_SHARE = 0.02
NAN_SHARE = 0.001
START, SPAN = 1_500_000_000, 200_000_000


def generate(folder: Path, rows: int, users: int, items: int, *, texts: bool = False, seed: int = 0) -> None:
    """Parquet shards of skewed interactions (some pairs twice, some ratings NaN) and a table of items with titles.

    Ids are whole numbers, or with `texts` strings of 13 characters.
    """
    (folder / "interactions").mkdir(parents=True)
    for number, first in enumerate(range(0, rows, SHARD)):
        rng = np.random.default_rng([seed, number])
        size = min(SHARD, rows - first)
        # Zipf's law with exponent 1 over the items by inverting its distribution; users the same, but flatter.
        item = np.floor(np.exp(rng.random(size) * np.log(items + 1.0)) - 1.0).astype(np.int64)
        user = np.floor(users * rng.random(size) ** 1.5).astype(np.int64)
        rating = rng.integers(1, 11, size).astype(np.float32) / 2
        rating[rng.random(size) < NAN_SHARE] = np.nan
        again = rng.random(size) < REPEAT_SHARE
        back = rng.integers(0, size, size)
        user[again], item[again] = user[back[again]], item[back[again]]
        columns = {
            "user_id": _ids(user, "U", texts),
            "item_id": _ids(item, "I", texts),
            "rating": rating,
            "timestamp": START + rng.integers(0, SPAN, size),
        }
        pq.write_table(pa.table(columns), folder / "interactions" / f"part-{number:03}.parquet")
    ids = _ids(np.arange(items, dtype=np.int64), "I", texts)
    titles = pa.array([f"Title number {n} of the catalogue" for n in range(items)])
    pq.write_table(pa.table({"item_id": ids, "title": titles}), folder / "items.parquet")


def _ids(number: np.ndarray, letter: str, texts: bool) -> Any:
    """External ids that do not follow popularity."""
    mixed = (number * 7_368_787) % 15_485_863
    if not texts:
        return mixed
    values, place = np.unique(mixed, return_inverse=True)
    names = pa.array([f"{letter}{value:012d}" for value in values.tolist()])
    return pa.DictionaryArray.from_arrays(pa.array(place, pa.int32()), names).cast(pa.string())


def with_prepare(folder: str, out: str, memory_gib: float) -> dict[str, Any]:
    """`prepare` as a user calls it."""
    import duckdb  # noqa: F401  # as pandas and pyarrow, imported before the clock starts
    import ibis  # noqa: F401

    from ltrec_jax.data.prepare import PrepareOptions, prepare

    start = time.perf_counter()
    dataset = prepare(
        Path(folder) / "interactions",
        Path(folder) / "items.parquet",
        out=out,
        options=PrepareOptions(memory_gib=memory_gib),
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "interactions": len(dataset.interactions),
        "users": dataset.num_users,
        "items": dataset.num_items,
        "check": _check(dataset.interactions.user, dataset.interactions.item, dataset.interactions.rating),
    }


def with_pandas(folder: str, out: str) -> dict[str, Any]:
    """The same steps and the same result with pandas, written as one would write them."""
    start = time.perf_counter()
    events = pd.read_parquet(Path(folder) / "interactions")
    items = pd.read_parquet(Path(folder) / "items.parquet")
    good = events["user_id"].notna() & events["item_id"].notna() & events["rating"].notna() & (events["timestamp"] >= 0)
    rejected, events = events[~good], events[good]
    events = events.sort_values("timestamp", kind="stable").drop_duplicates(["user_id", "item_id"], keep="last")
    users = pd.DataFrame({"user_id": np.sort(events["user_id"].unique())})
    catalogue = items.merge(pd.DataFrame({"item_id": events["item_id"].unique()}), on="item_id", how="outer")
    catalogue = catalogue.drop_duplicates("item_id").sort_values("item_id", ignore_index=True)
    catalogue["title"] = catalogue["title"].fillna("")
    users["user"] = np.arange(len(users), dtype=np.int32)
    catalogue["item"] = np.arange(len(catalogue), dtype=np.int32)
    coded = events.merge(users, on="user_id").merge(catalogue[["item_id", "item"]], on="item_id")
    coded = coded[["user", "item", "rating", "timestamp"]].sort_values(["user", "timestamp", "item"], ignore_index=True)
    path = Path(out)
    (path / "columns").mkdir(parents=True)
    coded.to_parquet(path / "interactions.parquet", compression="zstd")
    rejected.to_parquet(path / "rejected.parquet")
    for name in coded.columns:
        np.save(path / "columns" / f"{name}.npy", coded[name].to_numpy())
    users.astype({"user_id": str}).to_parquet(path / "users.parquet", compression="zstd")
    catalogue.astype({"item_id": str}).to_parquet(path / "items.parquet", compression="zstd")
    return {
        "seconds": time.perf_counter() - start,
        "interactions": len(coded),
        "users": len(users),
        "items": len(catalogue),
        "check": _check(*(coded[name].to_numpy() for name in ("user", "item", "rating"))),
    }


def _check(user: np.ndarray, item: np.ndarray, rating: np.ndarray) -> float:
    """A number that differs if a row does: the outputs must agree before their speeds are compared."""
    weight = np.arange(1, 1_000_001) % 9973
    rows = slice(0, 1_000_000)
    return float((weight[: len(user)] * (user[rows] * 3.0 + item[rows] * 7.0 + rating[rows])).sum())


def tokens(texts: int) -> dict[str, Any]:
    """`build_store` beside a loop over single texts with the same tokenizer; the tokens must be equal."""
    import tokenizers

    from ltrec_jax.encoder.registry import resolve
    from ltrec_jax.text.store import build_store
    from ltrec_jax.text.tokenizer import load_tokenizer

    directory = resolve("all-MiniLM-L6-v2")
    plain = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    plain.no_padding()
    plain.enable_truncation(64)
    tokenizer = load_tokenizer(directory, plain.get_vocab_size())
    words = ["space", "rocket", "harvest", "detective", "orchestra", "winter", "recipe", "history", "garden", "night"]
    rng = np.random.default_rng(0)
    listed = [" ".join(rng.choice(words, size=rng.integers(5, 40))) for _ in range(texts)]
    loop, loop_times = median_seconds(lambda: [plain.encode(text).ids for text in listed], repeats=3)
    ours, our_times = median_seconds(lambda: build_store(listed, tokenizer, 64), repeats=3)
    store = build_store(listed, tokenizer, 64)
    agree = all(store.row(n).tolist() == plain.encode(text).ids for n, text in enumerate(listed[:1000]))
    if not agree:
        raise SystemExit("the two tokenisations differ")
    with tempfile.TemporaryDirectory() as folder:
        build_store(listed, tokenizer, 64, cache=Path(folder))
        again, _ = median_seconds(lambda: build_store(listed, tokenizer, 64, cache=Path(folder)), repeats=3)
    return {
        "texts_per_s": texts / ours,
        "loop_texts_per_s": texts / loop,
        "speed": loop / ours,
        "mapped_speed": loop / again,
        "seconds": our_times,
        "loop_seconds": loop_times,
    }


def batches(steps: int) -> dict[str, Any]:
    """How much faster batches are made than the two training steps use them (MovieLens-100K, MiniLM, defaults)."""
    import jax

    from ltrec_jax.config import Config
    from ltrec_jax.data import sources, splits
    from ltrec_jax.train import phases
    from ltrec_jax.train.problem import load_problem

    dataset = sources.load("movielens-100k")
    problem = load_problem(splits.official(dataset, fold="u1"), Config())
    found: dict[str, Any] = {}
    for name, prepare_phase in (
        ("head", lambda: phases.prepare_head(problem, 1, patience=0)),
        ("encoder", lambda: phases.prepare_encoder(problem, 1, patience=0, start=None)),
    ):
        prepared = prepare_phase()
        source, state = prepared.source, prepared.state
        key = problem.spread.replicate(phases.stream(problem, name))
        number = min(steps, source.steps_per_epoch - 1)
        source.batch(0, 0)  # the epoch's order is drawn once
        made = []
        for step in range(number):
            start = time.perf_counter()
            batch = source.batch(0, step)
            made.append(time.perf_counter() - start)
        used = []
        for step in range(number):
            batch = problem.spread.shard(source.batch(0, step))
            start = time.perf_counter()
            state, metrics = prepared.step(state, batch, key)
            jax.block_until_ready((state, metrics))
            used.append(time.perf_counter() - start)
        # The first step compiles.
        found[name] = {
            "batch_seconds": statistics.median(made),
            "step_seconds": statistics.median(used[2:]),
            "ratio": statistics.median(used[2:]) / statistics.median(made),
            "pairs_per_batch": source.pairs_per_epoch / source.steps_per_epoch,
        }
    return found


TASKS = {"prepare": with_prepare, "pandas": with_pandas, "tokens": tokens, "batches": batches}


def compare(folder: Path, rows: int, users: int, *, texts: bool) -> dict[str, Any]:
    """pandas and `prepare` in turn on the same files; the outputs must agree. Medians of `REPEATS` runs each."""
    generate(folder / "raw", rows, users, users, texts=texts)
    runs: dict[str, list[dict[str, Any]]] = {"pandas": [], "prepare": []}
    for _ in range(REPEATS):
        for task, more in (("pandas", {}), ("prepare", {"memory_gib": COMPARED_MEMORY_GIB})):
            runs[task].append(in_child(__file__, task, folder=str(folder / "raw"), out=str(folder / "out"), **more))
            shutil.rmtree(folder / "out")
    shutil.rmtree(folder)
    if (
        len({(run["interactions"], run["users"], run["items"], run["check"]) for each in runs.values() for run in each})
        > 1
    ):
        raise SystemExit("pandas and prepare disagree")
    seconds, cpu, peak = (
        {task: statistics.median(run[key] for run in each) for task, each in runs.items()}
        for key in ("seconds", "cpu_seconds", "peak_gib")
    )
    return {
        "rows": rows,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gib": peak,
        "speed": seconds["pandas"] / seconds["prepare"],
        "memory": peak["prepare"] / peak["pandas"],
        "runs": runs,
    }


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None, help="where the generated files go")
    given = parser.parse_args()
    if ran_task(given, TASKS):
        return
    rows, users, compared = (1_000_000, 50_000, 1_000_000) if given.quick else (100_000_000, 1_000_000, 20_000_000)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-data-") as name:
        folder = Path(name)
        generate(folder / "raw", rows, users, users)
        scale = in_child(
            __file__, "prepare", folder=str(folder / "raw"), out=str(folder / "out"), memory_gib=SCALE_MEMORY_GIB
        )
        shutil.rmtree(folder / "out")
        shutil.rmtree(folder / "raw")
        numbers = compare(folder / "numbers", compared, users, texts=False)
        strings = compare(folder / "strings", compared, users, texts=True)
    tokenised = in_child(__file__, "tokens", texts=5_000 if given.quick else 50_000)
    made = in_child(__file__, "batches", steps=4 if given.quick else 20)
    rate = rows / scale["seconds"]
    headline = {
        "prepare_peak_gib": scale["peak_gib"],
        "prepare_rows_per_s": rate,
        "prepare_speed_vs_pandas": numbers["speed"],
        "prepare_memory_vs_pandas": numbers["memory"],
        "prepare_speed_vs_pandas_text_ids": strings["speed"],
        "prepare_memory_vs_pandas_text_ids": strings["memory"],
        "tokens_vs_loop": tokenised["speed"],
        # The head phase encodes nothing: its step is the fastest there is.
        "batches_vs_step": min(made[phase]["ratio"] for phase in ("encoder", "head")),
    }
    details = {
        "scale": {"rows": rows, **scale},
        "numbers": numbers,
        "strings": strings,
        "tokens": tokenised,
        "batches": made,
    }
    rows_shown = [
        (f"prepare, {rows:,} rows", f"{scale['seconds']:.0f} s, {rate:,.0f} rows/s, {scale['peak_gib']:.2f} GiB"),
        *(
            (
                f"{label}, {each['rows']:,} rows",
                f"{each['seconds']['prepare']:.1f} s, pandas {each['seconds']['pandas']:.1f} s: {each['speed']:.2f}x; "
                f"{each['peak_gib']['prepare']:.2f} GiB, pandas {each['peak_gib']['pandas']:.2f} GiB: "
                f"{each['memory']:.2f}",
            )
            for label, each in (("ids are numbers", numbers), ("ids are texts", strings))
        ),
        ("token store", f"{tokenised['texts_per_s']:,.0f} texts/s, {tokenised['speed']:.2f}x a loop"),
        *(
            (f"batches, {phase}", f"{made[phase]['ratio']:.1f}x faster than the step uses them")
            for phase in ("encoder", "head")
        ),
    ]
    report(given.json, "data", headline, details, rows_shown)


if __name__ == "__main__":
    main()
