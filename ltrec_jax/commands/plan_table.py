"""A training plan as a table that a newcomer understands. Out of scope: finding it out (`train.plan`)."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from ltrec_jax.train.plan import Plan


def plan_table(plan: Plan) -> RenderableType:
    """All stages in order with memory and time; one column per phase of gradient steps; figures of the whole run."""
    stages = Table(title="What this training needs, in order", title_justify="left", box=box.SIMPLE)
    for number, name in enumerate(("", "memory", "time, an estimate")):
        stages.add_column(name, justify="right" if number else "left")
    for stage in plan.stages:
        memory = _size(stage.bytes) if stage.phase else f"over {_size(stage.bytes)}"
        stages.add_row(f"phase {stage.name}" if stage.phase else stage.name, memory, _about(stage.seconds))
    parts: list[RenderableType] = [stages]
    if plan.phases:
        parts.append(_phases(plan))
    return Group(*parts, " ".join(_remarks(plan)))


def _phases(plan: Plan) -> Table:
    table = Table(title="Phases of gradient steps", title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for phase in plan.phases:
        table.add_column(f"phase {phase.name}", justify="right")
    rows = {
        "epochs at most": lambda phase: f"{phase.epochs}",
        "updates per epoch": lambda phase: f"{phase.steps_per_epoch:,}",
        "pairs per epoch": lambda phase: f"{phase.pairs_per_epoch:,}",
        "texts encoded per epoch": lambda phase: f"{phase.encodings_per_epoch:,}",
        "tokens encoded per epoch": lambda phase: f"{phase.tokens_per_epoch:,}",
        "parameters that learn": lambda phase: f"{phase.trainable:,} ({phase.trainable / plan.parameters:.0%})",
        "rows in tables": lambda phase: f"{phase.table_rows:,}" if phase.table_rows else "no tables",
        "tables": lambda phase: _size(phase.table_bytes) if phase.table_rows else "no tables",
        "optimizer's memory": lambda phase: _size(phase.optimizer_bytes),
        "memory of a step, all in": lambda phase: _size(phase.step_bytes),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, plan.phases))
    return table


def _remarks(plan: Plan) -> Iterator[str]:
    yield f"{plan.parameters:,} parameters in all (encoder, head, vectors of users and items)."
    if plan.cache_bytes:
        yield f"{_size(plan.cache_bytes)} of hidden states are kept on disk, and that stage is skipped where they are."
    yield (
        "Memory is that of one device; the program itself and the data come on top. A phase's is what the compiler "
        'plans for a step; "over" is the sum of the arrays that a stage holds, without what its programs use beside '
        "them."
    )
    yield (
        "Time: the encoder's operations at a usual share on a CPU "
        f"({plan.usual_share:.0%} where it learns, {plan.encoding_share:.0%} where it does not) of the "
        f"{plan.peak / 1e9:,.0f} GFLOP/s just measured for one large product; compiling comes on top."
    )
    if plan.solves:
        yield (
            "A solve's time is a guess, to a factor of about two, from what such solves took on a 2-core Xeon: "
            "nothing of it is measured here."
        )
    else:
        yield "With refit, the phases take up to as long again."


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _about(seconds: float) -> str:
    if not seconds:
        return "small: nothing is encoded"
    if seconds < 1:
        return "under 1 s"
    if seconds < 60:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
