"""Users of models that only rank: what training minimises in them, by an oracle, and what a service makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from ltrec_jax.bundle import Bundle
from ltrec_jax.serve import ranking_users
from ltrec_jax.serve.live_users import LiveUsers
from ltrec_jax.serve.service import Query, Service
from ltrec_jax.train.fit import fit

OBJECTIVES = ("softmax", "bpr")
POSITIVE = 4.0


def trained(objective, split, config, out):
    """Small batches: a few hundred steps bring the table near its optimum."""
    model = dataclasses.replace(config.model, user_l2=0.1, item_l2=0.005, embedding_dropout=0.2)
    settings = {"trainable": "none", "head_epochs": 30, "patience": 0, "batch_pairs": 48}
    train = dataclasses.replace(config.train, objective=objective, **settings)
    schedule = dataclasses.replace(config.schedule, steps="gradient")
    fit(split, dataclasses.replace(config, model=model, train=train, schedule=schedule), out)
    return out


@pytest.fixture(scope="module")
def runs(small_split, small_config, tmp_path_factory):
    place = tmp_path_factory.mktemp("ranking")
    return {name: trained(name, small_split, small_config, place / name) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def run_directory(runs):
    """What `start_server` serves in this module."""
    return runs["softmax"]


@pytest.fixture(params=OBJECTIVES)
def bundle(request, runs):
    return Bundle.load(runs[request.param] / "bundle")


@pytest.fixture
def service(bundle):
    service = Service(bundle)
    yield service
    service.close()


def liked_counts(bundle):
    liked = bundle.history.items[bundle.history.ratings >= POSITIVE]
    return np.bincount(liked, minlength=bundle.num_items)


def objective_of(bundle, q_NxD, b_N, own_N, weight_N):
    """What training minimises in a user with these likes, written out like by like; `own_N`: numbers of the items."""
    counts, train, model = liked_counts(bundle), bundle.config.train, bundle.config.model
    compared = np.flatnonzero(counts)
    chunks = np.ceil(counts[compared] / train.head_pairs_per_item)
    q_KxD, b_K = (
        np.asarray(a, np.float64)[compared] for a in (bundle.vectors.item_vectors, bundle.vectors.item_biases)
    )

    def data(p_D):
        total = 0.0
        for q_D, b, own, weight in zip(q_NxD, b_N, own_N, weight_N, strict=True):
            others = compared != own
            s_K, s = (b_K + jnp.sum(q_KxD * p_D[None, :], axis=1))[others], b + jnp.sum(q_D * p_D)
            if train.objective == "softmax":
                total += weight * (jax.nn.logsumexp(jnp.append(s_K, s)) - s)
            else:
                mine = chunks[~others][0] if (~others).any() else 1.0
                share_K = chunks[others] / chunks[others].sum()
                total += weight * jnp.sum(share_K * jax.nn.softplus(s_K - jnp.log(chunks[others]) - s + jnp.log(mine)))
        return total

    delta = model.embedding_dropout / (1 - model.embedding_dropout)

    def whole(p_D):
        bend_D = jax.lax.stop_gradient(jnp.diag(jax.hessian(data)(p_D)))
        return data(p_D) + len(own_N) * model.user_l2 * jnp.sum(p_D**2) + delta / 2 * jnp.sum(bend_D * p_D**2)

    return whole


@pytest.mark.parametrize("power", [0.0, 0.7])
def test_the_gradient_vanishes_at_the_answer(bundle, power):
    """Of known items, a never-liked one, and one that came later."""
    train = dataclasses.replace(bundle.config.train, propensity_power=power, propensity_clip=0.0)
    bundle = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, train=train))
    service, counts = Service(bundle), liked_counts(bundle)
    service.put_item("later", "the comet orbit rocket")
    numbers = np.array([1, 4, 30, int(np.flatnonzero(counts == 0)[0]), bundle.num_items])
    found = service.users.from_ratings([*numbers.tolist(), 7], [5.0, 4.0, 5.0, 4.0, 5.0, 2.0])
    q_NxD, b_N = service.items.score.rows(numbers)
    service.close()
    weight_I = counts[counts > 0].astype(np.float64) ** -power
    weight_I *= counts.sum() / (weight_I @ counts[counts > 0])
    by_item = dict(zip(np.flatnonzero(counts).tolist(), weight_I.tolist(), strict=True))
    weight_N = np.array([by_item.get(number, weight_I.max()) for number in numbers.tolist()])
    with jax.enable_x64(True):
        whole = objective_of(bundle, np.asarray(q_NxD, np.float64), np.asarray(b_N, np.float64), numbers, weight_N)
        slope = jax.grad(whole)(jnp.asarray(found.vector, jnp.float64))
        steepest = jax.grad(whole)(jnp.zeros(len(found.vector), jnp.float64))
    assert found.bias == 0.0
    assert np.abs(slope).max() < 1e-5 * np.abs(steepest).max()


def test_a_training_user_folded_in_has_nearly_the_trained_list(bundle, service):
    agreement = []
    for user in range(0, bundle.num_users, 4):
        folded = service.users.from_ratings(*(column.tolist() for column in bundle.history.of(user)))
        scores = bundle.vectors.item_vectors @ folded.vector + bundle.vectors.item_biases
        agreement.append(spearmanr(scores, np.asarray(bundle.score(np.array([user])))[0]).statistic)
    strangers = [
        spearmanr(*np.asarray(bundle.score(np.array([user, user + 1])))).statistic
        for user in range(0, bundle.num_users, 4)
    ]
    assert np.mean(agreement) > 0.95
    assert np.mean(agreement) > np.mean(strangers) + 0.1


def test_a_like_raises_an_items_score_and_takes_it_back(bundle, service):
    """The item that would be shown last, so that the like is news."""

    def scores(user):
        return bundle.vectors.item_vectors @ service.users.profile(user).vector + bundle.vectors.item_biases

    for user, first in (("u7", 40), ("somebody", 1)):
        service.feedback(user, f"i{first}", 5.0)
        before, vector = scores(user), service.users.profile(user).vector
        (answer,) = service.recommend([Query(user=user, k=90)])
        last = int(answer[-1].item_id[1:])
        service.feedback(user, f"i{last}", 5.0)
        after = scores(user)
        assert after[last] - after.mean() > before[last] - before.mean() + 0.01
        assert np.sum(after > after[last]) < np.sum(before > before[last])
        (answer,) = service.recommend([Query(user=user, k=90)])
        assert f"i{last}" not in [one.item_id for one in answer]
        service.feedback(user, f"i{last}", 1.0)
        np.testing.assert_allclose(service.users.profile(user).vector, vector, atol=1e-4)


def test_what_is_no_like_moves_nobody(bundle, service):
    unseen = np.setdiff1d(np.arange(bundle.num_items), bundle.history.of(7)[0])
    service.feedback("u7", f"i{unseen[0]}", 2.0)
    np.testing.assert_array_equal(service.users.profile("u7").vector, bundle.vectors.user_vectors[7])
    items, ratings = bundle.history.of(7)
    service.feedback("u7", f"i{items[0]}", float(ratings[0]))
    np.testing.assert_array_equal(service.users.profile("u7").vector, bundle.vectors.user_vectors[7])
    assert not service.users.from_ratings([3], [1.0]).vector.any()


def test_somebody_new_is_pulled_to_what_they_like_or_ask_for(service):
    for topic in range(3):
        liked = [f"i{i}" for i in range(topic, 30, 3)]
        (answer,) = service.recommend([Query(liked=liked, k=10)])
        assert [int(one.item_id[1:]) % 3 for one in answer].count(topic) >= 8
    plain, asked = service.recommend([Query(rated={"i3": 1.0}, k=90, show_seen=True), Query(text="the comet", k=90)])
    places = [[one.item_id for one in answer] for answer in (plain, asked)]
    space = [f"i{i}" for i in range(0, 90, 3)]
    assert np.mean([places[1].index(i) for i in space]) < np.mean([places[0].index(i) for i in space])


def test_a_sample_of_a_large_catalogue_stands_for_all_of_it(bundle, service, monkeypatch):
    rated = [1, 4, 16, 30], [5.0, 5.0, 4.0, 5.0]
    whole = service.users.from_ratings(*rated).vector
    trained = np.count_nonzero(liked_counts(bundle))
    monkeypatch.setattr(ranking_users, "COMPARED", trained - 1)
    vectors = [LiveUsers(bundle, service.items).from_ratings(*rated).vector for _ in range(2)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], whole)
    scores = [bundle.vectors.item_vectors @ vector for vector in (whole, vectors[0])]
    assert spearmanr(*scores).statistic > 0.9
    numbers, times = ranking_users._compared(liked_counts(bundle))
    assert len(numbers) < trained
    assert times.sum() == pytest.approx(trained, rel=0.3)


@pytest.mark.slow
def test_a_server_takes_feedback_and_new_users(start_server):
    server = start_server()
    status, _ = server.ask("POST", "/v1/feedback", {"user": "somebody", "item": "i1", "rating": 5})
    assert status == 200
    status, known = server.ask("POST", "/v1/recommend", {"user": "somebody", "k": 5})
    assert (status, len(known["items"])) == (200, 5)
    status, first = server.ask("POST", "/v1/recommend", {"user": "u7", "k": 5})
    best = first["items"][-1]["item_id"]
    assert server.ask("POST", "/v1/feedback", {"user": "u7", "item": best, "rating": 5})[0] == 200
    status, second = server.ask("POST", "/v1/recommend", {"user": "u7", "k": 5})
    assert best not in [one["item_id"] for one in second["items"]]
    for body in ({"liked": ["i1", "i4"]}, {"rated": {"i1": 5, "i2": 1}}, {"text": "the comet orbit"}):
        status, answer = server.ask("POST", "/v1/recommend", body)
        assert (status, len(answer["items"])) == (200, 10)
    server.stop()
    again = start_server()
    status, after = again.ask("POST", "/v1/recommend", {"user": "somebody", "k": 5})
    assert [one["item_id"] for one in after["items"]] == [one["item_id"] for one in known["items"]]
