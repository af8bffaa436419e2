import dataclasses
import json
import threading

import numpy as np
import pytest

from ltrec_jax.commands.serving import Serve
from ltrec_jax.data.history import History, history
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import ranking
from ltrec_jax.serve import live_users
from ltrec_jax.serve.journal import Journal
from ltrec_jax.serve.service import NEW, Query, Service, recommend
from ltrec_jax.solve.fold_in import UserPrior, events, fold_in


def ids(answer):
    return [one.item_id for one in answer]


def one(service, **query):
    return service.recommend([Query(**query)])[0]


def test_the_best_unseen_items_come_first(bundle):
    found = recommend(bundle, "u7", k=10)
    seen, _ = bundle.history.of(7)
    scores = np.asarray(bundle.score(np.array([7])))[0].copy()
    scores[seen] = -np.inf
    expected = np.argsort(-scores, kind="stable")[:10]
    assert ids(found) == [f"i{i}" for i in expected]
    np.testing.assert_array_equal([f.score for f in found], scores[expected])
    assert [f.rank for f in found] == list(range(1, 11))


def test_served_is_what_was_evaluated(bundle, service, small_split):
    """For every user of the test part the service gives the evaluator's list, to the last item."""
    seen = history(small_split.train, small_split.dataset.num_users)
    wanted = ranking.targets(small_split.test, seen, bundle.num_items, 4.0)
    lists = ranking.rank(bundle, wanted, seen, bundle.num_items, 20, candidates={"all": None}, block_users=64)["all"]
    answers = service.recommend([Query(user=f"u{user}", k=20) for user in wanted.users])
    assert len(answers) > 50
    for items, answer in zip(lists.items, answers, strict=True):
        assert ids(answer) == [f"i{item}" for item in items]


def test_a_score_is_the_sum_of_its_reasons(service):
    for found in one(service, user="u7", k=30):
        assert found.bias + found.from_text + found.from_behaviour == pytest.approx(found.score, abs=2e-3)
        if found.group == NEW:
            assert found.from_behaviour == pytest.approx(0.0, abs=2e-3)


def test_reasons_are_liked_items_nearest_first(bundle):
    items, ratings = bundle.history.of(7)
    liked = {bundle.items["text"].iloc[i] for i, r in zip(items, ratings, strict=True) if r >= bundle.positive_rating}
    for found in recommend(bundle, "u7", k=5, reasons=2):
        assert 0 < len(found.resembles) <= 2
        assert set(found.resembles) <= liked
    assert all(found.resembles == () for found in recommend(bundle, "u7", k=5, reasons=0))


def test_groups_tell_new_items(bundle):
    groups = {found.item_id: found.group for found in recommend(bundle, "u7", k=bundle.num_items)}
    for item in range(80, 90):
        assert groups[f"i{item}"] == NEW
    assert set(groups.values()) <= {"head", "mid", "tail", NEW}


def test_fewer_come_back_when_fewer_are_unseen(bundle, service):
    seen, _ = bundle.history.of(7)
    assert len(recommend(bundle, "u7", k=10_000)) == bundle.num_items - len(seen)
    assert len(one(service, user="u7", k=10_000, show_seen=True)) == bundle.num_items
    assert one(service, user="u7", allow=[]) == []


def test_bad_requests_are_one_clear_line(bundle, service):
    with pytest.raises(UserError, match=r"Unknown user 'nobody'.*such as 'u0'"):
        recommend(bundle, "nobody")
    with pytest.raises(UserError, match="k must be at least 1"):
        recommend(bundle, "u1", k=0)
    for query, complaint in [
        ({}, "exactly one of"),
        ({"user": "u1", "text": "the comet"}, "exactly one of"),
        ({"user": "u1", "tail": 1.5}, "tail must lie in"),
        ({"user": "u1", "filters": {"colour": ["red"]}}, "Unknown attribute 'colour'"),
        ({"liked": ["nothing"]}, "Unknown item 'nothing'"),
        ({"rated": {"i1": 77.0}}, "A rating lies in 1..5, not 77"),
    ]:
        with pytest.raises(UserError, match=complaint):
            one(service, **query)
    with pytest.raises(UserError, match="by must be"):
        service.similar("i1", by="colour")


def test_filters_allow_and_deny(bundle, service):
    title = bundle.items["title"].iloc[5]
    same = set(bundle.items["item_id"][bundle.items["title"] == title])
    assert set(ids(one(service, user="u7", k=90, filters={"title": [title]}, show_seen=True))) == same
    assert set(ids(one(service, user="u7", k=90, allow=["i1", "i2", "gone"], show_seen=True))) == {"i1", "i2"}
    best = ids(one(service, user="u7", k=2))
    assert ids(one(service, user="u7", k=1, deny=best[:1])) == best[1:]


@pytest.mark.parametrize("power", [0.0, 0.7])
def test_a_new_users_vector_solves_the_objective(bundle, power):
    """The gradient of the training objective in the user's row vanishes at the answer, whatever its events weigh."""
    train = dataclasses.replace(bundle.config.train, propensity_power=power, propensity_clip=0.0)
    bundle = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, train=train))
    service = Service(bundle)
    rated = {1: 5.0, 4: 2.0, 60: 4.0}
    profile = service.users.from_ratings(list(rated), list(rated.values()))
    service.close()
    u = np.r_[profile.bias, profile.vector].astype(np.float64)
    vectors, model, counts = bundle.vectors, bundle.config.model, bundle.counts
    delta = model.embedding_dropout / (1 - model.embedding_dropout)
    gradient = len(rated) * np.r_[model.bias_l2, np.full(len(u) - 1, model.user_l2)] * u
    scale = counts.sum() / (counts[counts > 0] ** (1 - power)).sum()
    for item, rating in rated.items():
        x = np.r_[1.0, vectors.item_vectors[item]].astype(np.float64)
        weight = scale * float(counts[item]) ** -power
        gradient += weight * (vectors.mu + vectors.item_biases[item] + x @ u - rating) * x
        gradient[1:] += weight * delta * (x**2 * u)[1:]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_somebody_new_is_pulled_to_what_they_liked(service):
    for topic in range(3):
        liked = [f"i{i}" for i in range(topic, 30, 3)]
        found = [int(item[1:]) % 3 for item in ids(one(service, liked=liked, k=10))]
        assert found.count(topic) >= 8


def test_a_text_stands_for_a_user(service):
    found = one(service, text="the comet orbit rocket", k=5)
    assert len(found) == 5
    assert all(f.resembles == () for f in found)


def test_the_dial_shows_rarer_items(bundle, service):
    counts = dict(zip(bundle.items["item_id"], bundle.counts, strict=True))
    mean = [np.mean([np.log1p(counts[i]) for i in ids(one(service, user="u7", tail=t))]) for t in (0.0, 0.5, 1.0)]
    assert mean[0] >= mean[1] >= mean[2]
    assert ids(one(service, user="u7", tail=0.0)) == ids(one(service, user="u7"))
    assert set(ids(one(service, user="u7", diversity=0.7))) != set(ids(one(service, user="u7")))


def test_likeness_and_search(service, bundle):
    texts = bundle.items["text"]
    twin = (
        next(i for i in range(1, 90) if texts.iloc[i] == texts.iloc[0]) if (texts == texts.iloc[0]).sum() > 1 else None
    )
    assert len(service.similar("i0", 5)) == 5
    assert "i0" not in ids(service.similar("i0", 90))
    by_text = service.similar("i0", 90, by="text")
    assert len(by_text) == 89
    cosines = [found.cosine for found in by_text]
    assert cosines == sorted(cosines, reverse=True)
    if twin is not None:
        assert cosines[0] == pytest.approx(1.0, abs=0.01)
    best = service.search(texts.iloc[0], 5)
    assert texts.iloc[0] in [found.text for found in best]
    assert best[0].cosine == pytest.approx(1.0, abs=0.01)


def test_a_new_item_is_found_at_once_and_gone_at_once(service):
    assert service.put_item("fresh", "the comet orbit rocket", {"title": "comet orbit rocket"})
    assert "fresh" in ids(one(service, user="u7", k=200))
    assert one(service, user="u7", allow=["fresh"])[0].group == NEW
    assert ids(one(service, user="u7", filters={"title": ["comet orbit rocket"]}, allow=["fresh"])) == ["fresh"]
    assert service.search("the comet orbit rocket", 3)[0].cosine == pytest.approx(1.0, abs=0.01)
    assert len(service.similar("fresh", 5)) == 5
    service.delete_item("fresh")
    assert "fresh" not in ids(one(service, user="u7", k=200))
    assert "fresh" not in ids(service.search("the comet orbit rocket", 200))
    with pytest.raises(UserError, match="Unknown item 'fresh'"):
        service.delete_item("fresh")


def test_a_changed_item_keeps_what_behaviour_taught(bundle, service):
    before = {f.item_id: f for f in one(service, user="u7", k=90, show_seen=True)}["i2"]
    assert not service.put_item("i2", before.text)
    after = {f.item_id: f for f in one(service, user="u7", k=90, show_seen=True)}["i2"]
    assert after.score == pytest.approx(before.score, abs=5e-3)
    assert after.from_behaviour == pytest.approx(before.from_behaviour, abs=5e-3)
    assert after.group == before.group
    seen = {f"i{i}" for i in bundle.history.of(7)[0]}
    changed = next(iter(seen))
    service.put_item(changed, "the heist")
    assert changed not in ids(one(service, user="u7", k=200))


def test_feedback_moves_the_user_at_once_and_equals_solving_anew(service):
    service.feedback("somebody", "i1", 5.0)
    service.feedback("somebody", "i4", 1.0)
    service.feedback("somebody", "i1", 4.0)
    moved = service.users.profile("somebody")
    fresh = service.users.from_ratings([4, 1], [1.0, 4.0])
    np.testing.assert_allclose(moved.vector, fresh.vector, atol=1e-6)
    assert moved.bias == pytest.approx(fresh.bias, abs=1e-6)
    assert not {"i1", "i4"} & set(ids(one(service, user="somebody", k=90)))


def test_a_known_user_starts_from_the_trained_vector(bundle, service):
    trained = service.users.profile("u7")
    unseen = ids(one(service, user="u7", k=90))
    service.feedback("u7", unseen[-1], 5.0)
    moved = service.users.profile("u7")
    assert 0 < np.abs(moved.vector - trained.vector).max() < 1.0
    items, ratings = bundle.history.of(7)
    again = live_users.LiveUsers(bundle, service.items)
    again.feedback("u7", int(items[0]), float(ratings[0]))  # what was known already moves nothing
    np.testing.assert_allclose(again.profile("u7").vector, trained.vector, atol=1e-5)


def test_a_click_counts_for_its_group_and_place(service):
    answer = one(service, user="u7", k=5)
    service.shown("u7", answer)
    service.feedback("u7", answer[2].item_id, click=True)
    service.feedback("u7", answer[2].item_id, click=True)  # the same click again
    group = service.clicks.groups[answer[2].group]
    assert group.clicks == 1
    assert group.weighted == 3.0
    assert sum(g.shown for g in service.clicks.groups.values()) == 5


def test_an_empty_catalogue_answers_and_takes_items(bundle):
    vectors = dataclasses.replace(
        bundle.vectors, item_vectors=bundle.vectors.item_vectors[:0], item_biases=bundle.vectors.item_biases[:0]
    )
    nothing = np.zeros(0, np.int32)
    empty = dataclasses.replace(
        bundle,
        vectors=vectors,
        items=bundle.items.iloc[:0],
        history=History(np.zeros(bundle.num_users + 1, np.int64), nothing, np.zeros(0, np.float32)),
        counts=bundle.counts[:0],
        group=bundle.group[:0],
        text_vectors=bundle.text_vectors[:0],
    )
    service = Service(empty)
    service.warm_up()
    assert one(service, user="u7") == service.search("the comet") == []
    service.put_item("first", "the comet orbit")
    assert ids(one(service, user="u7")) == ids(service.search("the comet")) == ["first"]
    service.close()


def test_items_are_found_by_what_people_call_them(bundle, service):
    assert service.items.named("i7") == "i7"
    text = bundle.items["text"].drop_duplicates(keep=False).iloc[0]
    item = bundle.items["item_id"][bundle.items["text"] == text].iloc[0]
    assert service.items.named(text.upper()) == item
    with pytest.raises(UserError, match=r"'the' begins \d+ items: .*Say more, or give an id"):
        service.items.named("the")
    with pytest.raises(UserError, match=r"No item is called 'zzz'"):
        service.items.named("zzz")
    with pytest.raises(UserError, match=r"Do you mean '"):
        service.items.named(text[4:])


@pytest.mark.parametrize("kind", ["int8", "hnsw"])
def test_an_index_that_loses_something_says_so_and_leaves_it_written(bundle, tmp_path, capsys, kind):
    serve = Serve(tmp_path, index=kind)
    serve._index(bundle)
    told = json.loads((tmp_path / "index.json").read_text())
    assert told["index"] == kind
    assert 0.5 < told["found_of_exact_20"]["all"] <= 1.0
    assert "Share of the exact top 20" in capsys.readouterr().out


def test_click_rates_are_told_from_a_log(bundle, tmp_path):
    from rich.console import Console

    from ltrec_jax.commands.click_table import click_table

    first = Service(bundle, journal=Journal(tmp_path / "log.sqlite"))
    answer = one(first, user="u7", k=4)
    first.shown("u7", answer)
    first.feedback("u7", answer[0].item_id, click=True)
    first.close()
    console = Console(record=True, width=120)
    console.print(click_table(tmp_path / "log.sqlite"))
    assert answer[0].group in console.export_text()
    with pytest.raises(UserError, match="does not exist"):
        click_table(tmp_path / "nothing.sqlite")


def test_whole_data_models_count_good_ratings_alone(bundle):
    """An event is a rating from the positive one on; it comes and goes with its rating."""
    width = bundle.vectors.item_vectors.shape[1]
    prior = UserPrior(
        explicit=False,
        precision=np.eye(width),
        mean=np.zeros(width),
        weight_I=np.linspace(1.0, 2.0, bundle.num_items),
        ridge=0.1,
        newcomer=np.arange(1.0, width + 1.0),
    )
    history = dataclasses.replace(bundle.history, ratings=np.ones(len(bundle.history.ratings)))
    service = Service(dataclasses.replace(bundle, prior=prior, history=history))
    service.feedback("somebody", "i1", 5.0)
    service.feedback("somebody", "i2", 1.0)
    design, target = events(prior, np.array([1]), None, 0.0, bundle.vectors.item_vectors, bundle.vectors.item_biases)
    expected = fold_in(prior, np.array([1]), design, target)
    np.testing.assert_allclose(service.users.profile("somebody").vector, expected, atol=1e-6)
    assert not {"i1", "i2"} & set(ids(one(service, user="somebody", k=90)))
    # Whoever has none has the newcomers' vector, a user of the training too; the first one leads both to the same.
    service.feedback("somebody", "i1", 1.0)
    unseen = f"i{np.setdiff1d(np.arange(bundle.num_items), history.of(7)[0])[0]}"
    for user in ("somebody", "u7"):
        service.feedback(user, unseen, 1.0)
        np.testing.assert_allclose(service.users.profile(user).vector, prior.newcomer, atol=1e-6)
        service.feedback(user, unseen, 5.0)
    np.testing.assert_allclose(*(service.users.profile(user).vector for user in ("somebody", "u7")), atol=1e-6)
    service.close()


def test_a_new_users_ratings_weigh_as_training_weighed_them(bundle):
    """With weights by rating value: the ridge regression of `squared_users` with them, and it moves with a rating."""
    about = {**bundle.about, "rating_weights": [[1.0, 3.0, 5.0], [4.0, 2.0, 0.5]]}
    service = Service(dataclasses.replace(bundle, about=about))
    numbers, model, v = np.array([1, 5, 40]), bundle.config.model, bundle.vectors
    delta = model.embedding_dropout / (1 - model.embedding_dropout)
    for ratings, weights in (([5.0, 1.0, 4.5], [0.5, 4.0, 0.5]), ([5.0, 3.0, 4.5], [0.5, 2.0, 0.5])):
        for number, rating in zip(numbers, ratings, strict=True):
            service.feedback("somebody", f"i{number}", rating)
        x = np.insert(np.asarray(v.item_vectors[numbers], np.float64), 0, 1.0, axis=1)
        weight = np.array(weights)
        ridge = 3 * np.r_[model.bias_l2, np.full(8, model.user_l2)] + np.r_[0.0, np.full(8, delta)] * (weight @ x**2)
        target = np.array(ratings) - v.mu - v.item_biases[numbers]
        expected = np.linalg.solve((x * weight[:, None]).T @ x + np.diag(ridge), x.T @ (weight * target))
        profile = service.users.profile("somebody")
        np.testing.assert_allclose([profile.bias, *profile.vector], expected, rtol=1e-4, atol=1e-6)
    service.close()


def test_a_restart_gives_the_same_answers(bundle, tmp_path):
    first = Service(bundle, journal=Journal(tmp_path / "log.sqlite"))
    first.put_item("fresh", "the comet orbit rocket")
    first.feedback("u7", "fresh", 5.0)
    first.feedback("new one", "i3", 5.0)
    first.put_item("i3", "the heist alibi")
    first.delete_item("i4")
    first.shown("u7", one(first, user="u7", k=5))
    expected = [one(first, user=user, k=200) for user in ("u7", "u8", "new one")]
    first.close()
    second = Service(bundle, journal=Journal(tmp_path / "log.sqlite"))
    found = [one(second, user=user, k=200) for user in ("u7", "u8", "new one")]
    assert [ids(answer) for answer in found] == [ids(answer) for answer in expected]
    np.testing.assert_allclose(
        [f.score for answer in found for f in answer], [f.score for answer in expected for f in answer], atol=1e-5
    )
    assert second.clicks.groups == first.clicks.groups
    second.close()


def test_a_swap_replays_feedback_and_fails_no_request(bundle, service):
    service.feedback("new one", "i3", 5.0)
    service.put_item("fresh", "the comet orbit rocket")
    trained_on = bundle.history.of(7)
    service.feedback("u7", f"i{trained_on[0][0]}", float(trained_on[1][0]))
    stop, failures = threading.Event(), []

    def ask():
        while not stop.is_set():
            try:
                one(service, user="u8")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure we look for
                failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    vectors = dataclasses.replace(bundle.vectors, mu=bundle.vectors.mu + 1.0)
    service.swap(dataclasses.replace(bundle, vectors=vectors))
    stop.set()
    thread.join()
    assert failures == []
    assert service.bundle.vectors.mu == bundle.vectors.mu + 1.0
    assert "i3" not in ids(one(service, user="new one", k=200))
    assert "fresh" in ids(one(service, user="new one", k=200))
    assert "u7" not in service.users._moved  # the new bundle was trained on that event already


def test_an_unknown_attribute_writes_nothing(service):
    with pytest.raises(UserError, match="Unknown attribute 'colour'"):
        service.put_item("fresh", "the comet", {"colour": "red"})
    with pytest.raises(UserError, match="A rating lies in"):
        service.feedback("u7", "i1", 9.0)
    assert list(service._journal.read()) == []
