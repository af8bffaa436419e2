"""What early stopping of a model that only ranks goes by: its lists, judged on the validation part as a report would.

Out of scope: errors of predicted ratings (`phases.validation_rmse`).
"""

from collections.abc import Callable

import numpy as np

from ltrec_jax import topk
from ltrec_jax.data.dataset import Split
from ltrec_jax.data.history import history
from ltrec_jax.evaluation import accuracy, ranking
from ltrec_jax.types import Recommender


def ndcg_loss(split: Split, positive_rating: float, cutoff: int) -> Callable[[Recommender], float] | None:
    """1 - nDCG@cutoff of a model's lists from the whole catalogue without the user's training items.

    The mean over users with a validation rating of at least `positive_rating`; None where nobody has one.
    """
    dataset = split.dataset
    seen = history(split.train, dataset.num_users)
    wanted = ranking.targets(split.validation, seen, dataset.num_items, positive_rating)
    if len(wanted.users) == 0:
        return None
    relevant_V = np.bincount(wanted.row_N, minlength=len(wanted.users))

    def loss(model: Recommender) -> float:
        lists = ranking.rank(
            model,
            wanted,
            seen,
            dataset.num_items,
            cutoff,
            candidates={"all": None},
            block_users=topk.users_per_block(dataset.num_items),
            name="validation",
        )["all"]
        return 1.0 - float(accuracy.ndcg(lists.hits, relevant_V, cutoff).mean())

    return loss
