"""What items without training events take from the warm ones beside their own text, and the two dials of inference.

`whole_data.cold` names the ways. "anchor": the anchor x_c alone. "neighbours", "ridge", "kernel_ridge": x_c plus a
guess at the residual v = q - x that behaviour would add, learnt from warm items: from its nearest texts, or by ridge
regression from text to residual. "text_map": the ridge regression from text to the whole vector q, without the anchor:
with a large penalty it asks what the encoder has learnt of the texts in fine-tuning. z are unit text directions
throughout, so that <z_c, z_j> is a cosine.
Out of scope: the solve that gives v (`anchored_als`), choosing among these (a validation part with cold items).
"""

import warnings

import numpy as np
import scipy.linalg

from ltrec_jax.errors import UserError

KERNEL_RIDGE_LIMIT = 20_000
"""Warm items beyond which a kernel ridge is refused: its matrix would take more than 3.2 GB."""
_COLD_L2 = "whole_data.cold_l2"
_BLOCK = 1024
_KERNEL_SHARE, _KERNEL_TEMPERATURE = 3.0, 0.1
"""Of the local part of the kernel; chosen on cold validation items of MovieLens-100K (nDCG@20 .2866, linear .284)."""


def neighbour_residuals(
    z_CxE: np.ndarray,
    z_WxE: np.ndarray,
    residual_WxD: np.ndarray,
    counts_W: np.ndarray,
    *,
    neighbours: int,
    temperature: float,
) -> np.ndarray:
    """Weighted mean of the residuals of the most similar warm texts, float [C, D].

        v_c = sum_j a_cj v_j / sum_j a_cj        a_cj = exp(<z_c, z_j> / temperature) sqrt(n_j)

    over the `neighbours` warm items j with the highest cosine (ties by id; all of them where there are fewer). Without
    warm items: zeros. Memory goes in blocks of cold items.
    """
    found = np.zeros((len(z_CxE), residual_WxD.shape[1]), residual_WxD.dtype)
    k = min(neighbours, len(z_WxE))
    for first in range(0, len(z_CxE) if k else 0, _BLOCK):
        rows = slice(first, first + _BLOCK)
        cosine_BxW = z_CxE[rows] @ z_WxE.T
        nearest_BxK = np.argsort(-cosine_BxW, axis=1, kind="stable")[:, :k]
        cosine_BxK = np.take_along_axis(cosine_BxW, nearest_BxK, axis=1)
        weight_BxK = np.exp((cosine_BxK - cosine_BxK[:, :1]) / temperature) * np.sqrt(counts_W[nearest_BxK])
        weight_BxK /= weight_BxK.sum(axis=1, keepdims=True)
        found[rows] = np.einsum("bk,bkd->bd", weight_BxK, residual_WxD[nearest_BxK])
    return found


def ridge_map(
    z_WxE: np.ndarray, residual_WxD: np.ndarray, counts_W: np.ndarray, *, l2: float, setting: str = _COLD_L2
) -> np.ndarray:
    """The matrix M [E, D] of the guess v_c = M^T z_c, by weighted ridge regression over the warm items:

        minimise  sum_j a_j |v_j - M^T z_j|^2 + l2 |M|^2        a_j = sqrt(n_j) / mean sqrt(n)

    It serves any catalogue (E^3 + W E^2) and any later text: x + v = (scale I + M)^T z is one projection. Equations
    that are singular, as with l2 = 0 and fewer warm items than E, are a `UserError` that names `setting`.
    """
    weight_W = np.sqrt(np.asarray(counts_W, np.float64))
    weight_W /= max(weight_W.mean(), 1e-12) if len(weight_W) else 1.0
    weighted_WxE = z_WxE * weight_W[:, None]
    left = weighted_WxE.T @ z_WxE + l2 * np.eye(z_WxE.shape[1])
    return _solved(left, weighted_WxE.T @ residual_WxD, "The ridge regression from text to item vectors", setting, l2)


def text_map(z_WxE: np.ndarray, item_vectors_WxD: np.ndarray, counts_W: np.ndarray, *, l2: float) -> np.ndarray:
    """The matrix M [E, D] of q_c = M^T z_c: `ridge_map` to whole item vectors, at the length that suits them best.

    A large penalty gives the better directions, and vectors so short that no list with warm items would ever show one.
    So the map is multiplied by the c that minimises sum_j a_j |q_j - c M^T z_j|^2, which changes no order among cold
    items. A map to zeros stays one.
    """
    map_ExD = ridge_map(z_WxE, item_vectors_WxD, counts_W, l2=l2)
    weight_W, placed_WxD = np.sqrt(np.asarray(counts_W, np.float64)), z_WxE @ map_ExD
    square = float(weight_W @ (placed_WxD**2).sum(axis=1))
    return map_ExD * (float(weight_W @ (placed_WxD * item_vectors_WxD).sum(axis=1)) / square if square else 1.0)


def kernel_ridge_residuals(
    z_CxE: np.ndarray, z_WxE: np.ndarray, residual_WxD: np.ndarray, counts_W: np.ndarray, *, l2: float
) -> np.ndarray:
    """Kernel ridge regression from text to residual, float [C, D]: for small catalogues.

        v_c = k_cW (K_WW + diag(l2 / a))^-1 V        k(z, z') = <z, z'> + 3 exp((<z, z'> - 1) / 0.1)

    with a as in `ridge_map`: a linear map plus what only near texts share. Costs W^3; more than `KERNEL_RIDGE_LIMIT`
    warm items are a `UserError`, and so are singular equations (l2 = 0 and two equal texts).
    """
    if len(z_WxE) > KERNEL_RIDGE_LIMIT:
        raise UserError(
            f"A kernel ridge over {len(z_WxE):,} warm items does not fit (at most {KERNEL_RIDGE_LIMIT:,}). "
            "Choose whole_data.cold = 'ridge'."
        )
    if len(z_WxE) == 0:
        return np.zeros((len(z_CxE), residual_WxD.shape[1]), residual_WxD.dtype)
    root_W = np.sqrt(np.asarray(counts_W, np.float64))
    kernel_WxW = _kernel(z_WxE, z_WxE) + np.diag(l2 * root_W.mean() / root_W)
    return _kernel(z_CxE, z_WxE) @ _solved(kernel_WxW, residual_WxD, "The kernel ridge regression", _COLD_L2, l2)


def dial_factors(counts_I: np.ndarray, *, tail_power: float, cold_gain: float) -> np.ndarray:
    """What `dialled` multiplies items by, float32 [I]; of a model whose scores are products alone, their scores too."""
    counts_I = np.asarray(counts_I)
    factor_I = np.full(len(counts_I), cold_gain, np.float32)
    warm = counts_I > 0
    factor_I[warm] = counts_I[warm].astype(np.float64) ** -tail_power
    return factor_I


def dialled(item_vectors: np.ndarray, counts_I: np.ndarray, *, tail_power: float, cold_gain: float) -> np.ndarray:
    """Item vectors as served: warm q_i times n_i^-tail_power, cold q_c times cold_gain.

    tail_power > 0 moves exposure from head to tail, cold_gain > 1 towards never-seen items. Both are product choices
    that no loss on the training data can make; (0, 1) changes nothing. For models of lists, whose scores are products
    alone and mostly positive; `popularity_discount` is for ratings.
    """
    factor_I = dial_factors(counts_I, tail_power=tail_power, cold_gain=cold_gain).astype(item_vectors.dtype)
    return item_vectors * factor_I[:, None]


def popularity_discount(counts_I: np.ndarray, *, tail_power: float) -> np.ndarray:
    """What the tail dial takes off the scores of a model that predicts ratings, float64 [I]: tail_power log n_i.

    In standard deviations of the ratings; nothing of a cold item. `dialled` would not do there: where <p, q> < 0 a
    shorter q raises the score, and a bias keeps its popularity. Of two items with equal scores the more popular one is
    never ahead.
    """
    return tail_power * np.log(np.maximum(np.asarray(counts_I, np.float64), 1.0))


def _solved(left_NxN: np.ndarray, right_NxD: np.ndarray, what: str, setting: str, l2: float) -> np.ndarray:
    """left^-1 right; `UserError` where no digit of that would be right."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", scipy.linalg.LinAlgWarning)
            return scipy.linalg.solve(left_NxN, right_NxD, assume_a="pos")
    except (np.linalg.LinAlgError, scipy.linalg.LinAlgWarning) as error:
        raise UserError(
            f"{what} has no single solution with {setting} = {l2:g}: too few items have training events for the "
            f"numbers in a text vector, or texts are equal. Raise {setting}."
        ) from error


def _kernel(z_AxE: np.ndarray, z_BxE: np.ndarray) -> np.ndarray:
    cosine_AxB = np.asarray(z_AxE, np.float64) @ np.asarray(z_BxE, np.float64).T
    local_AxB: np.ndarray = _KERNEL_SHARE * np.exp((cosine_AxB - 1.0) / _KERNEL_TEMPERATURE)
    return cosine_AxB + local_AxB
