"""What a dial costs: accuracy on warm and on tail items when a model is turned from frequent to rare items.

A dial is known by its scores only: one model for each place (`solve.cold_start` has ours). Whoever turns it tells the
reader how, by the line `dial` of the report's protocol.
"""

from collections.abc import Mapping

from ltrec_jax.evaluation import measure
from ltrec_jax.evaluation.exam import Exam, top_lists
from ltrec_jax.evaluation.ranking import Lists
from ltrec_jax.evaluation.results import AMONG, GROUP, DialPoint
from ltrec_jax.evaluation.slices import Slice
from ltrec_jax.types import Recommender


def curve(
    places: Mapping[float, Recommender], asked: Exam, parts: list[Slice], *, block_users: int, name: str
) -> tuple[DialPoint, ...]:
    """Accuracy at each place of the dial, ascending: nDCG at the first cutoff, mean over users with a target."""
    metric = f"ndcg@{asked.cutoffs[0]}"
    named = {part.name: part for part in parts if part.kind == GROUP}
    parts_of = (("warm", f"warm{AMONG}warm"), ("tail", f"tail{AMONG}warm"), ("cold", f"cold{AMONG}cold"))
    points = []
    for place in sorted(places):
        lists = top_lists(places[place], asked, block_users=block_users, name=f"{name} at {place:g}")
        values = {group: _value(asked, lists, named.get(part, named.get(group)), metric) for group, part in parts_of}
        points.append(DialPoint(place, **values))
    return tuple(points)


def _value(asked: Exam, lists: Mapping[str, Lists], part: Slice | None, metric: str) -> float | None:
    if part is None:
        return None
    found = measure.ranking_sums(asked, lists, part, [metric])[metric]
    return float(found.total_U.sum() / found.count_U.sum()) if found.count_U.any() else None
