"""Operations against a count of the weights by hand, and against each other."""

import numpy as np
import pytest

from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.train.cost import encoder_flops, matmul_peak

CONFIG = EncoderConfig(vocab_size=9, hidden_size=8, num_layers=4, num_heads=2, intermediate_size=20, position_rows=16)


def test_a_layer_is_its_weights_and_attention():
    weights = 4 * 8 * 8 + 2 * 8 * 20
    attention = 2 * 5 * 5 * 8 + 2 * 5 * 5 * 8
    assert encoder_flops(CONFIG, np.array([5]), "all") == 3 * 4 * (2 * 5 * weights + attention)


def test_what_is_frozen_goes_forwards_only_and_what_is_cached_not_at_all():
    lengths = np.array([3, 7])
    layer = encoder_flops(CONFIG, lengths, "none") / 4
    assert encoder_flops(CONFIG, lengths, "all") == 12 * layer
    assert encoder_flops(CONFIG, lengths, "bias") == 8 * layer
    assert encoder_flops(CONFIG, lengths, "top:1") == 6 * layer
    assert encoder_flops(CONFIG, lengths, "top:1", cached=True) == 3 * layer
    assert encoder_flops(CONFIG, np.zeros(0, np.int64), "all") == 0


@pytest.mark.slow
def test_the_peak_is_a_rate_of_this_world():
    assert 1e8 < matmul_peak("float32") < 1e17
