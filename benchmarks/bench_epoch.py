"""One epoch of fine-tuning, all layers learning, beside PyTorch on as many pairs; then the lower half frozen.

    python benchmarks/bench_epoch.py --json benchmarks/results/bench_epoch.json
    python benchmarks/bench_epoch.py --dataset movielens-1m --json benchmarks/results/bench_epoch_1m.json

Ours is timed as a run has it, making batches included; PyTorch's batches are made outside of its time. `plain` PyTorch
(the text of every pair, batches of 64) is a timed slice, extrapolated to the epoch; so is the deduplicated one on
MovieLens-1M.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, in_child, ran_task, report

PRECISIONS = ("float32", "bfloat16")
# What learns -> settings of ours. Only "all layers" is run in float32 too.
ALL = "all layers"
CACHED = "upper half, lower cached"
OURS: dict[str, dict[str, Any]] = {
    ALL: {},
    "all layers, 64 ratings to an encoding": {"pairs_per_item": 64},
    CACHED: {"trainable": "top:3"},
    "upper half, lower computed": {"trainable": "top:3", "cache_layers": False},
}
PLAIN_BATCH = 64


def ours(dataset: str, precision: str, epochs: int, train: dict[str, Any], exchange: str = "") -> dict[str, Any]:
    """Train on our side; with an `exchange` folder, leave the epoch's batches there for PyTorch."""
    import two_tower

    from ltrec_jax.train import phases

    problem = two_tower.problem_of(two_tower.configuration(dataset, precision=precision, **train))
    prepared = phases.prepare_encoder(problem, epochs + 1, patience=0, start=None)
    if exchange:
        two_tower.write_exchange(problem, prepared, Path(exchange), prepared.source.steps_per_epoch)
    return two_tower.epochs_of_ours(problem, prepared, epochs)


def slices(folder: Path, torch_python: str, pairs: int, steps: int, whole: int) -> dict[str, dict[str, Any]]:
    """PyTorch's variants: seconds of an epoch of `pairs`, from `steps` timed steps; `whole`: our steps per epoch."""
    import two_tower

    found = {}
    for precision in PRECISIONS:
        plain = two_tower.run_rival(
            folder, torch_python, variant="plain", precision=precision, steps=steps, batch=PLAIN_BATCH
        )
        updates = -(-pairs // PLAIN_BATCH)
        found[f"plain, {precision}"] = _extrapolated(plain, updates)
        for name, sparse in (("dense Adam", False), ("SparseAdam", True)):
            asked = {"variant": "deduplicated", "precision": precision, "sparse": sparse, "steps": min(whole, 40)}
            found[f"deduplicated, {precision}, {name}"] = _extrapolated(
                two_tower.run_rival(folder, torch_python, **asked), whole
            )
    return found


def _extrapolated(run: dict[str, Any], updates: int) -> dict[str, Any]:
    """The first two steps warm up; the mean of the others counts, since batches differ in length."""
    steady = run["seconds"][2:]
    return {
        "timed_steps": len(steady),
        "updates": updates,
        "epoch_seconds": statistics.mean(steady) * updates,
        "seconds": run["seconds"],
        "peak_gib": run["peak_gib"],
        "torch": run["torch"],
    }


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True)
    parser.add_argument("--dataset", default="movielens-100k")
    given = parser.parse_args()
    if ran_task(given, {"ours": ours}):
        return
    import two_tower

    large = given.dataset != "movielens-100k"
    epochs, steps = (1, 5) if given.quick else (3, 22)
    mine: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-epoch-") as name:
        folder = Path(name) / "exchange"
        for label, train in OURS.items():
            # Of the large data set only what the headline needs: an epoch takes minutes.
            if large and label not in (ALL, CACHED):
                continue
            for precision in PRECISIONS if label == ALL and not large else PRECISIONS[-1:]:
                place = str(folder) if label == ALL and precision == "bfloat16" else ""
                settings = {"dataset": given.dataset, "precision": precision, "epochs": epochs, "train": train}
                mine[f"{label}, {precision}"] = in_child(__file__, "ours", **settings, exchange=place)
        full = mine[f"{ALL}, bfloat16"]
        theirs = slices(
            folder, given.torch_python or two_tower.default_torch_python(), round(full["pairs"]), steps, full["updates"]
        )

    def fastest(label: str) -> float:
        return min(run["median_seconds"] for each, run in mine.items() if each.rpartition(", ")[0] == label)

    def rival(start: str) -> float:
        return min(run["epoch_seconds"] for label, run in theirs.items() if label.startswith(start))

    best = fastest(ALL)
    figures = {
        "epoch_vs_plain": rival("plain, float32") / best,
        "epoch_vs_plain_bfloat16": rival("plain, bfloat16") / best,
        "epoch_vs_dedup": rival("deduplicated") / best,
        "epoch_seconds": best,
        "epoch_updates": full["updates"],
        "epoch_updates_plain": theirs["plain, float32"]["updates"],
        "epoch_cached_gain": best / fastest(CACHED),
    }
    headline = {("ml1m_" if large else "") + key: float(value) for key, value in figures.items()}
    rows = [
        (
            f"ours, {label}",
            f"{run['median_seconds']:.2f} s ({run['updates']} updates, {run['encodings']:,} encodings; "
            f"first epoch, compiling: {run['first_epoch_seconds']:.1f} s; validation RMSE {run['rmse']:.4f})",
        )
        for label, run in mine.items()
    ]
    rows += [
        (f"PyTorch, {label}", f"{run['epoch_seconds']:.1f} s ({run['updates']} updates, {run['timed_steps']} timed)")
        for label, run in theirs.items()
    ]
    rows += [(label, f"{value:.2f}") for label, value in headline.items()]
    report(given.json, "epoch", headline, {"dataset": given.dataset, "ours": mine, "torch": theirs}, rows)


if __name__ == "__main__":
    main()
