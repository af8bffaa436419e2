"""What the Bayesian solves share: the model, the fixed arrays of a side, and the finished model.

    y_ui ~ N(mu + b_u + c_i + <p_u, q_i>, 1 / (alpha a_u g_i))
    (c_i, q_i) ~ N(W_I x_i, inv(Lambda_I))        (b_u, p_u) ~ N(W_U z_u, inv(Lambda_U))

x_i, z_u side information (texts, popularity, ...). An item with few ratings stays near W_I x_i, a frequent one moves
away from it, a never-rated one *is* it; likewise for users. A Gaussian likelihood: squared error, with the weights and
the penalties learnt (Salakhutdinov & Mnih, ICML 2008; side information as in Simm et al., "Macau", 2015).
A side's rows have d = D + 1 numbers, the bias first. Out of scope: how the posterior is found (`bayes_variational`,
`bayes_gibbs`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.config import BayesConfig
from ltrec_jax.errors import UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.parallel import Parallel, gather_over_devices
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.solve.row_solve import Block, Blocks, make_blocks
from ltrec_jax.solve.side_information import SideInformation
from ltrec_jax.types import Array

NOISE_SHAPE = 1.0
"""Shape of the prior Gamma of alpha (its rate makes the prior mean 1 / the variance of the ratings)."""
REMEDY = "See that no column of the side information is far larger than the others."
"""What a user can do about equations that are singular."""
RELEVANCE = (1.0, 1.0)
"""Shape and rate of the prior Gamma of each block's lambda."""


class Side(NamedTuple):
    """The fixed arrays of one side with R rows: features [R, F] and, with zeros for rows without events, `warm` [R, F].

    gram [F, F] of the warm features; member [F, G], 1 where a column is of a block; counts [R]; scatter [d, d] and
    freedom of Lambda's Wishart prior, noise: a (or g) ~ Gamma(noise, noise).
    """

    features: jax.Array
    warm: jax.Array
    gram: jax.Array
    member: jax.Array
    counts: jax.Array
    scatter: jax.Array
    freedom: jax.Array
    noise: jax.Array


class Ratings(NamedTuple):
    """The N ratings less their mean, in both orders, and what scales they have."""

    mu: float
    spread: float
    users: Blocks
    items: Blocks


@dataclasses.dataclass(frozen=True)
class BayesModel:
    """A finished model. `vectors` score; a row of features x has the vector x @ map, bias first.

    user_map [F_U, D + 1], item_map [F_I, D + 1]; `prior` is fold-in's, for a user of average features (`prior_of` for
    others); alpha, user_noise [U] (a_u), item_noise [I] (g_i): precision of a rating = alpha a_u g_i. `bound`: the
    evidence bound after each iteration (variational Bayes). Covariances [U, d, d] and [I, d, d] of the rows, where the
    method gives them. All float32 (float64 under x64).
    """

    vectors: Vectors
    user_map: np.ndarray
    item_map: np.ndarray
    prior: UserPrior
    alpha: float
    user_noise: np.ndarray
    item_noise: np.ndarray
    bound: tuple[float, ...] = ()
    user_covariance: np.ndarray | None = None
    item_covariance: np.ndarray | None = None

    def prior_of(self, features_F: np.ndarray) -> UserPrior:
        """Fold-in's prior of a user with these features [F_U] (a row as `side_information` makes them)."""
        return dataclasses.replace(self.prior, mean=np.asarray(features_F, np.float64) @ self.user_map)

    def new_items(self, features_KxF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [K, D] and biases [K] of items that nobody has rated, from their features."""
        rows = np.asarray(features_KxF) @ self.item_map
        return rows[:, 1:], rows[:, 0]

    def score_variance(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """Posterior variance of the scores of single pairs, float64 [P], without the noise of the rating itself.

            d_i^T S_u d_i + d_u^T S_i d_u + tr(S_u S_i over the factors),    d = [1 | vector]

        `ValueError` for a model without covariances (Gibbs).
        """
        if self.user_covariance is None or self.item_covariance is None:
            raise ValueError("this model keeps no covariances: fit it by variational Bayes")
        s_u, s_i = self.user_covariance[users_P].astype(np.float64), self.item_covariance[items_P].astype(np.float64)
        d_u = np.insert(self.vectors.user_vectors[users_P].astype(np.float64), 0, 1.0, axis=1)
        d_i = np.insert(self.vectors.item_vectors[items_P].astype(np.float64), 0, 1.0, axis=1)
        both = np.einsum("pde,ped->p", s_u[:, 1:, 1:], s_i[:, 1:, 1:])
        return np.einsum("pd,pde,pe->p", d_i, s_u, d_i) + np.einsum("pd,pde,pe->p", d_u, s_i, d_u) + both


def make_side(side: SideInformation, counts_R: np.ndarray, width: int, noise: float, sds: tuple[float, float]) -> Side:
    """The fixed arrays of a side; `sds` are the prior standard deviations of a bias and of a factor."""
    dtype = side.columns.dtype
    warm = side.columns * (counts_R > 0)[:, None]
    member = np.eye(len(side.names))[side.group]
    variances = np.array([sds[0] ** 2, *[sds[1] ** 2] * (width - 1)])
    exact = warm.astype(np.float64)
    arrays = (side.columns, warm, exact.T @ exact, member, counts_R, np.diag(variances), width + 2.0, noise)
    return Side(*(jnp.asarray(np.asarray(array, dtype)) for array in arrays))


def make_ratings(
    user_N: np.ndarray,
    item_N: np.ndarray,
    rating_N: np.ndarray,
    num_users: int,
    num_items: int,
    *,
    width: int,
    spread: Parallel,
    dtype: np.dtype,
) -> Ratings:
    """Check the ratings and group them by row. A pair twice counts twice.

    No rating, or one that is not finite, is a `UserError`; all equal: their spread is taken as 1.
    """
    if len(rating_N) == 0:
        raise UserError("There is no training rating to fit on. Choose another split.")
    if not np.isfinite(rating_N).all():
        raise UserError(f"Rating number {int(np.flatnonzero(~np.isfinite(rating_N))[0])} is not a finite number.")
    exact_N = np.asarray(rating_N, np.float64)
    mu, scale = float(exact_N.mean()), float(exact_N.std())
    shifted_N = (exact_N - mu).astype(dtype)
    users = make_blocks(user_N, item_N, shifted_N, num_users, width=width, spread=spread)
    items = make_blocks(item_N, user_N, shifted_N, num_items, width=width, spread=spread)
    return Ratings(mu, scale if scale > 1e-6 else 1.0, users, items)


def prior_sds(settings: BayesConfig, spread: float) -> tuple[float, float]:
    """Prior standard deviations of bias and factor on the scale of the ratings: a product of factors is a rating."""
    return settings.bias_sd * spread, settings.factor_sd * float(np.sqrt(spread))


def design(rows_RxD: jax.Array) -> jax.Array:
    """[1 | vector] of rows [bias | vector]: what the other side's row multiplies."""
    return jnp.concatenate([jnp.ones_like(rows_RxD[:, :1]), rows_RxD[:, 1:]], axis=1)


def known(side: Side) -> jax.Array:
    """1 for a row with events, 0 for one without: [R], in the side's own dtype."""
    return (side.counts > 0).astype(side.features.dtype)


def dot(left: Array, right: Array) -> jax.Array:
    """A matrix product in full precision on every platform."""
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


def joined(parts: list[jax.Array]) -> jax.Array:
    """What this device found for its rows of each block, one after another."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def row_numbers(blocks: tuple[Block, ...]) -> jax.Array:
    """The numbers of this device's rows, in the order of `joined`; padding rows have the number of rows."""
    return joined([jnp.asarray(block.row) for block in blocks])


def by_row(values: jax.Array, row: jax.Array, num_rows: int, axis: str | None) -> jax.Array:
    """Each device's results [local, ...] as one array in the order of the rows, [R, ...], on every device."""
    row, values = gather_over_devices((row, values), axis)
    return jnp.zeros((num_rows, *values.shape[1:]), values.dtype).at[row].set(values, mode="drop")


def vectors_of(mu: float, users: Array, items: Array) -> Vectors:
    """Rows [bias | vector] of users and items as a recommender."""
    users, items = np.asarray(users), np.asarray(items)
    return Vectors(mu, users[:, 1:], users[:, 0], items[:, 1:], items[:, 0])
