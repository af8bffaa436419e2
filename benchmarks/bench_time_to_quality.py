"""Seconds of training until a validation RMSE on MovieLens-100K, all layers learning: ours and PyTorch.

    python benchmarks/bench_time_to_quality.py --json benchmarks/results/bench_time_to_quality.json

All start from the same weights. Ours and deduplicated PyTorch train on the same batches, under a schedule that ends
with our run; the target is what ours reaches, and each side's time is that of the first evaluation at it or below.
Evaluations, compiling and PyTorch's making of batches are not in the times. Plain PyTorch encodes the text of every
pair, 64 per update; its learning rates stay at their peaks after the warm-up, which favours it, and it is given up
after `--plain-steps` updates: then its time is a lower bound.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, in_child, ran_task, report

SIZES = {"batch_pairs": 512, "batch_items": 64}
EPOCHS = 2
PLAIN_BATCH = 64


def ours(precision: str, epochs: int, every: int, exchange: str = "") -> dict[str, Any]:
    """Our learning curve; with an `exchange` folder, leave all batches there for PyTorch."""
    import two_tower

    from ltrec_jax.train import phases

    problem = two_tower.problem_of(two_tower.configuration(precision=precision, **SIZES))
    prepared = phases.prepare_encoder(problem, epochs, patience=0, start=None)
    if exchange:
        two_tower.write_exchange(problem, prepared, Path(exchange), epochs * prepared.source.steps_per_epoch)
    return two_tower.curve_of_ours(problem, prepared, every)


def reached(curve: list[dict[str, float]], rmse: float) -> dict[str, float] | None:
    """The first evaluation that is as good."""
    return next((point for point in curve if point["rmse"] <= rmse), None)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True)
    parser.add_argument("--plain-steps", type=int, default=400, help="updates after which plain PyTorch is given up")
    given = parser.parse_args()
    if ran_task(given, {"ours": ours}):
        return
    import two_tower

    torch_python = given.torch_python or two_tower.default_torch_python()
    every, epochs = (20, 1) if given.quick else (20, EPOCHS)
    with tempfile.TemporaryDirectory(prefix="bench-quality-") as name:
        folder = Path(name) / "exchange"
        mine = in_child(__file__, "ours", precision="bfloat16", epochs=epochs, every=every, exchange=str(folder))
        target = min(point["rmse"] for point in mine["curve"])
        # bfloat16 rounds differently on both sides: what is worse by less than a thousandth is as good.
        good = target + 1e-3
        asked = {"precision": "bfloat16", "every": every, "until": good}
        updates = mine["curve"][-1]["updates"]
        dedup = two_tower.run_rival(
            folder, torch_python, variant="deduplicated", sparse=True, steps=int(updates), **asked
        )
        settings = json.loads((folder / "settings.json").read_text())
        warm = round(settings["total_steps"] * settings["warmup"])
        # A horizon so far that nothing decays while it trains; the same number of warm-up steps.
        settings |= {"total_steps": 1 << 20, "warmup": warm / (1 << 20)}
        (folder / "settings.json").write_text(json.dumps(settings))
        plain = two_tower.run_rival(
            folder,
            torch_python,
            variant="plain",
            batch=PLAIN_BATCH,
            steps=20 if given.quick else given.plain_steps,
            **(asked | {"precision": "float32", "every": 3 * every}),
        )

    best = reached(mine["curve"], good)
    found = {"plain": reached(plain["curve"], good), "deduplicated": reached(dedup["curve"], good)}
    assert best is not None
    rows = [("target: validation RMSE at most", f"{good:.4f}"), _row("ours, bfloat16", best)]
    headline = {"quality_rmse": good, "quality_seconds": best["seconds"]}
    for label, curve, key in (
        ("deduplicated", dedup["curve"], "quality_seconds_vs_dedup"),
        ("plain", plain["curve"], "quality_seconds_vs_plain"),
    ):
        point = found[label] or curve[-1]
        headline[key] = point["seconds"] / best["seconds"]
        rows.append(_row(f"PyTorch, {label}" + ("" if found[label] else ", not reached"), point))
    rows += [(label, f"{value:.2f}") for label, value in headline.items() if "_vs_" in label]
    details = {
        "sizes": SIZES,
        "ours": mine,
        "deduplicated": dedup["curve"],
        "plain": plain["curve"],
        "not_reached": [label for label, point in found.items() if point is None],
    }
    report(given.json, "time to quality", headline, details, rows)


def _row(label: str, point: dict[str, float]) -> tuple[str, str]:
    return label, f"{point['seconds']:.1f} s, {point['updates']:.0f} updates, RMSE {point['rmse']:.4f}"


if __name__ == "__main__":
    main()
