"""The exact solves at 10^5, 10^6 and 10^7 interactions: does a pass cost what its interactions cost, and what memory.

    python benchmarks/bench_solves.py --json benchmarks/results/bench_solves.json

Synthetic events, streamed to Parquet and read back shard by shard, with 50 draws for each user and 200 for each item
(Zipf's law; pairs that come again are dropped). *solve*: seconds of one alternation, users then items, of
`solve.anchored_als` at width 32. *VB*: seconds of one iteration of `solve.bayes` with 8 factors over popularity and 20
text dimensions. *Gibbs*: seconds of one sweep of it that counts towards the mean, with 16 factors over the same. All
are differences of a longer and a shorter run after one that compiles. Every measurement runs in a process of its own; a
table of users x items would not fit into the memory that it takes.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import GIB, arguments, in_child, ran_task, report

from ltrec_jax import parallel, storage

WIDTH, TEXT_DIMS = 32, 20
PER_USER, PER_ITEM = 50, 200
PASSES = {2_000_000: 2, 500_000: 5, 0: 10}
"""Of the longer run, by the least number of interactions; the shorter one has a single pass.

A real Gibbs run merges its samples in chunks of ten sweeps, which costs each of them somewhat more than here.
"""
FULL, QUICK = (100_000, 1_000_000, 10_000_000), (2_000, 20_000, 200_000)


def sizes(events: int) -> tuple[int, int]:
    """(users, items)."""
    return events // PER_USER, events // PER_ITEM


def make(folder: str, events: int) -> dict[str, Any]:
    """Stream the events of one size to `folder`."""
    from ltrec_jax.data import synthetic

    users, items = sizes(events)
    started = time.perf_counter()
    synthetic.stream(Path(folder) / str(events), users, items, events, zipf=0.8, cold_share=0.0)
    return {"seconds": time.perf_counter() - started}


def read(folder: str, events: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, item, rating) of the distinct pairs, sorted by user and item."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = []
    for shard in sorted((Path(folder) / str(events) / "interactions").glob("*.parquet")):
        table = pq.read_table(shard, columns=["user_id", "item_id", "rating"])
        ids = (pc.cast(pc.utf8_slice_codeunits(table[name], 1), pa.int32()) for name in ("user_id", "item_id"))
        parts.append([column.to_numpy() for column in (*ids, table["rating"])])
    user, item, rating = (np.concatenate(each) for each in zip(*parts, strict=True))
    key, first = np.unique(user.astype(np.int64) * sizes(events)[1] + item, return_index=True)
    return (key // sizes(events)[1]).astype(np.int32), (key % sizes(events)[1]).astype(np.int32), rating[first]


def passes(run: Callable[[int], Any], events: int, compiled: Callable[[int], Any]) -> dict[str, float]:
    """Seconds of one pass of `run(passes)`, and of what comes before and after them. `compiled(passes)` warms it up."""
    more = next(count for least, count in PASSES.items() if events >= least)
    compiled(more)
    taken = []
    for count in (1, more):
        started = time.perf_counter()
        run(count)
        taken.append(time.perf_counter() - started)
    seconds = (taken[1] - taken[0]) / (more - 1)
    return {"seconds": seconds, "around_seconds": taken[0] - seconds}


def solve(folder: str, events: int) -> dict[str, Any]:
    """The whole-data solve with random anchors."""
    from ltrec_jax.config import WholeDataConfig
    from ltrec_jax.solve import anchored_als

    user, item, _ = read(folder, events)
    num_users, num_items = sizes(events)
    anchor_IxD = (0.4 / WIDTH**0.5 * np.random.default_rng(0).normal(size=(num_items, WIDTH))).astype(np.float32)

    def run(alternations: int) -> None:
        settings = dataclasses.replace(WholeDataConfig(), alternations=alternations)
        found = anchored_als.solve(user, item, anchor_IxD, num_users=num_users, settings=settings)
        if not np.all(np.diff(found.objective) < 1e-5 * abs(found.objective[0])):
            raise SystemExit(f"the objective rose: {found.objective}")

    return passes(run, events, lambda _: run(1)) | {"distinct": len(user)}


def rated(folder: str, events: int) -> tuple[Any, ...]:
    """What the Bayesian solves take: users, items and ratings, and side information with random text dimensions."""
    from ltrec_jax.solve import side_information

    user, item, rating = read(folder, events)
    num_users, num_items = sizes(events)
    counts_U, counts_I = np.bincount(user, minlength=num_users), np.bincount(item, minlength=num_items)
    text = np.random.default_rng(0).normal(size=(num_items, TEXT_DIMS))
    users = side_information.assemble({"popularity": side_information.popularity(counts_U)}, counts_U > 0)
    items = side_information.assemble({"popularity": side_information.popularity(counts_I), "text": text}, counts_I > 0)
    return user, item, rating, users, items


def variational(folder: str, events: int) -> dict[str, Any]:
    """Variational Bayes."""
    from ltrec_jax.config import BayesConfig
    from ltrec_jax.solve import bayes

    problem = rated(folder, events)

    def run(iterations: int) -> None:
        settings = dataclasses.replace(BayesConfig(), iterations=iterations)
        found = bayes.fit_vb(*problem, settings=settings)
        if not np.isfinite(found.bound).all():
            raise SystemExit(f"the bound is not finite: {found.bound}")

    return passes(run, events, both(run)) | {"distinct": len(problem[0])}


def gibbs(folder: str, events: int) -> dict[str, Any]:
    """Gibbs sampling without burn-in: a sweep that is thrown away costs no more than one that counts."""
    from ltrec_jax.config import BayesConfig
    from ltrec_jax.solve import bayes

    problem = rated(folder, events)

    def run(sweeps: int) -> None:
        # Samples that are not finite are refused by the solve itself.
        bayes.fit_gibbs(*problem, settings=dataclasses.replace(BayesConfig(), sweeps=sweeps, burn_in=0))

    return passes(run, events, both(run)) | {"distinct": len(problem[0])}


def both(run: Callable[[int], None]) -> Callable[[int], None]:
    """Warms up runs of which as many passes as one has are one compiled program: the shorter and the longer one."""

    def warm_up(more: int) -> None:
        run(1)
        run(more)

    return warm_up


TASKS = {"make": make, "solve": solve, "variational": variational, "gibbs": gibbs}
SOLVES = {"solve": "solve", "variational": "vb", "gibbs": "gibbs"}
"""Task -> its name in the headline."""


def nanoseconds(run: dict[str, Any]) -> float:
    """Of one pass, for each distinct interaction."""
    return 1e9 * float(run["seconds"]) / float(run["distinct"])


def main() -> None:
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    if ran_task(given, TASKS):
        return
    counts = QUICK if given.quick else FULL
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in TASKS}
    with tempfile.TemporaryDirectory(prefix="bench-solves-") as folder:
        for name in TASKS:
            for events in counts:
                runs[name][events] = in_child(__file__, name, folder=folder, events=events)
    middle, largest = counts[1:]
    table_gib = 4 * sizes(largest)[0] * sizes(largest)[1] / GIB
    peak = max(runs[name][largest]["peak_gib"] for name in SOLVES)
    if not given.quick and peak > table_gib / 2:
        raise SystemExit(f"{peak:.1f} GiB at the peak: a table of users x items ({table_gib:.1f} GiB) may hide in it")
    headline = {"solve_events_1e7_vs_1e6": runs["solve"][largest]["distinct"] / runs["solve"][middle]["distinct"]}
    for name, short in SOLVES.items():
        headline |= {
            f"{short}_seconds_1e7_vs_1e6": runs[name][largest]["seconds"] / runs[name][middle]["seconds"],
            f"{short}_seconds_1e7": runs[name][largest]["seconds"],
            f"{short}_ns_per_event_1e6": nanoseconds(runs[name][middle]),
            f"{short}_ns_per_event_1e7": nanoseconds(runs[name][largest]),
            f"{short}_peak_gib_1e7": runs[name][largest]["peak_gib"],
        }
    headline["solve_users_x_items_gib_1e7"] = table_gib
    rows = [
        (
            f"{name} at {events:,}",
            f"{run['seconds']:.3f} s a pass ({nanoseconds(run):.0f} ns for each of "
            f"{run['distinct']:,} distinct pairs), {run['around_seconds']:.1f} s around, {run['peak_gib']:.2f} GiB",
        )
        for name in SOLVES
        for events, run in runs[name].items()
    ]
    rows += [(label, f"{value:.3g}") for label, value in headline.items()]
    report(given.json, "solves", headline, {"runs": runs}, rows)


if __name__ == "__main__":
    main()
