import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.objectives.squared_error import squared_error


def test_sum_and_count_by_hand():
    total, count = squared_error(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]), weights=jnp.array([1.0, 0.5]))
    assert float(total) == 1.0 * 1 + 0.5 * 4
    assert float(count) == 1.5


def test_padding_never_reaches_the_sum_nor_the_gradient():
    def total(scores):
        return squared_error(scores, jnp.array([0.0, 0.0]), weights=jnp.array([1.0, 0.0]))[0]

    assert float(total(jnp.array([2.0, jnp.nan]))) == 4.0
    np.testing.assert_array_equal(jax.grad(total)(jnp.array([2.0, jnp.nan])), [4.0, 0.0])


def test_nan_in_a_real_pair_is_not_hidden():
    assert np.isnan(squared_error(jnp.array([jnp.nan]), jnp.zeros(1), weights=jnp.ones(1))[0])


def test_all_padding_gives_zero_and_zero():
    total, count = squared_error(jnp.ones(3), jnp.zeros(3), weights=jnp.zeros(3))
    assert (float(total), float(count)) == (0.0, 0.0)


def test_unequal_shapes_do_not_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        squared_error(jnp.ones((3, 1)), jnp.ones(3), weights=jnp.ones(3))
