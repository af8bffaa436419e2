"""Gradient training from start to end: the head on frozen text vectors, then encoder and head together.

Out of scope: what a phase is (`phases`), exact solves (`schedule`).
"""

from pathlib import Path

from ltrec_jax.train import phases
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.loop import Outcome
from ltrec_jax.train.phases import ENCODER, HEAD, Prepared
from ltrec_jax.train.problem import Problem
from ltrec_jax.types import MetricWriter


def run(
    problem: Problem,
    epochs: dict[str, int],
    patience: int,
    checkpoints: Path,
    writer: MetricWriter,
    *,
    label: str = "",
    trace: tuple[Path, int] | None = None,
) -> dict[str, tuple[Prepared, Outcome]]:
    """Run the phases that have epochs, in order. Each starts from the outcome of the one before; the last is traced."""
    finished: dict[str, tuple[Prepared, Outcome]] = {}
    if epochs.get(HEAD) or not epochs.get(ENCODER):
        prepared = phases.prepare_head(problem, epochs.get(HEAD, 0), patience=patience)
        with Checkpoints(checkpoints / HEAD, keep=problem.config.train.checkpoints) as kept:
            last = None if epochs.get(ENCODER) else trace
            finished[HEAD] = prepared, phases.run(problem, prepared, kept, writer, label=label, trace=last)
    if epochs.get(ENCODER):
        start = finished[HEAD][1].state if HEAD in finished else None
        prepared = phases.prepare_encoder(problem, epochs[ENCODER], patience=patience, start=start)
        with Checkpoints(checkpoints / ENCODER, keep=problem.config.train.checkpoints) as kept:
            finished[ENCODER] = prepared, phases.run(problem, prepared, kept, writer, label=label, trace=trace)
    return finished
