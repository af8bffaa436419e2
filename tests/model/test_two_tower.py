import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.model import two_tower


def test_a_never_seen_item_is_its_text():
    anchor, bias = jnp.array([[1.0, 2.0]]), jnp.array([0.5])
    q, b = two_tower.item_vectors(anchor, bias, jnp.array([[9.0, 9.0, 9.0]]), jnp.zeros(1))
    np.testing.assert_array_equal(q, anchor)
    np.testing.assert_array_equal(b, bias)


def test_behaviour_is_added_through_the_gate():
    q, b = two_tower.item_vectors(
        jnp.array([[1.0, 2.0]]), jnp.array([0.5]), jnp.array([[2.0, 4.0, 6.0]]), jnp.array([0.5])
    )
    np.testing.assert_array_equal(q, [[2.0, 4.0]])
    np.testing.assert_array_equal(b, [3.5])


def test_pair_score_by_hand():
    users = jnp.array([[1.0, 2.0, 0.25]])
    score = two_tower.pair_scores(3.0, users, jnp.array([[0.5, -1.0]]), jnp.array([0.125]))
    assert float(score[0]) == 3.0 + 0.25 + 0.125 + 0.5 - 2.0


def test_pairs_and_blocks_give_the_same_scores():
    rng = np.random.default_rng(0)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    vectors = two_tower.Vectors(3.5, f(4, 5), f(4), f(6, 5), f(6))
    users, items = np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4)
    block = np.asarray(vectors.score(np.arange(4)))
    assert block.shape == (4, 6)
    assert block.dtype == np.float32
    np.testing.assert_allclose(vectors.score_pairs(users, items).reshape(4, 6), block, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        two_tower.item_vectors(jnp.ones((1, 2)), jnp.ones(1), jnp.ones((1, 2)), jnp.ones(1))
    with pytest.raises(ValueError, match="shapes differ"):
        two_tower.Vectors(0.0, *(np.ones((2, 2), np.float32), np.ones(2, np.float32)) * 2).score_pairs([0], [0, 1])


@pytest.mark.parametrize("width", [8, 64, 384])
def test_a_users_scores_are_the_same_bits_in_every_company(width):
    """What is served (one user at a time) ranks exactly as what was evaluated (blocks of users)."""
    rng = np.random.default_rng(width)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    vectors = two_tower.Vectors(3.5, f(21, width), f(21), f(1683, width), f(1683))
    together = np.asarray(vectors.score(np.arange(21)))
    alone = np.concatenate([np.asarray(vectors.score(np.array([user]))) for user in range(21)])
    np.testing.assert_array_equal(together, alone)
    assert vectors.score(np.zeros(0, np.int64)).shape == (0, 1683)
