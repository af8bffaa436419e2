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

from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.parallel import Parallel, choose
from ltrec_jax.solve import bayes_gibbs, bayes_model, bayes_served, bayes_variational
from ltrec_jax.solve.bayes_model import NOISE_SHAPE, BayesConfig, BayesModel, Ratings, Side
from ltrec_jax.solve.bayes_variational import Gamma, State
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.solve.row_solve import one_blas_thread, require_solved
from ltrec_jax.solve.side_information import SideInformation
from ltrec_jax.types import Array, PyTree

_CHUNK = 10
"""Iterations per call of the compiled program: the progress bar moves so often."""
_KEPT = 3
"""Times the served rank that is kept of the mean while samples are added."""
_ROUNDS = 10
"""Of expectation maximisation, in which fold-in's prior after Gibbs settles."""
_REMEDY = "See that no column of the side information is far larger than the others."


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
    state = spread.replicate(state)
    with (
        one_blas_thread(),
        tqdm.tqdm(total=settings.iterations, desc="variational Bayes", delay=2.0, leave=False) as bar,
    ):
        while len(bound) < settings.iterations:
            number = min(_CHUNK, settings.iterations - len(bound))
            (state, _), found = _iterations(spread, number)((state, fixed), batch, key)
            bound += np.asarray(found, np.float64).tolist()
            bar.update(number)
        (state, _), _ = _last_users(spread)((state, fixed), batch, key)
    state = jax.tree.map(np.asarray, state)
    require_solved(state.users.mean, "users", _REMEDY)
    require_solved(state.items.mean, "items", _REMEDY)
    return _variational_model(ratings.mu, state, tuple(bound))


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
    mean = _Mean.empty(sides, settings)
    with one_blas_thread(), tqdm.tqdm(total=settings.sweeps, desc="Gibbs sampling", delay=2.0, leave=False) as bar:
        for number, first, counted in _chunks(settings):
            chunk_key = spread.replicate(jax.random.fold_in(sweep_key, first))
            carry, samples = _sweeps(spread, number)(carry, batch, chunk_key)
            if counted:
                mean = mean.add(spread.local(samples))
            bar.update(number)
    return _sampled_model(ratings, sides, mean, settings, spread)


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


def _variational_model(mu: float, state: State, bound: tuple[float, ...]) -> BayesModel:
    users, items = state.users, state.items
    alpha, user_noise, item_noise = float(state.alpha.mean), users.noise.mean, items.noise.mean
    inner = np.array(items.covariance, np.float64)
    cross = inner[:, 0].copy()
    cross[:, 0] = 0.0
    inner[:, 0] = inner[:, :, 0] = 0.0
    prior = UserPrior(
        explicit=True,
        precision=state.user_prior.precision.astype(np.float64),
        mean=state.user_prior.map[0].astype(np.float64),
        weight_I=(alpha * item_noise).astype(np.float64),
        covariance=inner,
        cross=cross,
    )
    return BayesModel(
        vectors_of(mu, users.mean, items.mean),
        state.user_prior.map,
        state.item_prior.map,
        prior,
        alpha,
        user_noise,
        item_noise,
        bound,
        users.covariance,
        items.covariance,
    )


@functools.lru_cache(maxsize=16)
def _sweeps(spread: Parallel, number: int) -> Callable[..., PyTree]:
    def body(carry: PyTree, blocks: PyTree, key: jax.Array) -> PyTree:
        state, (sides, alpha0) = carry

        def once(state: bayes_gibbs.State, key: jax.Array) -> tuple[bayes_gibbs.State, bayes_gibbs.Sample]:
            return bayes_gibbs.sweep(state, sides, blocks, alpha0, key, spread.axis)

        state, samples = jax.lax.scan(once, state, jax.random.split(key, number))
        return (state, carry[1]), samples

    return spread.compile(body, donate=False)


@dataclasses.dataclass(frozen=True)
class _Mean:
    """Sums over the samples that count: the products, and everything that is averaged by itself."""

    products: bayes_served.LowRank
    singles: dict[str, np.ndarray]
    number: int

    @classmethod
    def empty(cls, sides: tuple[Side, Side], settings: BayesConfig) -> "_Mean":
        users, items = sides
        sizes = (len(users.counts), len(items.counts), users.features.shape[1], items.features.shape[1])
        rank = min(_KEPT * settings.gibbs_factors, *sizes[:2])
        return cls(bayes_served.empty(sizes, rank, users.features.dtype), {}, 0)

    def add(self, samples: bayes_gibbs.Sample) -> "_Mean":
        names = ("users", "items", "user_map", "item_map")
        products = bayes_served.add(self.products, *(getattr(samples, name)[..., 1:] for name in names))
        singles = {name: getattr(samples, name)[..., 0] for name in names}
        singles |= {"alpha": samples.alpha, "user_noise": samples.user_noise, "item_noise": samples.item_noise}
        sums = {name: np.asarray(part, np.float64).sum(axis=0) for name, part in singles.items()}
        number = self.number + len(samples.alpha)
        return _Mean(products, {name: part + self.singles.get(name, 0.0) for name, part in sums.items()}, number)


def _sampled_model(
    ratings: Ratings, sides: tuple[Side, Side], mean: _Mean, settings: BayesConfig, spread: Parallel
) -> BayesModel:
    dtype = sides[0].features.dtype
    single = {name: (part / mean.number).astype(dtype) for name, part in mean.singles.items()}
    parts = bayes_served.served(mean.products, mean.number, settings.gibbs_factors)
    users, items, user_map, item_map = (
        np.concatenate([single[name][:, None], np.asarray(part)], axis=1)
        for name, part in zip(("users", "items", "user_map", "item_map"), parts, strict=True)
    )
    require_solved(users, "users", _REMEDY)
    require_solved(items, "items", _REMEDY)
    state = State(
        bayes_variational.point(jnp.asarray(users), jnp.asarray(single["user_noise"])),
        bayes_variational.point(jnp.asarray(items), jnp.asarray(single["item_noise"])),
        bayes_variational.start_prior(sides[0])._replace(map=jnp.asarray(user_map)),
        bayes_variational.start_prior(sides[1]),
        Gamma(jnp.asarray(single["alpha"]), jnp.ones((), dtype)),
    )
    _, precision = _refit(spread)(spread.replicate((state, sides[0])), ratings.users.blocks, None)
    return BayesModel(
        vectors_of(ratings.mu, users, items),
        user_map,
        item_map,
        UserPrior(
            explicit=True,
            precision=np.asarray(precision, np.float64),
            mean=user_map[0].astype(np.float64),
            weight_I=single["alpha"] * single["item_noise"].astype(np.float64),
        ),
        float(single["alpha"]),
        single["user_noise"],
        single["item_noise"],
    )


@functools.lru_cache(maxsize=4)
def _refit(spread: Parallel) -> Callable[..., PyTree]:
    def body(carry: PyTree, blocks: PyTree, key: None) -> PyTree:
        state, side = carry
        return carry, bayes_variational.refit_precision(state, side, blocks, _ROUNDS, spread.axis)

    return spread.compile(body, donate=False)


def vectors_of(mu: float, users: Array, items: Array) -> Vectors:
    """Rows [bias | vector] of users and items as a recommender."""
    users, items = np.asarray(users), np.asarray(items)
    return Vectors(mu, users[:, 1:], users[:, 0], items[:, 1:], items[:, 0])
