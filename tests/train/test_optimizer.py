import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.config import TrainConfig
from ltrec_jax.train.optimizer import make_optimizer, make_schedule


def factors(steps, **changes):
    factor = make_schedule(TrainConfig(**changes), steps)
    return np.array([float(factor(jnp.int32(step))) for step in range(steps + 1)])


def test_cosine_rises_peaks_and_falls_to_zero():
    values = factors(100, warmup=0.1)
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert values[10] == 1.0
    np.testing.assert_allclose(values[55], 0.5, atol=1e-6)
    assert values[100] == pytest.approx(0.0, abs=1e-7)
    assert (np.diff(values[10:]) <= 0).all()


def test_linear_and_constant():
    np.testing.assert_allclose(factors(100, warmup=0.1, decay="linear")[10:], np.linspace(1, 0, 91), atol=1e-6)
    np.testing.assert_array_equal(factors(100, warmup=0.1, decay="constant")[10:], 1.0)


def test_without_warmup_the_first_step_has_the_peak():
    assert factors(10, warmup=0.0)[0] == 1.0


def test_rates_fall_from_layer_to_layer():
    def stack(value):
        layers = {str(i): {"output": {"dense": {"bias": jnp.full(2, value)}}} for i in range(12)}
        word = {"LayerNorm": {"bias": jnp.full(2, value)}}
        return {
            "encoder": {"embeddings": word, "encoder": {"layer": layers}},
            "head": {"projection": jnp.full(2, value)},
        }

    config = TrainConfig(warmup=0.0, learning_rate=1.0, head_learning_rate=1.0, layer_decay=0.5, head_weight_decay=0.0)
    optimizer = make_optimizer(config, 10, num_layers=12)
    updates, _ = optimizer.update(stack(1e-3), optimizer.init(stack(1.0)), stack(1.0))
    encoder = updates["encoder"]
    for i in range(12):
        layer = encoder["encoder"]["layer"][str(i)]["output"]["dense"]["bias"]
        np.testing.assert_allclose(layer, -(0.5 ** (11 - i)), rtol=1e-3)
    np.testing.assert_allclose(encoder["embeddings"]["LayerNorm"]["bias"], -(0.5**12), rtol=1e-3)
    np.testing.assert_allclose(updates["head"]["projection"], -1.0, rtol=1e-3)


def first_updates(**changes):
    config = TrainConfig(warmup=0.0, learning_rate=1e-3, head_learning_rate=1e-1, **changes)
    params = {
        "encoder": {"dense": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}},
        "head": {"projection": jnp.full(3, 2.0)},
    }
    gradients = {
        "encoder": {"dense": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}},
        "head": {"projection": -jnp.ones(3)},
    }
    optimizer = make_optimizer(config, 10, num_layers=2)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return updates


def test_encoder_and_head_move_at_their_own_peaks():
    updates = first_updates(weight_decay=0.0, head_weight_decay=0.0)
    # Adam's first step is the sign of the gradient.
    np.testing.assert_allclose(updates["encoder"]["dense"]["kernel"], -1e-3, rtol=1e-4)
    np.testing.assert_allclose(updates["head"]["projection"], 1e-1, rtol=1e-4)


def test_kernels_decay_and_biases_do_not():
    updates = first_updates(weight_decay=0.5, head_weight_decay=0.25)
    np.testing.assert_allclose(updates["encoder"]["dense"]["kernel"], -1e-3 * (1 + 0.5 * 2), rtol=1e-4)
    np.testing.assert_allclose(updates["encoder"]["dense"]["bias"], -1e-3, rtol=1e-4)
    np.testing.assert_allclose(updates["head"]["projection"], -1e-1 * (-1 + 0.25 * 2), rtol=1e-4)
