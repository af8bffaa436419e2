"""How well a model does on the validation part of a split: what settings are chosen by. The test part is not looked at.

The figures are those of the report, computed by the same code. Out of scope: which settings are tried (`search`).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ltrec_jax.data.dataset import Split
from ltrec_jax.data.popularity import popularity
from ltrec_jax.errors import UserError, unknown_name
from ltrec_jax.evaluation import exam, measure, rating
from ltrec_jax.evaluation.exam import Exam
from ltrec_jax.evaluation.results import GROUP, SUM
from ltrec_jax.evaluation.slices import Slice
from ltrec_jax.types import Recommender

CUTOFF = 20
RMSE, OVERALL = "rmse", "overall"
RANKED = ("warm", "tail", "cold")
OBJECTIVES = (RMSE, OVERALL, *RANKED, SUM)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Figures of a model on validation. `parts`: whole catalogue, and warm, tail and cold where they have targets."""

    asked: Exam
    parts: Mapping[str, Slice]

    def figures(self, model: Recommender, *, name: str, rates: bool) -> dict[str, float]:
        """RMSE of a model that predicts ratings; nDCG@20 overall, warm, tail, cold and their sum of any.

        Warm and tail targets are ranked among warm items and cold ones among cold items. A part without targets is
        left out, and adds nothing to the sum.
        """
        found = {}
        if rates:
            test = self.asked.test
            scored = rating.predictions(model.score_pairs, test.user, test.item, name=name)
            found[RMSE] = float(np.sqrt(np.mean(rating.errors(scored, test.rating) ** 2)))
        metric = f"ndcg@{CUTOFF}"
        lists = exam.top_lists(model, self.asked, block_users=exam.topk.BLOCK_USERS, name=name)
        for part, where in self.parts.items():
            sums = measure.ranking_sums(self.asked, lists, where, [metric])[metric]
            found[part] = float(sums.total_U.sum() / sums.count_U.sum())
        found[SUM] = sum(found.get(part, 0.0) for part in RANKED)
        return found

    def value(self, figures: Mapping[str, float], objective: str) -> float:
        """The figure to be chosen by; `UserError` for one that this model or this validation part does not have."""
        if objective not in OBJECTIVES:
            raise unknown_name("objective", objective, OBJECTIVES)
        if objective not in figures:
            raise UserError(
                f"Objective {objective} has no value here: "
                + ("the model predicts no ratings." if objective == RMSE else "validation has no such target.")
            )
        return figures[objective]


def validation_as_test(split: Split) -> Split:
    """The same training part, scored on validation; the test part is gone. `UserError` without validation events."""
    if len(split.validation_rows) == 0:
        raise UserError(
            f"Split {split.name!r} has no validation part, and settings are never chosen on test. Set data.validation."
        )
    return dataclasses.replace(split, test_rows=split.validation_rows, validation_rows=np.zeros(0, np.int64))


def judge(split: Split, positive_rating: float) -> Judge:
    """The judge of a split's validation part; `UserError` where no validation event reaches `positive_rating`."""
    chosen_on = validation_as_test(split)
    counts = popularity(chosen_on.train.item, chosen_on.dataset.num_items)
    groups = counts.masks()
    asked = exam.exam(chosen_on, positive_rating, (CUTOFF,), groups, counts.counts)
    if len(asked.wanted.users) == 0:
        raise UserError(f"No new validation event of split {split.name!r} reaches the rating {positive_rating:g}.")
    everyone = np.ones(len(asked.users), bool)
    wanted = {OVERALL: (np.ones(asked.num_items, bool), exam.ALL)}
    for part in RANKED:
        among = "cold" if part == "cold" else "warm"
        candidates = among if among in asked.candidates else exam.ALL
        wanted[part] = (groups[part] & groups[among], candidates)
    return Judge(
        asked,
        {
            part: Slice(GROUP, part, mask_I, everyone, candidates)
            for part, (mask_I, candidates) in wanted.items()
            if mask_I[asked.wanted.item_N].any()
        },
    )
