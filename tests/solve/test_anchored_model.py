"""The top-N model over text vectors."""

import jax
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.config import WholeDataConfig
from ltrec_jax.solve import anchored_als, anchored_model, fold_in


def test_a_user_without_events_has_what_fits_everybody_and_so_a_list():
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.choice(60, 25, replace=False), 10)
    settings = WholeDataConfig(alternations=2)
    anchors = anchored_model.text_anchors(rng.normal(size=(10, 8)).astype(np.float32), settings)
    model = anchored_model.fit(user, item, anchors, num_users=8, settings=settings)
    solved = anchored_als.solve(user, item, anchors.vectors, num_users=8, settings=settings)
    known = np.isin(np.arange(8), user)
    assert not known.all()
    np.testing.assert_array_equal(model.user_vectors[known], solved.user_vectors[known])
    everybodys = fold_in.newcomer(solved.item_vectors, np.bincount(item, minlength=10), sum(known), settings)
    np.testing.assert_allclose(model.user_vectors[~known], np.tile(everybodys, (sum(~known), 1)), rtol=1e-5)
    assert np.ptp(model.user_vectors[~known] @ model.item_vectors.T) > 0


def test_float64_lowers_the_residual_of_the_normal_equations():
    """Of the users, who are solved last: (a0 Q^T Q + l2 (n_u + a0 |I|) + sum_i w q q^T) p = sum_i w q."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((30, 20)) < 0.4)
    settings = WholeDataConfig(alternations=2, propensity_power=0.0)
    anchors = anchored_model.text_anchors(rng.normal(size=(20, 12)).astype(np.float32), settings)
    residual = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            model = anchored_model.fit(
                user, item, anchors, num_users=30, settings=settings, spread=parallel.choose("jit"), dtype=dtype
            )
        assert model.item_vectors.dtype == model.user_vectors.dtype == dtype
        seen = np.zeros((30, 20))
        seen[user, item] = 1.0
        p, q = (part.astype(np.float64) for part in (model.user_vectors, model.item_vectors))
        left = settings.unobserved_weight * q.T @ q + np.einsum("ui,id,ie->ude", seen, q, q)
        ridge = settings.l2 * (seen.sum(axis=1) + settings.unobserved_weight * 20)
        off = np.einsum("ude,ue->ud", left, p) + ridge[:, None] * p - seen @ q
        residual[dtype] = np.abs(off).max() / np.abs(seen @ q).max()
    assert residual[np.float64] < 1e-12 < 1e-8 < residual[np.float32] < 1e-5


def of_texts(share, rng):
    features = rng.normal(size=(9, 6)).astype(np.float32)
    words = rng.normal(size=(9, 4)).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    return features, words, anchored_model.text_anchors(features, WholeDataConfig(lexical_share=share), words)


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_cosines_of_texts_and_of_words_are_mixed_by_the_share(share):
    features, words, anchors = of_texts(share, np.random.default_rng(1))
    wanted = (1 - share) * cosines(features - features.mean(axis=0)) + share * cosines(words)
    np.testing.assert_allclose(cosines(anchors.vectors), wanted, atol=1e-5)


def test_without_words_the_anchors_are_the_texts_own_to_the_last_bit():
    features, settings = np.random.default_rng(2).normal(size=(9, 6)).astype(np.float32), WholeDataConfig()
    anchors = anchored_model.text_anchors(features, settings)
    np.testing.assert_array_equal(anchors.z_IxE, anchored_als.anchors(features, anchors.center_E, 1.0))
    np.testing.assert_array_equal(anchors.encoder_map, settings.anchor_scale * np.eye(6, dtype=np.float32))
    assert not anchors.of_words.any()
    again = anchors.with_encoder(features, anchors.encoder_map)
    np.testing.assert_array_equal(again.vectors, anchors.vectors)
    with pytest.raises(ValueError, match="lexical share"):
        anchored_model.text_anchors(features, settings, features)
    with pytest.raises(ValueError, match="lexical share"):
        anchored_model.text_anchors(features, WholeDataConfig(lexical_share=0.1))


def test_what_the_encoder_learns_leaves_the_words_where_they_are():
    rng = np.random.default_rng(3)
    features, words, anchors = of_texts(0.3, rng)
    same = anchors.with_encoder(features, anchors.encoder_map)
    np.testing.assert_allclose(same.vectors, anchors.vectors, rtol=1e-6)
    moved_to, map_ExD = rng.normal(size=features.shape).astype(np.float32), rng.normal(size=(6, 10)).astype(np.float32)
    moved = anchors.with_encoder(moved_to, map_ExD)
    direction = anchored_als.anchors(moved_to, anchors.center_E, 1.0)
    np.testing.assert_allclose(moved.vectors, direction @ map_ExD + anchors.of_words, atol=1e-5)
    scale = np.sqrt(0.3) * WholeDataConfig().anchor_scale
    np.testing.assert_allclose(anchors.of_words, np.pad(scale * words, ((0, 0), (6, 0))), atol=1e-6)
