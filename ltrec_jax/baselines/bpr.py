"""BPR: factors that put what a user likes above a random other item, pair by pair. The library `implicit` fits them."""

import dataclasses
import warnings
from typing import Annotated

import numpy as np
import threadpoolctl
from typing_extensions import Doc

from ltrec_jax.baselines.extra import needed
from ltrec_jax.baselines.scoring import Factors
from ltrec_jax.baselines.training import Training


@dataclasses.dataclass(frozen=True)
class BprSettings:
    """Stochastic gradient on pairs of a liked and another item."""

    width: Annotated[int, Doc("numbers per user and per item, a bias of the item beside them")] = 64
    learning_rate: Annotated[float, Doc("step of the gradient")] = 0.05
    l2: Annotated[float, Doc("lambda of the squared norms, in every step")] = 0.01
    epochs: Annotated[int, Doc("passes over the likes")] = 50


def fit(train: Training, settings: BprSettings | None = None) -> Factors:
    """Maximise sum log sigmoid(s_ui - s_uj) - l2 |.|^2, i liked, j drawn from the liked items of everybody.

    One thread and a seeded generator: the same seed gives the same bits. Cold items and users without likes have
    factors 0, so a cold item scores 0; `registry.fit` shows such users what is popular. Source: Rendle et al. (UAI
    2009). Needs the extra `baselines`.
    """
    settings = settings or BprSettings()
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1, "blas"):
        # It advises about the number of BLAS threads, which is set here.
        warnings.simplefilter("ignore", RuntimeWarning)
        library = needed("implicit.cpu.bpr", "Baseline bpr")
        model = library.BayesianPersonalizedRanking(
            factors=settings.width,
            learning_rate=settings.learning_rate,
            regularization=settings.l2,
            iterations=settings.epochs,
            num_threads=1,
            random_state=train.seed,
        )
        model.fit(train.likes, show_progress=train.likes.nnz * settings.epochs > 1 << 22)
    user_vectors, item_vectors = np.array(model.user_factors), np.array(model.item_factors)
    user_vectors[np.diff(train.likes.indptr) == 0] = 0.0
    item_vectors[train.like_counts == 0] = 0.0
    return Factors(user_vectors, item_vectors)
