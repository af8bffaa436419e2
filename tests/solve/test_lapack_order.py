"""No two batched LAPACK calls of one program may run at once: on a CPU they can wait for each other for good.

What is looked at is the dependence of the calls in the traced programs, since the deadlock itself is a matter of luck.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import solve_triangular

from ltrec_jax import parallel
from ltrec_jax.solve import anchored_als, bayes, bayes_gibbs, bayes_variational, row_solve
from ltrec_jax.solve.side_information import assemble

LAPACK = ("cholesky", "triangular_solve")
ONE = parallel.choose("jit")


def independent_pairs(function, *arguments):
    """Pairs of batched LAPACK calls of which neither needs the other's result; and how many calls there are."""
    found, pairs = [], []

    def walk(jaxpr, needs):
        """`needs`: variable -> the calls that it depends on. Returns those of the outputs."""

        def of(variable):
            return needs.get(variable, frozenset()) if not hasattr(variable, "val") else frozenset()

        for equation in jaxpr.eqns:
            before = frozenset().union(*(of(v) for v in equation.invars))
            inner = [p for p in equation.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
            name = equation.primitive.name
            if name in LAPACK and equation.outvars[0].aval.ndim > 2:
                pairs.extend((name, other) for other in found if other not in before)
                call = f"{name} {len(found)}"
                found.append(call)
                after = [before | {call}] * len(equation.outvars)
            elif inner and len(inner) == 1 and name not in ("scan", "while", "cond"):
                body = getattr(inner[0], "jaxpr", inner[0])
                after = walk(body, dict(zip(body.invars, [of(v) for v in equation.invars], strict=True)))
            else:
                for part in inner:
                    body = getattr(part, "jaxpr", part)
                    walk(body, dict.fromkeys(body.invars, before))
                after = [before] * len(equation.outvars)
            needs.update(zip(equation.outvars, after, strict=True))
        return [of(v) for v in jaxpr.outvars]

    walk(jax.make_jaxpr(function)(*arguments).jaxpr, {})
    return pairs, len(found)


def of_one_device(blocks):
    return jax.tree.map(lambda part: part[0], blocks)


@pytest.fixture(scope="module")
def prepared():
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.choice(12 * 9, 60, replace=False), 9)
    users, items = (assemble({"a": rng.normal(size=(rows, 2))}, np.ones(rows, bool)) for rows in (12, 9))
    settings = bayes.BayesConfig(factors=2)
    rating = rng.normal(size=60).astype(np.float32)
    ratings, sides = bayes._prepare(user, item, rating, users, items, 3, 3, settings, ONE)
    return ratings, sides, bayes._noise_prior(ratings, np.float32)


def test_the_check_sees_two_solves_side_by_side():
    lower = jnp.broadcast_to(jnp.eye(3), (4, 3, 3))
    one_by_one, _ = independent_pairs(lambda a: solve_triangular(a, solve_triangular(a, a)), lower)
    side_by_side, calls = independent_pairs(lambda a: solve_triangular(a, a) + solve_triangular(a, 2 * a), lower)
    assert (one_by_one, len(side_by_side), calls) == ([], 1, 2)


def test_variational_bayes_solves_one_batch_at_a_time(prepared):
    ratings, sides, alpha0 = prepared
    state = bayes_variational.start(*sides, alpha0, jax.random.key(0))
    blocks = of_one_device((tuple(ratings.users.blocks), tuple(ratings.items.blocks)))
    pairs, calls = independent_pairs(lambda s: bayes_variational.iterate(s, sides, blocks, alpha0, None), state)
    assert calls >= 4
    assert pairs == []


def test_a_gibbs_sweep_solves_one_batch_at_a_time(prepared):
    ratings, sides, alpha0 = prepared
    state = bayes_gibbs.start(*sides, alpha0.mean, jax.random.key(0))
    blocks = of_one_device((tuple(ratings.users.blocks), tuple(ratings.items.blocks)))
    pairs, calls = independent_pairs(
        lambda s, k: bayes_gibbs.sweep(s, sides, blocks, alpha0, k, None), state, jax.random.key(1)
    )
    assert calls >= 4
    assert pairs == []


@pytest.mark.parametrize("entries", [4, 64])
def test_a_block_of_the_anchored_solve_too(entries):
    rng = np.random.default_rng(0)
    blocks = row_solve.make_blocks(
        np.repeat(np.arange(3), entries), np.tile(np.arange(entries), 3), None, 3, width=16, spread=ONE
    )
    table = jnp.asarray(rng.normal(size=(entries, 16)), jnp.float32)
    state = {"table": table, "shared": jnp.ones(16), "ridge": jnp.ones(3), "anchor": jnp.ones((3, 16))}
    pairs, calls = independent_pairs(anchored_als._solve_block, state, of_one_device(blocks.blocks[0]))
    assert calls > 0
    assert pairs == []
