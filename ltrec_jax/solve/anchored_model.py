"""The top-N model over text vectors: anchors, the exact solve, what cold items take from warm ones, fold-in's prior.

Out of scope: where text vectors come from (`encoder`, `text.lexical`), the dials of inference (`cold_start.dialled`).
"""

import dataclasses

import numpy as np

from ltrec_jax.config import WholeDataConfig
from ltrec_jax.parallel import Parallel
from ltrec_jax.solve import anchored_als, cold_start, fold_in
from ltrec_jax.solve.fold_in import UserPrior


@dataclasses.dataclass(frozen=True)
class AnchoredModel:
    """User vectors [U, D] and item vectors [I, D], float32: score = <p_u, q_i>.

    A later text f has the vector projection^T (f - center) / |f - center|; center [D], projection [D, D] (with
    neighbours or a kernel ridge for cold items it is the bare anchor). `prior` is for new users, `objective` for tests.
    """

    user_vectors: np.ndarray
    item_vectors: np.ndarray
    center: np.ndarray
    projection: np.ndarray
    prior: UserPrior
    objective: tuple[float, ...]


def fit(
    user_N: np.ndarray,
    item_N: np.ndarray,
    features_IxD: np.ndarray,
    *,
    num_users: int,
    settings: WholeDataConfig,
    spread: Parallel | None = None,
) -> AnchoredModel:
    """Solve for N distinct positives over text vectors [I, D] of the whole catalogue, warm and cold. Deterministic."""
    center_D = np.asarray(features_IxD, np.float64).mean(axis=0).astype(np.float32)
    z_IxD = anchored_als.anchors(features_IxD, center_D, 1.0)
    solution = anchored_als.solve(
        user_N, item_N, settings.anchor_scale * z_IxD, num_users=num_users, settings=settings, spread=spread
    )
    counts_I = np.bincount(item_N, minlength=len(z_IxD))
    item_vectors, projection_DxD = with_cold_items(z_IxD, solution.item_vectors, counts_I, settings)
    prior = fold_in.whole_data_prior(solution.item_vectors, counts_I, settings)
    return AnchoredModel(
        solution.user_vectors, item_vectors, center_D, projection_DxD.astype(np.float32), prior, solution.objective
    )


def with_cold_items(
    z_IxD: np.ndarray, item_vectors: np.ndarray, counts_I: np.ndarray, settings: WholeDataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors with those of cold items as `settings.cold` says, and the projection that places later texts."""
    warm, cold = counts_I > 0, counts_I == 0
    residual_WxD = (item_vectors - settings.anchor_scale * z_IxD)[warm]
    z_WxD, z_CxD, counts_W = z_IxD[warm], z_IxD[cold], counts_I[warm]
    projection_DxD = settings.anchor_scale * np.eye(z_IxD.shape[1])
    if settings.cold == "ridge":
        projection_DxD = projection_DxD + cold_start.ridge_map(z_WxD, residual_WxD, counts_W, l2=settings.cold_l2)
    found = np.array(item_vectors)
    found[cold] = z_CxD @ projection_DxD
    if settings.cold == "neighbours":
        found[cold] += cold_start.neighbour_residuals(
            z_CxD, z_WxD, residual_WxD, counts_W, neighbours=settings.neighbours, temperature=settings.temperature
        )
    if settings.cold == "kernel_ridge":
        found[cold] += cold_start.kernel_ridge_residuals(z_CxD, z_WxD, residual_WxD, counts_W, l2=settings.cold_l2)
    return found, projection_DxD
