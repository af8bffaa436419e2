"""One fine-tuning step beside PyTorch on the very same batches: first the losses must agree, then seconds are compared.

    python benchmarks/bench_train_step.py --json benchmarks/results/bench_train_step.json

The rival gets the batches that ltrec_jax makes, each text once and packed, and its fastest setting counts: dense Adam
or SparseAdam for the tables, float32 or bfloat16 autocast.
"""

import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, in_child, ran_task, report

LARGEST_DIFFERENCE = 1e-3
RIVALS = {"dense Adam": {"sparse": False}, "SparseAdam": {"sparse": True}}


def ours(folder: str, precision: str, steps: int, table_optimizer: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Train on our side; the first call of a folder writes the exchange."""
    import two_tower

    from ltrec_jax.train import phases

    config = two_tower.configuration(precision=precision, table_optimizer=table_optimizer, **sizes)
    problem = two_tower.problem_of(config)
    prepared = phases.prepare_encoder(problem, 1, patience=0, start=None)
    place = Path(folder)
    if not place.exists():
        two_tower.write_exchange(problem, prepared, place, steps)
    return two_tower.run_ours(problem, prepared, steps)


def curves(folder: Path, steps: int, torch_python: str) -> dict[str, float]:
    """Largest relative difference of the losses of each variant from ours, in float32 with dense Adam on both sides."""
    import two_tower

    sizes = {"batch_pairs": 256, "batch_items": 64}
    mine = in_child(
        __file__,
        "ours",
        folder=str(folder),
        precision="float32",
        steps=steps,
        table_optimizer="dense_adam",
        sizes=sizes,
    )
    found = {}
    for name, asked in {
        "deduplicated": {"variant": "deduplicated"},
        "plain": {"variant": "plain", "like_packed": True},
    }.items():
        theirs = two_tower.run_rival(folder, torch_python, steps=steps, **asked)
        found[name] = two_tower.largest_difference(mine["losses"], theirs["losses"])
        if found[name] > LARGEST_DIFFERENCE:
            raise SystemExit(f"the losses of the {name} variant differ by {found[name]:.1e}: speeds mean nothing")
    return found


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True)
    given = parser.parse_args()
    if ran_task(given, {"ours": ours}):
        return
    import two_tower

    torch_python = given.torch_python or two_tower.default_torch_python()
    # A process as a whole is up to a tenth faster or slower than the next: only many of them, in turns, compare.
    steps, rounds = (5, 1) if given.quick else (20, 5)
    mine: dict[str, list[dict[str, Any]]] = {}
    theirs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-step-") as name:
        equal = curves(Path(name) / "small", steps, torch_python)
        folder = Path(name) / "default"
        for _ in range(rounds):
            for precision in ("float32", "bfloat16"):
                settings = {"folder": str(folder), "precision": precision, "steps": steps, "sizes": {}}
                result = in_child(__file__, "ours", **settings, table_optimizer="sparse_adam")
                mine.setdefault(precision, []).append(two_tower.summary(result))
                for rival, asked in RIVALS.items():
                    result = two_tower.run_rival(
                        folder, torch_python, variant="deduplicated", precision=precision, steps=steps, **asked
                    )
                    theirs.setdefault(f"{precision}, {rival}", []).append(two_tower.summary(result))
    seconds = {label: two_tower.middle(runs) for label, runs in {**mine, **theirs}.items()}
    best_float32 = min(seconds[f"float32, {rival}"] for rival in RIVALS)
    best = min(seconds[label] for label in theirs)
    headline = {
        "step_f32_vs_torch": best_float32 / seconds["float32"],
        "step_best_vs_torch": best / min(seconds["float32"], seconds["bfloat16"]),
    }
    rows = [(f"losses, {name}", f"differ by at most {value:.1e}") for name, value in equal.items()]
    rows += [(f"ours, {label}", f"{seconds[label] * 1e3:.0f} ms") for label in mine]
    rows += [(f"PyTorch, {label}", f"{seconds[label] * 1e3:.0f} ms") for label in theirs]
    rows += [(label, f"{value:.2f}x") for label, value in headline.items()]
    report(given.json, "train_step", headline, {"losses": equal, "ours": mine, "torch": theirs}, rows)


if __name__ == "__main__":
    main()
