"""What cold items get: hand-made neighbours, ridge against least squares, kernel against its definition, the dials."""

import numpy as np
import pytest

from ltrec_jax.config import WholeDataConfig
from ltrec_jax.errors import UserError
from ltrec_jax.solve import anchored_model, cold_start


@pytest.fixture(scope="module")
def items():
    """z of 3 cold and 12 warm items (width 4), residuals, counts."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(15, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z[:3], z[3:], rng.normal(size=(12, 4)), rng.integers(1, 50, 12)


def test_neighbours_are_the_weighted_mean_of_the_nearest(items):
    cold, warm, residual, counts = items
    found = cold_start.neighbour_residuals(cold, warm, residual, counts, neighbours=5, temperature=0.2)
    for c in range(3):
        cosine = warm @ cold[c]
        near = sorted(range(12), key=lambda j: -cosine[j])[:5]
        weight = np.array([np.exp(cosine[j] / 0.2) * np.sqrt(counts[j]) for j in near])
        np.testing.assert_allclose(found[c], weight @ residual[near] / weight.sum(), rtol=1e-10)


def test_neighbours_of_a_twin_at_a_low_temperature_are_the_twin(items):
    _, warm, residual, counts = items
    found = cold_start.neighbour_residuals(warm[:1], warm, residual, counts, neighbours=5, temperature=1e-4)
    np.testing.assert_allclose(found[0], residual[0], rtol=1e-6)
    nothing = cold_start.neighbour_residuals(warm, warm[:0], residual[:0], counts[:0], neighbours=5, temperature=0.2)
    np.testing.assert_array_equal(nothing, np.zeros((12, 4)))


def test_ridge_map_minimises_its_sum(items):
    _, warm, residual, counts = items
    found = cold_start.ridge_map(warm, residual, counts, l2=0.7)
    weight = np.sqrt(counts) / np.sqrt(counts).mean()
    rows = np.concatenate([np.sqrt(weight)[:, None] * warm, np.sqrt(0.7) * np.eye(4)])
    wanted = np.concatenate([np.sqrt(weight)[:, None] * residual, np.zeros((4, 4))])
    np.testing.assert_allclose(found, np.linalg.lstsq(rows, wanted, rcond=None)[0], rtol=1e-9)


@pytest.mark.parametrize("l2", [1e-6, 50.0])
def test_a_text_map_has_the_length_that_fits_best_whatever_its_penalty(items, l2):
    _, warm, residual, counts = items
    vectors = residual + 0.4 * warm
    found = cold_start.text_map(warm, vectors, counts, l2=l2)
    ridge = cold_start.ridge_map(warm, vectors, counts, l2=l2)
    np.testing.assert_allclose(found / ridge, (found / ridge)[0, 0])
    rest, placed = vectors - warm @ found, warm @ found
    assert abs(np.sqrt(counts) @ (rest * placed).sum(axis=1)) < 1e-8
    none = cold_start.text_map(warm, np.zeros_like(vectors), counts, l2=l2)
    assert not none.any()


def test_cold_gain_lengthens_what_no_event_has_placed(items):
    z = np.concatenate(items[:2])
    counts = np.concatenate([np.zeros(3, int), items[3]])
    anchors = anchored_model.Anchors(np.zeros(4), z, 0.4 * np.eye(4))
    vectors = 0.4 * z
    plain, projection = anchored_model.with_cold_items(anchors, vectors, counts, WholeDataConfig())
    longer, projected = anchored_model.with_cold_items(anchors, vectors, counts, WholeDataConfig(cold_gain=2.0))
    np.testing.assert_array_equal(longer[3:], vectors[3:])
    np.testing.assert_allclose(longer[:3], 2 * plain[:3])
    np.testing.assert_allclose(projected, 2 * projection)


def test_kernel_ridge_without_penalty_gives_a_warm_text_its_residual(items):
    _, warm, residual, counts = items
    found = cold_start.kernel_ridge_residuals(warm, warm, residual, counts, l2=1e-9)
    np.testing.assert_allclose(found, residual, rtol=1e-5)
    far = cold_start.kernel_ridge_residuals(warm, warm, residual, counts, l2=1e9)
    np.testing.assert_allclose(far, 0, atol=1e-6)


def test_kernel_ridge_refuses_what_does_not_fit(items, monkeypatch):
    cold, warm, residual, counts = items
    monkeypatch.setattr(cold_start, "KERNEL_RIDGE_LIMIT", 11)
    with pytest.raises(UserError, match="ridge"):
        cold_start.kernel_ridge_residuals(cold, warm, residual, counts, l2=1.0)


@pytest.mark.parametrize("cold", ["ridge", "text_map", "kernel_ridge"])
def test_without_a_penalty_too_few_or_equal_texts_are_told_with_the_setting(items, cold):
    """Two warm items in four dimensions; three of one text: neither a ridge nor a kernel ridge has one solution."""
    z = np.concatenate([items[0], items[1][[0, 0, 1]]])
    counts = np.array([0, 0, 0, 3, 2, 9])
    anchors = anchored_model.Anchors(np.zeros(4), z, 0.4 * np.eye(4))
    vectors = 0.4 * z + np.arange(24).reshape(6, 4)
    with pytest.raises(UserError, match=r"whole_data\.cold_l2 = 0.*Raise whole_data\.cold_l2"):
        anchored_model.with_cold_items(anchors, vectors, counts, WholeDataConfig(cold=cold, cold_l2=0.0))
    found, projection = anchored_model.with_cold_items(
        anchors, vectors, counts, WholeDataConfig(cold=cold, cold_l2=1e-3)
    )
    assert np.isfinite(found).all()
    assert np.isfinite(projection).all()


def test_dials_scale_warm_by_count_and_cold_by_gain():
    vectors = np.ones((3, 2), np.float32)
    found = cold_start.dialled(vectors, np.array([0, 1, 16]), tail_power=0.25, cold_gain=1.5)
    np.testing.assert_allclose(found[:, 0], [1.5, 1.0, 0.5])
    np.testing.assert_array_equal(
        cold_start.dialled(vectors, np.array([0, 1, 16]), tail_power=0.0, cold_gain=1.0), vectors
    )


@pytest.mark.parametrize("cold", ["anchor", "neighbours", "ridge", "kernel_ridge", "text_map"])
def test_warm_items_stay_and_cold_items_get_what_was_chosen(items, cold):
    z = np.concatenate(items[:2])
    counts = np.concatenate([np.zeros(3, int), items[3]])
    vectors = 0.4 * z
    vectors[3:] += items[2]
    anchors = anchored_model.Anchors(np.zeros(4), z, 0.4 * np.eye(4))
    settings = WholeDataConfig(cold=cold, cold_l2=1.0)
    found, projection = anchored_model.with_cold_items(anchors, vectors, counts, settings)
    np.testing.assert_array_equal(found[3:], vectors[3:])
    assert (cold == "anchor") == np.allclose(found[:3], 0.4 * z[:3])
    assert (cold in ("anchor", "ridge", "text_map")) == np.allclose(found[:3], z[:3] @ projection)
