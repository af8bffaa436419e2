import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.objectives.mlm import masked_cross_entropy, masked_hits


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (6, 9)).astype(np.float32)
    return scores, rng.integers(0, 9, 6).astype(np.int32), rng.random(6).astype(np.float32)


def test_the_loss_is_the_formula(case):
    scores, targets, weights = case
    probability = np.exp(scores.astype(np.float64))
    probability /= probability.sum(axis=1, keepdims=True)
    total, count = masked_cross_entropy(scores, targets, weights=weights)
    np.testing.assert_allclose(total, np.sum(weights * -np.log(probability[np.arange(6), targets])), rtol=1e-6)
    np.testing.assert_allclose(count, weights.sum(), rtol=1e-6)


def test_hits_are_the_highest_scores(case):
    scores, targets, weights = case
    total, _ = masked_hits(scores, targets, weights=weights)
    np.testing.assert_allclose(total, weights[scores.argmax(axis=1) == targets].sum(), rtol=1e-6)


@pytest.mark.parametrize("objective", [masked_cross_entropy, masked_hits])
def test_laws(objective, case):
    scores, targets, weights = case
    assert [float(x) for x in objective(scores, targets, weights=np.zeros(6, np.float32))] == [0.0, 0.0]
    padded = np.concatenate([scores, np.full((1, 9), np.nan, np.float32)])
    with_padding = objective(padded, np.append(targets, 0), weights=np.append(weights, np.float32(0)))
    np.testing.assert_allclose(with_padding, objective(scores, targets, weights=weights), rtol=1e-6)
    with pytest.raises(ValueError, match="shapes differ"):
        objective(scores, targets[:, None], weights=weights)


def test_padding_has_no_gradient_and_nan_is_not_hidden():
    def total(scores):
        return masked_cross_entropy(scores, jnp.array([0, 1]), weights=jnp.array([1.0, 0.0]))[0]

    gradient = jax.grad(total)(jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]))
    np.testing.assert_array_equal(gradient[1], [0.0, 0.0])
    assert np.isfinite(gradient).all()
    assert np.isnan(total(jnp.full((2, 2), jnp.nan)))
