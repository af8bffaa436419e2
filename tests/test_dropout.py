"""Masks by name: equal names, equal masks; otherwise independent, with the share asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.dropout import keep_mask

KEY = jax.random.key(7)


def test_a_mask_goes_with_its_names_and_not_with_its_place():
    users, items = jnp.array([3, 1, 3, 2]), jnp.array([5, 5, 6, 5])
    mask = keep_mask(KEY, users, items, shape=(64,), rate=0.5)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(keep_mask(KEY, users[order], items[order], shape=(64,), rate=0.5), mask[order])
    np.testing.assert_array_equal(keep_mask(KEY, users[1:2], items[1:2], shape=(64,), rate=0.5), mask[1:2])
    assert len(np.unique(np.asarray(mask), axis=0)) == 4
    # Swapped names are other names.
    assert not np.array_equal(keep_mask(KEY, items, users, shape=(64,), rate=0.5), mask)
    assert not np.array_equal(keep_mask(jax.random.key(8), users, items, shape=(64,), rate=0.5), mask)


def test_the_share_that_is_dropped_is_the_rate_and_the_mean_stays():
    names = jnp.arange(2000)
    for rate in (0.0, 0.1, 0.6):
        mask = np.asarray(keep_mask(KEY, names, shape=(4, 8), rate=rate))
        assert mask.shape == (2000, 4, 8)
        kept = np.float32(1.0) / np.float32(1.0 - rate)
        assert set(np.unique(mask)) <= {np.float32(0.0), kept}
        # Six standard errors of a share of 64,000 draws, over the whole and over each entry of the shape.
        assert abs((mask == 0).mean() - rate) <= 6 * np.sqrt(rate * (1 - rate) / mask.size)
        assert np.abs((mask == 0).mean(axis=0) - rate).max() <= 6 * np.sqrt(rate * (1 - rate) / 2000)
