"""The mean of products: exact while nothing is cut off, the best approximation of its rank where something is."""

import numpy as np

from ltrec_jax.solve import bayes_served

RNG = np.random.default_rng(0)
SAMPLES, USERS, ITEMS, WIDTH = 4, 7, 7, 2
P, Q = RNG.normal(size=(SAMPLES, USERS, WIDTH)), RNG.normal(size=(SAMPLES, ITEMS, WIDTH))
USER_MAP, ITEM_MAP = RNG.normal(size=(SAMPLES, 3, WIDTH)), RNG.normal(size=(SAMPLES, 5, WIDTH))


def added(kept):
    total = bayes_served.empty((USERS, ITEMS, 3, 5), kept, np.float32)
    for half in (slice(0, 2), slice(2, 4)):
        total = bayes_served.add(total, *(part[half].astype(np.float32) for part in (P, Q, USER_MAP, ITEM_MAP)))
    return total


def test_all_directions_kept_give_the_mean_and_carry_the_maps():
    p, q, user_map, item_map = bayes_served.served(added(7), SAMPLES, 7)
    np.testing.assert_allclose(p @ q.T, np.einsum("sud,sid->ui", P, Q) / SAMPLES, atol=1e-5)
    np.testing.assert_allclose(user_map @ q.T, np.einsum("sfd,sid->fi", USER_MAP, Q) / SAMPLES, atol=1e-4)
    np.testing.assert_allclose(p @ item_map.T, np.einsum("sud,sfd->uf", P, ITEM_MAP) / SAMPLES, atol=1e-4)


def test_served_is_the_best_approximation_of_its_rank():
    total = added(7)
    p, q, _, _ = bayes_served.served(total, SAMPLES, 2)
    u, values, vt = np.linalg.svd(np.einsum("sud,sid->ui", P, Q) / SAMPLES)
    np.testing.assert_allclose(p @ q.T, (u[:, :2] * values[:2]) @ vt[:2], atol=1e-5)
    assert float(total.dropped) < 1e-6


def test_what_is_cut_off_is_counted_and_missing_directions_are_zero():
    total = added(3)
    assert float(total.dropped) > 0
    p, q, user_map, item_map = bayes_served.served(total, SAMPLES, 5)
    assert [part.shape[1] for part in (p, q, user_map, item_map)] == [5] * 4
    np.testing.assert_array_equal(np.asarray(p)[:, 3:], 0)
