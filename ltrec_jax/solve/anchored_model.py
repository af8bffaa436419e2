"""The top-N model over text vectors: anchors, the exact solve, what cold items take from warm ones, fold-in's prior.

Out of scope: where text vectors come from (`encoder`, `text.lexical`), the dials of inference (`cold_start.dialled`).
"""

import dataclasses
import math

import numpy as np

from ltrec_jax.config import WholeDataConfig
from ltrec_jax.parallel import Parallel
from ltrec_jax.solve import anchored_als, cold_start, fold_in
from ltrec_jax.solve.fold_in import UserPrior


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Where items stand by their texts alone, x_i = projection^T z_i, from text vectors f [I, E] and words w [I, R]:

        z_i = [sqrt(1 - a) (f_i - center) / |f_i - center| ; sqrt(a) w_i]        <z_i, z_j> = (1 - a) cos_f + a cos_w

    center [E], z [I, E + R], projection [E + R, D], float32; a is `share`, and without words R = a = 0.
    """

    center_E: np.ndarray
    z_IxE: np.ndarray
    projection_ExD: np.ndarray
    share: float = 0.0

    @property
    def vectors(self) -> np.ndarray:
        """The anchors, float32 [I, D]."""
        return self.z_IxE @ self.projection_ExD

    @property
    def encoder_map(self) -> np.ndarray:
        """What the direction of a text vector is multiplied with for its part of the anchor, [E, D]."""
        return self.parts(self.projection_ExD)[0]

    @property
    def of_words(self) -> np.ndarray:
        """The part of the anchors that words make, [I, D]."""
        width = len(self.center_E)
        return self.z_IxE[:, width:] @ self.projection_ExD[width:]

    def parts(self, projection_ExD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A projection [E + R, D] as ([E, D], [R, D]): what directions of text vectors and words are multiplied with,
        the roots of their shares in it."""
        width = len(self.center_E)
        return (
            math.sqrt(1.0 - self.share) * projection_ExD[:width],
            math.sqrt(self.share) * projection_ExD[width:],
        )

    def with_encoder(self, features_IxE: np.ndarray, map_ExD: np.ndarray) -> "Anchors":
        """The anchors after the encoder has learnt: other text vectors, and another `encoder_map`; words stay."""
        width, root = len(self.center_E), math.sqrt(1.0 - self.share)
        z_IxE = root * anchored_als.anchors(features_IxE, self.center_E, 1.0)
        return dataclasses.replace(
            self,
            z_IxE=np.concatenate([z_IxE, self.z_IxE[:, width:]], axis=1),
            projection_ExD=np.concatenate([map_ExD / root, self.projection_ExD[width:]]),
        )


@dataclasses.dataclass(frozen=True)
class AnchoredModel:
    """User vectors [U, D] and item vectors [I, D], float32 or float64: score = <p_u, q_i>.

    A later text has the vector projection^T z (see `Anchors`); center [E], projection [E + R, D] (with neighbours or a
    kernel ridge for cold items it is the bare anchor). `prior` is for new users; `objective` its value
    after each half alternation.
    """

    user_vectors: np.ndarray
    item_vectors: np.ndarray
    center: np.ndarray
    projection: np.ndarray
    prior: UserPrior
    objective: tuple[float, ...]


def text_anchors(features_IxE: np.ndarray, settings: WholeDataConfig, words_IxR: np.ndarray | None = None) -> Anchors:
    """Anchors over text vectors of the whole catalogue, warm and cold: anchor_scale times z, in its full width.

    The centre is the catalogue's mean text. Unit vectors of words are needed where `settings.lexical_share` is above 0,
    and else refused (`ValueError`).
    """
    share = settings.lexical_share
    center_E, z_IxE = text_directions(features_IxE, share, words_IxR)
    return Anchors(center_E, z_IxE, settings.anchor_scale * np.eye(z_IxE.shape[1], dtype=np.float32), share)


def text_directions(
    features_IxE: np.ndarray, share: float, words_IxR: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The catalogue's mean text [E], and z [I, E + R] of `Anchors` from it; float32. `ValueError` as `text_anchors`."""
    if (share > 0) != (words_IxR is not None):
        raise ValueError(f"a lexical share of {share} and {'no ' if words_IxR is None else ''}vectors of words")
    center_E = np.asarray(features_IxE, np.float64).mean(axis=0).astype(np.float32)
    z_IxE = math.sqrt(1.0 - share) * anchored_als.anchors(features_IxE, center_E, 1.0)
    if words_IxR is not None:
        z_IxE = np.concatenate([z_IxE, math.sqrt(share) * np.asarray(words_IxR, np.float32)], axis=1)
    return center_E, z_IxE


def fit(
    user_N: np.ndarray,
    item_N: np.ndarray,
    anchors: Anchors,
    *,
    num_users: int,
    settings: WholeDataConfig,
    spread: Parallel | None = None,
    dtype: np.dtype | type = np.float32,
) -> AnchoredModel:
    """Solve for N distinct positives, then place the cold items. Deterministic.

    `dtype` is that of the arithmetic and of the vectors: float64 needs `jax.enable_x64(True)`.

    A user without events, whom the objective would leave at 0, has the vector of `fold_in.newcomer`. With it, and with
    the mean of the other users' vectors over events and over users, validation nDCG@20 was, encoder frozen: warm .1114,
    .1050 and .1061, cold .1392, .1304 and .1109 (MovieTweetings, four cuts in time, two of five users new); the sum of
    warm, tail and cold .4085, .4056 and .4085 (MovieLens-100K, three splits, a fifth of the users without events).
    """
    solution = anchored_als.solve(
        user_N, item_N, anchors.vectors.astype(dtype), num_users=num_users, settings=settings, spread=spread
    )
    counts_I = np.bincount(item_N, minlength=len(anchors.z_IxE))
    item_vectors, projection_ExD = with_cold_items(anchors, solution.item_vectors, counts_I, settings)
    user_vectors, events_U = np.array(solution.user_vectors), np.bincount(user_N, minlength=num_users)
    num_active = int(np.count_nonzero(events_U))
    prior = fold_in.whole_data_prior(solution.item_vectors, counts_I, num_active, settings)
    user_vectors[events_U == 0] = prior.newcomer
    return AnchoredModel(user_vectors, item_vectors, anchors.center_E, projection_ExD, prior, solution.objective)


def with_cold_items(
    anchors: Anchors, item_vectors: np.ndarray, counts_I: np.ndarray, settings: WholeDataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors with those of cold items by `settings.cold`, and the projection that places later texts."""
    warm, cold = counts_I > 0, counts_I == 0
    residual_WxD = (item_vectors - anchors.vectors)[warm]
    z_WxE, z_CxE, counts_W = anchors.z_IxE[warm], anchors.z_IxE[cold], counts_I[warm]
    projection_ExD = anchors.projection_ExD
    if settings.cold == "ridge":
        residual_map = cold_start.ridge_map(z_WxE, residual_WxD, counts_W, l2=settings.cold_l2)
        projection_ExD = (projection_ExD + residual_map).astype(projection_ExD.dtype)
    if settings.cold == "text_map":
        whole_map = cold_start.text_map(z_WxE, item_vectors[warm], counts_W, l2=settings.cold_l2)
        projection_ExD = whole_map.astype(projection_ExD.dtype)
    found = np.array(item_vectors)
    found[cold] = z_CxE @ projection_ExD
    if settings.cold == "neighbours":
        found[cold] += cold_start.neighbour_residuals(
            z_CxE, z_WxE, residual_WxD, counts_W, neighbours=settings.neighbours, temperature=settings.temperature
        )
    if settings.cold == "kernel_ridge":
        found[cold] += cold_start.kernel_ridge_residuals(z_CxE, z_WxE, residual_WxD, counts_W, l2=settings.cold_l2)
    found[cold] *= settings.cold_gain
    return found, projection_ExD * np.float32(settings.cold_gain)
