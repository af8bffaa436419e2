"""The top-N model over text vectors."""

import numpy as np

from ltrec_jax.config import WholeDataConfig
from ltrec_jax.solve import anchored_als, anchored_model


def test_a_user_without_events_has_the_mean_of_the_others_and_so_a_list():
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.choice(60, 25, replace=False), 10)
    settings = WholeDataConfig(alternations=2)
    anchors = anchored_model.text_anchors(rng.normal(size=(10, 8)).astype(np.float32), settings)
    model = anchored_model.fit(user, item, anchors, num_users=8, settings=settings)
    solved = anchored_als.solve(user, item, anchors.vectors, num_users=8, settings=settings).user_vectors
    known = np.isin(np.arange(8), user)
    assert not known.all()
    np.testing.assert_array_equal(model.user_vectors[known], solved[known])
    np.testing.assert_allclose(model.user_vectors[~known], np.tile(solved[known].mean(0), (sum(~known), 1)), rtol=1e-5)
    assert np.ptp(model.user_vectors[~known] @ model.item_vectors.T) > 0
