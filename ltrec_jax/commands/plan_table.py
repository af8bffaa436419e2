"""A training plan as a table that a newcomer understands. Out of scope: finding it out (`train.plan`)."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from ltrec_jax.train.plan import PhasePlan, Plan

_SOLVES = {
    0: "",
    1: "One exact solve, nothing else learns. ",
    2: "What is shown stands between two exact solves. ",
}
_OF_A_SOLVE = "A solve's time and memory grow with ratings, users and items: seconds for a hundred thousand ratings. "


def plan_table(plan: Plan) -> RenderableType:
    """One column per phase of gradient steps, one row per question; figures of the whole run below."""
    title = "What this training needs"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
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
        "rows in tables": lambda phase: f"{phase.table_rows:,}",
        "tables": lambda phase: _size(phase.table_bytes),
        "optimizer's memory": lambda phase: _size(phase.optimizer_bytes),
        "memory of a step, all in": lambda phase: _size(phase.step_bytes),
        "time, an estimate": lambda phase: _about(plan, phase),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, plan.phases))
    solves = _SOLVES[plan.solves] + (_OF_A_SOLVE if plan.solves else "")
    count = f"{plan.parameters:,} parameters in all (encoder, head, vectors of users and items). "
    if not plan.phases:
        return Group(title, f"{solves}{count}")
    cached = f"{_size(plan.cache_bytes)} of hidden states are kept on disk. " if plan.cache_bytes else ""
    again = "" if plan.solves else "; with refit, up to as long again"
    return Group(
        table,
        f"{solves}{count}{cached}Memory is that of one device, as the compiler plans the step; the program itself and "
        "the data come on top. Time: the encoder's operations at "
        f"{plan.usual_share:.0%} of the {plan.peak / 1e9:,.0f} GFLOP/s just measured for one large product, a usual "
        f"share on a CPU{again}.",
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _about(plan: Plan, phase: PhasePlan) -> str:
    seconds = plan.seconds(phase)
    if not seconds:
        return "small: nothing is encoded"
    if seconds < 60:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
