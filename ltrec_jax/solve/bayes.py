"""Fit the model of `bayes_model` to ratings: arrays in, a finished model out.

Out of scope: where side information comes from (`side_information`), evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ltrec_jax.config import BayesConfig
from ltrec_jax.parallel import Parallel, choose
from ltrec_jax.solve import bayes_gibbs, bayes_model, bayes_variational, user_features
from ltrec_jax.solve.bayes_model import NOISE_SHAPE, REMEDY, BayesModel, Ratings, Side
from ltrec_jax.solve.bayes_served import Mean, sampled_model
from ltrec_jax.solve.bayes_variational import Gamma, State
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.solve.row_solve import one_blas_thread, require_solved
from ltrec_jax.solve.side_information import SideInformation
from ltrec_jax.types import PyTree

_CHUNK = 10
"""Iterations per call of the compiled program: the progress bar moves so often."""


def fit_vb(
    user_N: np.ndarray,
    item_N: np.ndarray,
    rating_N: np.ndarray,
    users: SideInformation,
    items: SideInformation,
    *,
    settings: BayesConfig | None = None,
    key: jax.Array | None = None,
    spread: Parallel | None = None,
) -> BayesModel:
    """Variational Bayes: deterministic given the key of the start, with a posterior variance for every score.

    user_N, item_N int, rating_N float: the N training ratings. Sizes are those of the side information, whose dtype
    the arithmetic has. A user or item without ratings gets what its features say. The last step solves the users, so
    that each is the fold-in of its ratings. Ratings that are missing or not finite are a `UserError`.
    """
    settings, spread = settings or BayesConfig(), spread or choose()
    key = jax.random.key(0) if key is None else key
    width = settings.factors + 1
    moments = width * (width + 3) // 2 + 1
    ratings, sides = _prepare(user_N, item_N, rating_N, users, items, width, moments, settings, spread)
    alpha0 = _noise_prior(ratings, users.columns.dtype)
    state = bayes_variational.start(*sides, alpha0, key)
    bound: list[float] = []
    batch = (ratings.users.blocks, ratings.items.blocks)
    fixed = spread.replicate((sides, alpha0))
    state, key = spread.replicate((state, key))
    with (
        one_blas_thread(),
        tqdm.tqdm(total=settings.iterations, desc="variational Bayes", delay=2.0, leave=False) as bar,
    ):
        while len(bound) < settings.iterations:
            number = min(_CHUNK, settings.iterations - len(bound))
            (state, _), found = _iterations(spread, number)((state, fixed), batch, key)
            bound += np.asarray(spread.local(found), np.float64).tolist()
            bar.update(number)
        (state, _), _ = _last_users(spread)((state, fixed), batch, key)
    state = spread.local(state)
    require_solved(state.users.mean, "users", REMEDY)
    require_solved(state.items.mean, "items", REMEDY)
    return _with_features(_variational_model(ratings.mu, state, tuple(bound)), users, user_N)


def fit_gibbs(
    user_N: np.ndarray,
    item_N: np.ndarray,
    rating_N: np.ndarray,
    users: SideInformation,
    items: SideInformation,
    *,
    settings: BayesConfig | None = None,
    key: jax.Array | None = None,
    spread: Parallel | None = None,
) -> BayesModel:
    """Gibbs sampling: the mean prediction of the sweeps after burn-in, as one pair of tables. Arguments as `fit_vb`.

    Served is the best approximation of rank `settings.gibbs_factors` to the mean of P Q^T (`bayes_served`): a mean of
    products has no such rank itself. What fold-in needs is fitted to the served item vectors.
    """
    settings, spread = settings or BayesConfig(), spread or choose()
    key = jax.random.key(0) if key is None else key
    width = settings.gibbs_factors + 1
    ratings, sides = _prepare(user_N, item_N, rating_N, users, items, width, width, settings, spread)
    alpha0 = _noise_prior(ratings, users.columns.dtype)
    start_key, sweep_key = jax.random.split(key)
    carry = spread.replicate((bayes_gibbs.start(*sides, alpha0.mean, start_key), (sides, alpha0)))
    batch = (ratings.users.blocks, ratings.items.blocks)
    mean = Mean.empty(sides, settings.gibbs_factors)
    with one_blas_thread(), tqdm.tqdm(total=settings.sweeps, desc="Gibbs sampling", delay=2.0, leave=False) as bar:
        for number, first, counted in _chunks(settings):
            chunk_key = spread.replicate(jax.random.fold_in(sweep_key, first))
            carry, samples = _sweeps(spread, number)(carry, batch, chunk_key)
            if counted:
                mean = mean.add(spread.local(samples))
            bar.update(number)
    return _with_features(sampled_model(ratings, sides, mean, settings.gibbs_factors, spread), users, user_N)


def _with_features(model: BayesModel, users: SideInformation, user_N: np.ndarray) -> BayesModel:
    counts_U = np.bincount(user_N, minlength=len(users.columns))
    features = user_features.of_model(users, counts_U, model.user_map, model.user_noise)
    return dataclasses.replace(model, prior=dataclasses.replace(model.prior, features=features))


def _chunks(settings: BayesConfig) -> list[tuple[int, int, bool]]:
    """(sweeps, number of the first, whether they count) of each call of the compiled program."""
    found, done = [], 0
    for end, counted in ((settings.burn_in, False), (settings.sweeps, True)):
        while done < end:
            number = min(_CHUNK, end - done)
            found.append((number, done, counted))
            done += number
    return found


def _prepare(
    user_N: np.ndarray,
    item_N: np.ndarray,
    rating_N: np.ndarray,
    users: SideInformation,
    items: SideInformation,
    width: int,
    block_width: int,
    settings: BayesConfig,
    spread: Parallel,
) -> tuple[Ratings, tuple[Side, Side]]:
    num_users, num_items, dtype = len(users.columns), len(items.columns), users.columns.dtype
    ratings = bayes_model.make_ratings(
        user_N, item_N, rating_N, num_users, num_items, width=block_width, spread=spread, dtype=dtype
    )
    sds = bayes_model.prior_sds(settings, ratings.spread)
    counts_U, counts_I = np.bincount(user_N, minlength=num_users), np.bincount(item_N, minlength=num_items)
    return ratings, (
        bayes_model.make_side(users, counts_U, width, settings.user_noise, sds),
        bayes_model.make_side(items, counts_I, width, settings.item_noise, sds),
    )


def _noise_prior(ratings: Ratings, dtype: np.dtype) -> Gamma:
    return Gamma(jnp.asarray(NOISE_SHAPE, dtype), jnp.asarray(NOISE_SHAPE * ratings.spread**2, dtype))


@functools.lru_cache(maxsize=16)
def _iterations(spread: Parallel, number: int) -> Callable[..., PyTree]:
    def body(carry: PyTree, blocks: PyTree, key: jax.Array) -> PyTree:
        state, (sides, alpha0) = carry

        def once(state: State, _: None) -> tuple[State, jax.Array]:
            return bayes_variational.iterate(state, sides, blocks, alpha0, spread.axis)

        state, bound = jax.lax.scan(once, state, None, length=number)
        return (state, carry[1]), bound

    return spread.compile(body, donate=False)


@functools.lru_cache(maxsize=16)
def _last_users(spread: Parallel) -> Callable[..., PyTree]:
    def body(carry: PyTree, blocks: PyTree, key: jax.Array) -> PyTree:
        state, (sides, _) = carry
        rows, _ = bayes_variational.update_rows(
            sides[0], state.user_prior, state.users, state.items, state.alpha, blocks[0], spread.axis
        )
        return (state._replace(users=rows), carry[1]), {}

    return spread.compile(body, donate=False)


@functools.lru_cache(maxsize=16)
def _sweeps(spread: Parallel, number: int) -> Callable[..., PyTree]:
    def body(carry: PyTree, blocks: PyTree, key: jax.Array) -> PyTree:
        state, (sides, alpha0) = carry

        def once(state: bayes_gibbs.State, key: jax.Array) -> tuple[bayes_gibbs.State, bayes_gibbs.Sample]:
            return bayes_gibbs.sweep(state, sides, blocks, alpha0, key, spread.axis)

        state, samples = jax.lax.scan(once, state, jax.random.split(key, number))
        return (state, carry[1]), samples

    return spread.compile(body, donate=False)


def _variational_model(mu: float, state: State, bound: tuple[float, ...]) -> BayesModel:
    users, items = (jax.tree.map(np.asarray, rows._asdict()) for rows in (state.users, state.items))
    user_map, item_map = np.asarray(state.user_prior.map), np.asarray(state.item_prior.map)
    alpha, user_noise, item_noise = float(state.alpha.mean), users["noise"].mean, items["noise"].mean
    inner = np.array(items["covariance"], np.float64)
    cross = inner[:, 0].copy()
    cross[:, 0] = 0.0
    inner[:, 0] = inner[:, :, 0] = 0.0
    prior = UserPrior(
        explicit=True,
        precision=np.asarray(state.user_prior.precision, np.float64),
        mean=user_map[0].astype(np.float64),
        weight_I=alpha * item_noise.astype(np.float64),
        covariance=inner,
        cross=cross,
    )
    return BayesModel(
        bayes_model.vectors_of(mu, users["mean"], items["mean"]),
        user_map,
        item_map,
        prior,
        alpha,
        user_noise,
        item_noise,
        bound,
        users["covariance"],
        items["covariance"],
    )
