"""Tables of 10^4 to 10^7 users: seconds of a step and peak memory, beside PyTorch's sparse and dense tables.

    python benchmarks/bench_tables.py --json benchmarks/results/bench_tables.json

*step*: all layers of MiniLM, head and tables on MovieLens-100K's items, its pairs given random users out of N.
*update*: rows of one table are read, their gradient taken (a pull to random targets) and the touched rows updated,
2,048 ids a time. First the tables of both sides must agree after some updates of the same rows. Every size runs in a
process of its own; compilation and the first steps are not in the figures.
"""

import dataclasses
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import GIB, arguments, in_child, ran_task, report

RIVAL = Path(__file__).with_name("torch_tables.py")
WIDTH, PAIRS = 65, 2048
LARGEST_DIFFERENCE = 1e-4


def full_step(num_users: int, steps: int) -> dict[str, Any]:
    """Seconds of fine-tuning steps whose users table has this many rows."""
    import jax
    import jax.numpy as jnp
    import two_tower

    from ltrec_jax.train import phases, sparse_table

    problem = two_tower.problem_of(two_tower.configuration(precision="bfloat16"))
    prepared = phases.prepare_encoder(problem, 1, patience=0, start=None)
    width = problem.config.model.embedding_dim + 1
    users = jax.jit(lambda: sparse_table.make_table(jnp.full((num_users, width), 0.01)))()
    state = dataclasses.replace(prepared.state, tables={**prepared.state.tables, "users": users})
    # The step donates its state: no second name may hold the table.
    del users
    rng, seconds = np.random.default_rng(0), []
    key = problem.spread.replicate(jax.random.key(0))
    first = prepared.source.batch(0, 0)
    for _ in range(steps):
        drawn = rng.integers(0, num_users, first.pair_user.shape, dtype=np.int32)
        pair_user = np.where(first.weight > 0, drawn, num_users).astype(np.int32)
        batch = problem.spread.shard(first._replace(pair_user=pair_user))
        jax.block_until_ready(batch)
        start = time.perf_counter()
        state, metrics = prepared.step(state, batch, key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    table = state.tables["users"]
    held = table.cells.nbytes
    return {"seconds": seconds[3:], "table_gib": held / GIB}


def update(num_users: int, steps: int, same_rows: bool = False) -> dict[str, Any]:
    """Seconds of reading, pulling and updating rows of one table; with `same_rows` also what became of the first."""
    import jax
    import jax.numpy as jnp

    from ltrec_jax.train import sparse_table

    @jax.jit
    def fresh() -> sparse_table.SparseTable:
        return sparse_table.make_table(jnp.full((num_users, WIDTH), 0.01))

    def pull(table: sparse_table.SparseTable, ids: jax.Array, target: jax.Array) -> sparse_table.SparseTable:
        gradient = sparse_table.gather(table, ids) - target
        return sparse_table.sparse_adam(table, ids, gradient, learning_rate=0.01)

    step = jax.jit(pull, donate_argnums=0)
    rng, table, seconds = np.random.default_rng(0), fresh(), []
    for number in range(steps):
        if not number or not same_rows:
            ids = rng.integers(0, num_users, PAIRS, dtype=np.int32)
        target = rng.normal(size=(PAIRS, WIDTH)).astype(np.float32)
        placed = jax.block_until_ready(jax.device_put((ids, target)))
        start = time.perf_counter()
        table = jax.block_until_ready(step(table, *placed))
        seconds.append(time.perf_counter() - start)
    held = table.cells.nbytes
    rows = np.asarray(table.values[jnp.asarray(ids[:8])]).tolist() if same_rows else None
    return {"seconds": seconds[3:], "table_gib": held / GIB, "rows": rows}


def rival(torch_python: str, **asked: Any) -> dict[str, Any]:
    """The same updates in PyTorch, in a process of its own."""
    command = [torch_python, str(RIVAL), json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def must_agree(torch_python: str) -> float:
    """Largest difference of rows that were updated at every step, where all three rules are the same."""
    mine = in_child(__file__, "update", num_users=10_000, steps=5, same_rows=True)["rows"]
    found = 0.0
    for sparse in (True, False):
        theirs = rival(torch_python, num_users=10_000, steps=5, sparse=sparse, same_rows=True)["rows"]
        found = max(found, float(np.abs(np.array(mine) - np.array(theirs)).max()))
    if found > LARGEST_DIFFERENCE:
        raise SystemExit(f"the tables differ by {found:.1e} after the same updates: speeds mean nothing")
    return found


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True)
    given = parser.parse_args()
    if ran_task(given, {"step": full_step, "update": update}):
        return
    import two_tower

    torch_python = given.torch_python or two_tower.default_torch_python()
    sizes = [10_000, 100_000] if given.quick else [10**4, 10**5, 10**6, 10**7]
    rounds, steps = (1, 6) if given.quick else (2, 12)
    difference = must_agree(torch_python)
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}

    def keep(label: str, size: int, result: dict[str, Any]) -> None:
        runs.setdefault(label, {}).setdefault(size, []).append(result)

    for _ in range(rounds):
        for size in sizes:
            keep("step", size, in_child(__file__, "step", num_users=size, steps=steps))
            keep("update", size, in_child(__file__, "update", num_users=size, steps=10 * steps))
    for size in sizes:
        for label, sparse in (("SparseAdam", True), ("dense Adam", False)):
            few = not sparse and size > 10**6
            keep(label, size, rival(torch_python, num_users=size, steps=5 if few else 3 * steps, sparse=sparse))

    def seconds(label: str, size: int) -> float:
        return statistics.median(time for run in runs[label][size] for time in run["seconds"])

    def extra(label: str, size: int) -> float:
        """Peak memory beyond the table, and beyond what the process of the smallest table needs anyway."""
        base = min(run["peak_gib"] - run["table_gib"] for run in runs[label][sizes[0]])
        return max(run["peak_gib"] - run["table_gib"] for run in runs[label][size]) - base

    smallest, largest = sizes[0], sizes[-1]
    headline = {
        "table_time_1e7_vs_1e4": seconds("update", largest) / seconds("update", smallest),
        "table_step_1e7_vs_1e4": seconds("step", largest) / seconds("step", smallest),
        "table_memory_1e7_extra_gib": max(extra("step", largest), extra("update", largest)),
        "table_update_vs_sparse_adam": seconds("SparseAdam", largest) / seconds("update", largest),
        "table_update_vs_dense_adam": seconds("dense Adam", largest) / seconds("update", largest),
    }
    rows = [("rows after the same updates", f"differ by at most {difference:.1e}")]
    for size in sizes:
        times = ", ".join(f"{label} {seconds(label, size) * 1e3:.2f} ms" for label in runs)
        peaks = ", ".join(f"{max(run['peak_gib'] for run in runs[label][size]):.2f}" for label in runs)
        rows.append((f"{size:,} users", f"{times}; peak {peaks} GiB"))
    rows += [(label, f"{value:.2f}") for label, value in headline.items()]
    report(given.json, "tables", headline, {"difference": difference, "runs": runs}, rows)


if __name__ == "__main__":
    main()
