"""Seconds of training until a validation RMSE on MovieLens-100K, all layers learning: ours and PyTorch.

    python benchmarks/bench_time_to_quality.py --json benchmarks/results/bench_time_to_quality.json

All start from the same weights. Ours and deduplicated PyTorch train on the same batches: head and tables on frozen text
vectors, then everything. Each side's time has its own encoding of the texts in it (PyTorch's in batches of sorted
length). The target is what ours reaches in the end, and each side's time is that of the first evaluation at it or
below. Plain PyTorch trains everything from the start: it encodes the text of every pair, 64 per update; its learning
rates stay at their peaks after the warm-up, which favours it, and it is given up after `--plain-seconds`: then its time
is a lower bound. Evaluations, compiling and PyTorch's making of batches are not in the times.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, in_child, median_seconds, ran_task, report

HEAD_EPOCHS, EPOCHS = 12, 2
# The two sides round differently: what is worse by so little is as good.
AS_GOOD = 5e-4
PLAIN_BATCH = 64


def ours(epochs: tuple[int, int], every: int, exchange: str) -> dict[str, Any]:
    """Our learning curve, head phase and encoder phase; leaves all batches in `exchange` for PyTorch."""
    import two_tower

    from ltrec_jax.encoder import catalogue
    from ltrec_jax.train import phases

    problem = two_tower.problem_of(two_tower.configuration(precision="bfloat16"))
    encoding, _ = median_seconds(
        lambda: catalogue.encode_catalogue(problem.encoder, problem.tokens, policy="bfloat16", progress=False), 3
    )
    # A state is gone after the first step with it: each phase is prepared anew for training.
    head = phases.prepare_head(problem, epochs[0], patience=0)
    first = phases.prepare_encoder(problem, epochs[1], patience=0, start=None)
    two_tower.write_exchange(problem, first, Path(exchange), epochs[1] * first.source.steps_per_epoch, head)
    head_every = head.source.steps_per_epoch
    curve, state = two_tower.curve_of_ours(problem, head, head_every)
    second = phases.prepare_encoder(problem, epochs[1], patience=0, start=state)
    more, _ = two_tower.curve_of_ours(problem, second, every)
    curve += [{k: v + (curve[-1][k] if k != "rmse" else 0.0) for k, v in point.items()} for point in more]
    curve = [point | {"seconds": point["seconds"] + encoding} for point in curve]
    return {
        "curve": curve,
        "encoding": encoding,
        "head_every": head_every,
        "steps": int(more[-1]["updates"]),
        "pairs": len(problem.split.train),
    }


def reached(curve: list[dict[str, float]], rmse: float) -> dict[str, float] | None:
    """The first evaluation that is as good."""
    return next((point for point in curve if point["rmse"] <= rmse), None)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True)
    parser.add_argument(
        "--plain-seconds", type=float, default=120.0, help="of training until plain PyTorch is given up"
    )
    given = parser.parse_args()
    if ran_task(given, {"ours": ours}):
        return
    import two_tower

    torch_python = given.torch_python or two_tower.default_torch_python()
    epochs = (2, 1) if given.quick else (HEAD_EPOCHS, EPOCHS)
    every = 18
    with tempfile.TemporaryDirectory(prefix="bench-quality-") as name:
        folder = Path(name) / "exchange"
        mine = in_child(__file__, "ours", epochs=epochs, every=every, exchange=str(folder))
        good = min(point["rmse"] for point in mine["curve"]) + AS_GOOD
        dedup = two_tower.run_rival(
            folder,
            torch_python,
            variant="deduplicated",
            precision="bfloat16",
            sparse=True,
            head_steps=epochs[0] * mine["head_every"],
            head_every=mine["head_every"],
            steps=mine["steps"],
            every=every,
            until=good,
        )
        dedup["curve"] = [point | {"seconds": point["seconds"] + dedup["encoding"]} for point in dedup["curve"]]
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
            steps=1 << 20,
            every=4 if given.quick else 100,
            until=good,
            limit=5.0 if given.quick else given.plain_seconds,
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
    per_epoch = mine["head_every"]
    details = {
        "updates_per_epoch": {
            "ours": per_epoch,
            "deduplicated": per_epoch,
            "plain": -(-mine["pairs"] // PLAIN_BATCH),
        },
        "versions_of_torch": {name: dedup[name] for name in ("torch", "transformers", "device")},
        "ours": mine,
        "deduplicated": dedup["curve"],
        "deduplicated_encoding": dedup["encoding"],
        "plain": plain["curve"],
        "not_reached": [label for label, point in found.items() if point is None],
    }
    report(given.json, "time to quality", headline, details, rows)


def _row(label: str, point: dict[str, float]) -> tuple[str, str]:
    return label, f"{point['seconds']:.1f} s, {point['updates']:.0f} updates, RMSE {point['rmse']:.4f}"


if __name__ == "__main__":
    main()
