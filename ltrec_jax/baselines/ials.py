"""iALS: matrix factors of the whole user-item table by exact alternating least squares, unobserved pairs as weak zeros.

The anchored solve with anchors of 0: no item knows its text while factors are learnt. Where texts are given, a ridge
regression from text vectors to item factors then places the cold items.
"""

import dataclasses
from typing import Annotated

import numpy as np
from typing_extensions import Doc

from ltrec_jax.baselines.item_texts import directions
from ltrec_jax.baselines.scoring import Factors
from ltrec_jax.baselines.training import Training
from ltrec_jax.config import WholeDataConfig
from ltrec_jax.solve import anchored_als, cold_start

_START = 0.1
"""Length of a fresh item vector, about: the first user solve only needs it to have directions."""


@dataclasses.dataclass(frozen=True)
class IalsSettings:
    """Factors of the whole table."""

    width: Annotated[int, Doc("numbers per user and per item")] = 128
    unobserved_weight: Annotated[float, Doc("a0: weight of an unobserved pair beside 1 for an observed one")] = 0.1
    l2: Annotated[float, Doc("lambda per (weighted) event")] = 0.01
    alternations: Annotated[int, Doc("times that users, then items, are solved")] = 8
    map_l2: Annotated[float, Doc("ridge of the map from text to the factors of cold items")] = 20.0


def fit(train: Training, settings: IalsSettings | None = None) -> Factors:
    """Solve from a random start; a cold item has the factors that its text maps to, 0 without texts.

    The map is `cold_start.ridge_map` from the direction of a text vector (from their mean) to the item's factors; one
    that is not determined (`map_l2` = 0) is a `UserError`. Users without likes have factors 0: `registry.fit` shows
    them what is popular. Sources: Hu, Koren & Volinsky (ICDM 2008); frequency-scaled penalties of Rendle et al. (RecSys
    2022).
    """
    settings = settings or IalsSettings()
    if settings.width < 1 or settings.alternations < 1:
        raise ValueError(f"width and alternations must be at least 1, not {settings}")
    likes, shape = train.likes, (train.num_items, settings.width)
    start = np.random.default_rng([train.seed, train.num_items]).normal(0, _START / settings.width**0.5, shape)
    solution = anchored_als.solve(
        np.repeat(np.arange(train.num_users, dtype=np.int32), np.diff(likes.indptr)),
        likes.indices,
        np.zeros(shape, np.float32),
        num_users=train.num_users,
        settings=WholeDataConfig(
            unobserved_weight=settings.unobserved_weight,
            l2=settings.l2,
            propensity_power=0.0,
            alternations=settings.alternations,
        ),
        start_IxD=start.astype(np.float32),
    )
    q_IxD, cold_I = np.array(solution.item_vectors), train.like_counts == 0
    q_IxD[cold_I] = 0.0
    if train.texts is not None and cold_I.any():
        text_IxE, warm_I = directions(train.texts.vectors), ~cold_I
        to_factors_ExD = cold_start.ridge_map(
            text_IxE[warm_I],
            q_IxD[warm_I],
            train.like_counts[warm_I],
            l2=settings.map_l2,
            setting="baselines.ials.map_l2",
        )
        q_IxD[cold_I] = text_IxE[cold_I] @ to_factors_ExD
    return Factors(np.asarray(solution.user_vectors), q_IxD)
