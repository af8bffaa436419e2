"""The whole evaluation against loops over Python lists, its laws, its JSON, and everything that may be missing."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from ltrec_jax.baselines import popularity
from ltrec_jax.errors import UserError
from ltrec_jax.evaluation import report, slices
from ltrec_jax.evaluation.results import SUMMED
from ltrec_jax.evaluation.significance import NOTHING


def evaluate(world, models=None, **options):
    models = models or {"ours": world.random_model(0), "other": world.random_model(1)}
    options = {"primary": next(iter(models)), "positive_rating": 4.0, "block_users": 5} | options
    return report.evaluate(models, world.split, world.groups, world.counts.counts, **options)


def lists_and_targets(world, model, allowed):
    """For each user with a target in `allowed`: the unseen items best first, and those targets."""
    split = world.split
    for user in range(split.dataset.num_users):
        seen = {
            i
            for part in (split.train, split.validation)
            for u, i in zip(part.user, part.item, strict=True)
            if u == user
        }
        rows = zip(split.test.user, split.test.item, split.test.rating, strict=True)
        wanted = {i for u, i, r in rows if u == user and r >= 4 and allowed[i] and i not in seen}
        if wanted:
            unseen = [i for i in range(split.dataset.num_items) if i not in seen]
            yield sorted(unseen, key=lambda i: (-model.table[user, i], i)), wanted


@pytest.mark.parametrize("group", ["overall", "head", "mid", "tail", "cold", "few", "warm"])
def test_figures_of_every_group_equal_a_loop(world, group):
    model = world.random_model()
    found = evaluate(world, {"ours": model}, ks=(3, 7))
    allowed = np.ones(20, bool) if group == "overall" else world.groups[group]
    test = world.split.test
    errors = [
        float(model.table[u, i]) - r for u, i, r in zip(test.user, test.item, test.rating, strict=True) if allowed[i]
    ]
    assert errors, "the small world must have test pairs in every group"
    rmse, mae = (found.estimate("ours", group, metric) for metric in ("rmse", "mae"))
    assert rmse.value == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors)))
    assert mae.value == pytest.approx(sum(map(abs, errors)) / len(errors))
    assert rmse.n == mae.n == len(errors)
    users = list(lists_and_targets(world, model, allowed))
    for k in (3, 7):
        hits = [[rank for rank, item in enumerate(listed[:k], 1) if item in wanted] for listed, wanted in users]
        ideal = [sum(1 / math.log2(r + 1) for r in range(1, min(k, len(w)) + 1)) for _, w in users]
        ndcg = [sum(1 / math.log2(r + 1) for r in h) / best for h, best in zip(hits, ideal, strict=True)]
        recall = [len(h) / len(w) for h, (_, w) in zip(hits, users, strict=True)]
        assert found.estimate("ours", group, f"ndcg@{k}").value == pytest.approx(sum(ndcg) / len(users))
        assert found.estimate("ours", group, f"recall@{k}").value == pytest.approx(sum(recall) / len(users))
        assert found.estimate("ours", group, f"recall@{k}").n == len(users)


def test_a_perfect_model_is_perfect_everywhere(world):
    test = world.split.test
    table = np.zeros((14, 20), np.float32)
    table[test.user, test.item] = test.rating
    found = evaluate(world, {"oracle": world.model(table)}, ks=(20,))
    overall = found.models["oracle"].overall
    assert overall["ndcg@20"].value == pytest.approx(1.0)
    assert overall["mrr@20"].value == overall["hitrate@20"].value == 1.0
    assert overall["rmse"].value == overall["mae"].value == 0.0
    groups = found.models["oracle"].groups
    assert all(groups[name]["recall@20"].value == pytest.approx(1.0) for name in groups if name != "sum")
    # Ranks are those of the list, in which targets outside the group come first too: only then is nDCG below 1.
    assert groups["cold among cold"]["ndcg@20"].value == groups["warm among warm"]["ndcg@20"].value == 1.0
    assert groups["sum"]["ndcg@20"].value == pytest.approx(2.0 + groups["tail among warm"]["ndcg@20"].value)
    assert overall["auc"].value == 1.0


def test_groups_that_part_the_catalogue_add_up(world):
    found = evaluate(world)
    parts = [found.models["ours"].groups[name]["rmse"] for name in ("head", "mid", "tail")]
    overall = found.models["ours"].overall["rmse"]
    assert sum(part.n for part in parts) == overall.n == len(world.split.test)
    assert sum(part.n * part.value**2 for part in parts) == pytest.approx(overall.n * overall.value**2)
    bins = [one.metrics["rmse"] for one in found.models["ours"].popularity]
    assert sum(one.n * one.value**2 for one in bins) == pytest.approx(overall.n * overall.value**2)
    thirds = {name: metrics["rmse"] for name, metrics in found.models["ours"].users.items()}
    for names in (slices.ACTIVITY, slices.TASTE):
        assert sum(thirds[name].n for name in (slices.COLD_USERS, *names)) == overall.n


def test_renaming_users_changes_no_value(world, new_world):
    events, order = world.split.dataset.interactions, np.random.default_rng(0).permutation(14)
    renamed = new_world(
        order[events.user], events.item, events.rating, world.split.test_rows, world.split.validation_rows
    )
    model = world.random_model()
    table = np.empty_like(model.table)
    table[order] = model.table
    one = evaluate(world, {"ours": model}).models["ours"]
    two = evaluate(renamed, {"ours": world.model(table)}).models["ours"]
    same = [(one.overall, two.overall), (one.catalogue, two.catalogue)]
    for first, second in [*same, *((one.users[name], two.users[name]) for name in one.users)]:
        for metric, found in first.items():
            assert second[metric].value == pytest.approx(found.value), metric


def test_the_same_seed_gives_the_same_report(world):
    first, second = evaluate(world, seed=3), evaluate(world, seed=3)
    assert first.comparisons == second.comparisons
    assert first.models["ours"].overall == second.models["ours"].overall
    assert first.models["ours"].overall != evaluate(world, seed=4).models["ours"].overall


def test_an_equal_model_is_no_different_and_a_far_better_one_is(world):
    close = world.model(np.clip(world.truth + 0.1, 1, 5))
    found = evaluate(world, {"ours": close, "twin": close, "noise": world.random_model()})
    verdicts = {(c.metric, c.group, c.against): c for c in found.comparisons}
    twin, noise = verdicts["rmse", "overall", "twin"], verdicts["rmse", "overall", "noise"]
    assert (twin.difference, twin.p, twin.verdict) == (0.0, 1.0, "unclear")
    assert noise.verdict == "better"
    assert noise.difference < 0
    assert noise.ci95[1] < 0
    assert noise.relative == pytest.approx(noise.difference / found.models["noise"].overall["rmse"].value)
    assert all(c.p_holm >= c.p for c in found.comparisons)
    turned = evaluate(world, {"noise": world.random_model(), "close": close})
    assert turned.comparison("rmse", "overall", "close").verdict == "worse"


def test_validation_items_are_never_listed(world):
    validation = world.split.validation
    table = np.zeros((14, 20), np.float32)
    table[validation.user, validation.item] = 9.0
    assert len(validation) > 3
    found = evaluate(world, {"ours": world.model(table), "flat": world.model(np.zeros((14, 20)))})
    assert found.models["ours"].overall["ndcg@10"] == found.models["flat"].overall["ndcg@10"]


def test_a_model_that_predicts_no_ratings_has_no_rating_figures(world):
    models = {"ours": world.random_model(), "popularity": popularity.fit(world.split.train, 20)}
    found = evaluate(world, models)
    assert found.models["popularity"].overall["rmse"] == found.models["popularity"].groups["head"]["mae"] == NOTHING
    assert found.models["popularity"].overall["ndcg@10"].n > 0
    assert not [c for c in found.comparisons if c.metric == "rmse"]
    without = evaluate(world, models, rating=False)
    assert without.models["ours"].overall["rmse"] == NOTHING
    assert without.headlines == ("ndcg@10",)
    turned = evaluate(world, dict(reversed(models.items())))
    assert turned.headlines == ("ndcg@10",)  # the primary has no RMSE to talk about


def test_k_larger_than_the_catalogue(world):
    found = evaluate(world, {"ours": world.random_model()}, ks=(50,))
    assert found.models["ours"].overall["recall@50"].value == pytest.approx(1.0)
    assert found.models["ours"].overall["hitrate@50"].value == 1.0


def test_nobody_has_a_positive(world):
    found = evaluate(world, positive_rating=6.0)
    assert found.models["ours"].overall["ndcg@10"] == NOTHING
    assert set(found.models["ours"].catalogue.values()) == {NOTHING}
    assert found.models["ours"].overall["rmse"].n == len(world.split.test)
    assert found.protocol["users_with_a_target"] == 0


def test_an_empty_group_is_null_not_nan(world):
    groups = world.groups | {"nobody": np.zeros(20, bool)}
    models = {"ours": world.random_model(), "other": world.random_model(1)}
    found = report.evaluate(
        models, world.split, groups, world.counts.counts, primary="ours", positive_rating=4.0, block_users=5
    )
    assert set(found.models["ours"].groups["nobody"].values()) == {NOTHING}
    assert not [c for c in found.comparisons if c.group == "nobody"]
    assert "nobody" not in found.table()


def test_json_is_strict_and_keeps_the_contract(world, tmp_path):
    models = {"ours": world.random_model(), "popularity": popularity.fit(world.split.train, 20)}
    found = evaluate(world, models, seconds={"ours": {"training": 12.5}})
    page = report.write_report(found, tmp_path / "run", settings={"seed": 0}, hardware={"cores": 2})
    assert page == tmp_path / "run" / "report.html"

    def refuse(constant):
        raise AssertionError(f"{constant} in report.json")

    content = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=refuse)
    assert {"dataset", "split", "primary", "models", "comparisons", "settings", "hardware"} <= set(content)
    assert content["primary"] == "ours"
    ours = content["models"]["ours"]
    plain = {"head", "mid", "tail", "cold", "few", "warm"}
    assert set(ours["groups"]) == plain | {"sum", "cold among cold"} | {
        f"{name} among warm" for name in plain - {"cold"}
    }
    assert set(ours["groups"]["sum"]) == {"ndcg@10"}
    for metrics in [ours["overall"], *(ours["groups"][name] for name in plain)]:
        assert {"rmse", "mae", "ndcg@10", "recall@10", "ndcg@20", "recall@20"} <= set(metrics)
        for estimate in metrics.values():
            assert set(estimate) == {"value", "ci95", "n"}
            assert (estimate["value"] is None) == (estimate["n"] == 0)
            assert estimate["ci95"] is None or estimate["ci95"][0] <= estimate["ci95"][1]
    assert {"coverage", "gini", "arp", "aplt", "novelty"} <= set(ours["catalogue"])
    assert all(isinstance(ours["catalogue"][name], float) for name in ("coverage", "gini", "arp"))
    assert ours["catalogue_ci95"]["arp"][0] <= ours["catalogue"]["arp"] <= ours["catalogue_ci95"]["arp"][1]
    assert {"training", "ranking", "rating"} == set(ours["seconds"])
    assert content["models"]["popularity"]["overall"]["rmse"] == {"value": None, "ci95": None, "n": 0}
    assert {"metric", "group", "against", "difference", "ci95", "p", "p_holm", "verdict"} <= set(
        content["comparisons"][0]
    )


def test_intervals_hold_their_values(world):
    for metrics in evaluate(world).models["ours"].groups.values():
        for found in metrics.values():
            if found.ci95 is not None:
                assert found.ci95[0] - 1e-12 <= found.value <= found.ci95[1] + 1e-12


def test_an_empty_test_part_is_the_users_mistake(world):
    empty = dataclasses.replace(world, split=dataclasses.replace(world.split, test_rows=np.zeros(0, np.int64)))
    with pytest.raises(UserError, match="'by hand' of 'small' is empty"):
        evaluate(empty)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primary": "nobody"}, "'nobody' is not one of"),
        ({"imputed_by": "x"}, "imputing model 'x'"),
        ({"ks": ()}, "above 0"),
        ({"ks": (0,)}, "above 0"),
    ],
)
def test_wrong_arguments(world, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(world, **options)


def test_a_mask_of_another_catalogue_is_refused(world):
    with pytest.raises(ValueError, match=r"'head' has shape \(3,\)"):
        report.evaluate(
            {"ours": world.random_model()},
            world.split,
            {"head": np.ones(3, bool)},
            world.counts.counts,
            primary="ours",
            positive_rating=4.0,
        )


def test_popularity_bins_double_and_cover_every_count():
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 100])
    bins = slices.popularity_bins(counts)
    assert bins[:4] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert all(sum(first <= count <= last for first, last in bins) == 1 for count in counts)
    assert slices.popularity_bins(np.zeros(0, int)) == [(0, 0)]


def test_thirds_of_users_by_activity():
    thirds = slices.thirds(np.array([5, 1, 9, 2, 7, 3]), slices.ACTIVITY)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in thirds.items()} == {
        "quiet": [1, 3],
        "medium": [0, 5],
        "active": [2, 4],
    }


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ([4] * 6, (0, 6, 0)),
        ([1, 1, 1, 9, 9, 9], (3, 0, 3)),
        ([2, 7, 7, 7, 7, 7], (1, 5, 0)),
        ([3, 3], (0, 2, 0)),
        ([], (0,) * 3),
    ],
)
def test_users_of_equal_value_stay_together(values, sizes):
    thirds = slices.thirds(np.array(values, float), slices.ACTIVITY)
    assert tuple(mask.sum() for mask in thirds.values()) == sizes
    assert np.sum(list(thirds.values()), axis=0).tolist() == [1] * len(values)
    for value in set(values):
        assert sum(mask[np.array(values) == value].any() for mask in thirds.values()) == 1


def test_cold_users_are_a_group_and_have_neither_activity_nor_taste(new_world):
    """Users 0..5 have no training event, 6..11 have two each: a figure for the one kind, and one for the other."""
    user = np.r_[np.arange(6), np.repeat(np.arange(6, 12), 3)]
    item = np.r_[np.arange(6), np.tile([10, 11, 12], 6)]
    test = np.r_[np.arange(6), np.arange(8, 24, 3)]
    world = new_world(user, item, np.full(len(user), 5.0), test)
    table = np.full((14, 20), 5.0)
    table[:6] -= 2.0
    found = evaluate(world, {"ours": world.model(table)}).models["ours"].users
    assert found["cold users"]["rmse"].value == 2.0
    assert found["cold users"]["rmse"].n == 6
    assert found["medium"]["rmse"].value == found["mixed"]["rmse"].value == 0.0
    assert {name for name, metrics in found.items() if metrics["rmse"].n} == {"cold users", "medium", "mixed"}


def test_lists_among_cold_items_rank_cold_items_alone(world):
    model = world.random_model()
    found = evaluate(world, {"ours": model}, ks=(2,)).models["ours"].groups["cold among cold"]["recall@2"]
    cold = world.groups["cold"]
    hits = []
    for unseen, wanted in lists_and_targets(world, model, cold):
        listed = [item for item in unseen if cold[item]][:2]
        hits.append(len(wanted & set(listed)) / len(wanted))
    assert found.value == pytest.approx(np.mean(hits))
    assert found.n == len(hits)


def test_the_sum_adds_warm_tail_and_cold_and_is_compared(world):
    found = evaluate(world)
    for model in found.models.values():
        parts = [model.groups[name]["ndcg@10"].value for name in SUMMED]
        assert model.groups["sum"]["ndcg@10"].value == pytest.approx(sum(parts))
    one = found.comparison("ndcg@10", "sum", "other")
    assert one.ci95[0] <= one.difference <= one.ci95[1]


def test_no_cold_target_no_candidate_sets(new_world):
    world = new_world([0, 0, 1, 1], [0, 1, 0, 1], [5, 5, 5, 5], [1, 2])
    found = evaluate(world)
    assert set(found.models["ours"].groups) == set(world.groups)
    assert found.among_grid("ndcg@10").columns == ()


def test_clicks_have_auc_and_log_loss_and_auc_is_their_headline(new_world):
    generator = np.random.default_rng(5)
    pairs = np.array([(u, i) for u in range(14) for i in range(20)])
    clicked = generator.integers(0, 2, len(pairs)).astype(np.float32)
    world = new_world(*pairs.T, clicked, np.flatnonzero(generator.random(len(pairs)) < 0.4))
    knowing = world.model(0.25 + 0.5 * world.truth)
    found = evaluate(world, {"ours": knowing, "noise": world.random_model()}, positive_rating=1.0)
    assert found.headlines == ("auc", "ndcg@10")
    assert found.models["ours"].overall["auc"].value == 1.0
    assert found.models["ours"].overall["logloss"].value == pytest.approx(-math.log(0.75), rel=1e-6)
    assert found.comparison("auc", "overall", "noise").verdict == "better"
    assert evaluate(world, {"ours": knowing}, positive_rating=2.0).models["ours"].overall["auc"] == NOTHING


def test_weighted_figures_of_the_report(world):
    truth = world.truth
    models = {"ours": world.random_model(), "perfect": world.model(truth)}
    found = evaluate(world, models, imputed_by="perfect")
    perfect, ours = (found.models[name].overall for name in ("perfect", "ours"))
    assert perfect["rmse_ips"].value == perfect["rmse_snips"].value == perfect["rmse_dr"].value == 0.0
    # Where the imputed ratings meet the observed ones, the estimate is the distance to them over all pairs with items
    # that have training events.
    users = np.unique(world.split.test.user)
    gap = (models["ours"].table[users] - truth[users])[:, world.groups["warm"]]
    assert ours["rmse_dr"].value == pytest.approx(math.sqrt(np.mean(gap**2)), rel=1e-5)
    warm = world.groups["warm"][world.split.test.item]
    assert ours["rmse_snips"].n == len(np.unique(world.split.test.user[warm])) < len(users)
    assert 0 < found.protocol["effective_pairs"] <= len(world.split.test)
    assert evaluate(world, models).models["ours"].overall["rmse_dr"] == NOTHING


def test_what_was_never_seen_has_no_propensity_and_no_weight(world, new_world):
    """Other ratings and other ranks of cold items change no estimate by propensity; a test of cold items has none."""
    test, cold = world.split.test, world.groups["cold"]
    model, weighted = world.random_model(), ("rmse_ips", "rmse_snips", "rmse_dr", "recall_snips@2", "dcg_snips@2")
    table = model.table + np.where(cold, -9.0, 0.0)[None, :]
    low = evaluate(world, {"ours": world.model(table), "other": model}, imputed_by="other", ks=(2,)).models["ours"]
    lower = evaluate(world, {"ours": world.model(table - 3.0 * cold), "other": model}, imputed_by="other", ks=(2,))
    for name in weighted:
        assert low.overall[name].value == pytest.approx(lower.models["ours"].overall[name].value), name
        assert low.overall[name].n > 0
    assert low.overall["rmse"].value < lower.models["ours"].overall["rmse"].value
    events, rows = world.split.dataset.interactions, np.arange(len(world.split.dataset.interactions))
    only_cold = new_world(events.user, events.item, events.rating, rows[cold[events.item]])
    found = evaluate(only_cold, {"ours": model, "other": model}, imputed_by="other", ks=(2,))
    assert cold[only_cold.split.test.item].all()
    assert len(test) > len(only_cold.split.test) > 5
    assert {found.models["ours"].overall[name] for name in weighted} == {NOTHING}
    assert found.protocol["effective_pairs"] == 0.0


def test_ratings_are_imputed_by_a_model_that_has_some(world):
    models = {"ours": world.random_model(), "popularity": popularity.fit(world.split.train, 20)}
    with pytest.raises(ValueError, match="'popularity' predicts no ratings"):
        evaluate(world, models, imputed_by="popularity")


def test_diversity_needs_vectors(world):
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    found = evaluate(world, item_vectors=vectors).models["ours"].catalogue["diversity"]
    assert 0 < found.value < 2
    assert evaluate(world).models["ours"].catalogue["diversity"] == NOTHING
    with pytest.raises(ValueError, match="item_vectors have shape"):
        evaluate(world, item_vectors=vectors[:3])


def test_the_dial_at_rest_is_the_model(world):
    model, tail = world.random_model(), world.groups["tail"]
    turned = world.model(model.table + 100.0 * tail[None, :])
    found = evaluate(world, {"ours": model}, dials={"ours": {1.0: turned, 0.0: model}})
    rest, full = found.dials["ours"]
    groups = found.models["ours"].groups
    assert (rest.dial, full.dial) == (0.0, 1.0)
    assert rest.warm == pytest.approx(groups["warm among warm"]["ndcg@10"].value)
    assert rest.tail == pytest.approx(groups["tail among warm"]["ndcg@10"].value)
    assert rest.cold == pytest.approx(groups["cold among cold"]["ndcg@10"].value)
    assert full.tail > rest.tail
    assert full.cold == rest.cold


def test_examples_are_found_by_one_and_missed_by_the_other(world):
    test, tail = world.split.test, world.groups["tail"]
    table = np.zeros((14, 20), np.float32)
    liked = (test.rating >= 4) & tail[test.item]
    table[test.user[liked], test.item[liked]] = 5.0
    models = {"ours": world.model(table), "other": world.model(-table)}
    found = evaluate(world, models, ks=(2,), rating=False).contrasts
    assert 0 < len(found) <= 3
    assert {(one.found_by, one.missed_by, one.depth) for one in found} == {("ours", "other", 2)}
    for one in found:
        user, item = int(one.user[1:]), int(one.item[1:])
        assert table[user, item] == 5.0
        assert one.rank <= 2
        assert one.train_events == world.counts.counts[item]
    assert len({one.user for one in found}) == len({one.item for one in found}) == len(found)
    reverse = evaluate(world, dict(reversed(models.items())), ks=(2,), rating=False).contrasts
    assert {one.found_by for one in reverse} == {"ours"}
    assert evaluate(world, {"ours": models["ours"]}).contrasts == ()


@pytest.mark.parametrize("seed", range(6))
def test_no_split_makes_a_figure_that_is_not_a_number(new_world, tmp_path, seed):
    """Few events, users and items without any, one rating value, one test user: strict JSON and a page all the same."""
    generator = np.random.default_rng(seed)
    events = int(generator.integers(2, 40))
    user, item = generator.integers(0, [1, 3, 14][seed % 3], events), generator.integers(0, [2, 20][seed % 2], events)
    rating = np.full(events, 4.0) if seed % 2 else generator.integers(0, 2, events)
    test = np.flatnonzero(generator.random(events) < 0.5) if seed else np.arange(events)
    world = new_world(user, item, rating, test if len(test) else [0])
    found = evaluate(world, imputed_by="other", item_vectors=np.zeros((20, 2)), positive_rating=float(seed < 4))
    page = report.write_report(found, tmp_path).read_text()
    json.dumps(found.to_dict(), allow_nan=False)
    assert not re.search(r"\bnan\b", page)
