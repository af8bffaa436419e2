"""The made-up catalogue keeps what it says of itself: counts, popularity, propensities, expectations, texts."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltrec_jax.data import popularity, synthetic, synthetic_texts
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.errors import UserError
from ltrec_jax.text import templates


@pytest.fixture(scope="module")
def world():
    return synthetic.catalogue(300, 200, 6000, seed=5)


def all_pairs(dataset):
    users, items = np.meshgrid(np.arange(dataset.num_users), np.arange(dataset.num_items), indexing="ij")
    return users.ravel(), items.ravel()


def test_counts_are_exact_and_pairs_distinct(world):
    dataset, truth = world
    events = dataset.interactions
    assert (dataset.num_users, dataset.num_items, len(events)) == (300, 200, 6000)
    assert len(np.unique(events.user.astype(np.int64) * 200 + events.item)) == 6000
    np.testing.assert_array_equal(np.bincount(events.item, minlength=200), truth.count_I)
    assert truth.popularity.sum() == pytest.approx(1.0)
    assert set(np.unique(events.rating)) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert (np.diff(events.timestamp) >= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_the_cold_share_is_exact(share):
    dataset, truth = synthetic.catalogue(60, 80, 700, cold_share=share)
    assert (np.bincount(dataset.interactions.item, minlength=80) == 0).sum() == round(80 * share)
    assert (truth.count_I == 0).sum() == round(80 * share)


@pytest.mark.parametrize("zipf", [0.6, 1.0, 1.3])
def test_the_zipf_exponent_is_recovered(zipf):
    _, truth = synthetic.catalogue(20_000, 400, 20_000, zipf=zipf, selection=0.0)
    counts = np.sort(truth.count_I)[::-1]
    middle = slice(2, np.flatnonzero(counts >= 8)[-1])
    slope = np.polyfit(np.log(np.arange(1, len(counts) + 1))[middle], np.log(counts[middle]), 1)[0]
    assert slope == pytest.approx(-zipf, abs=0.05)


def test_stated_propensities_are_the_frequencies_of_many_draws():
    """The catalogue is fixed and only who is observed is drawn again."""
    dataset, truth = synthetic.catalogue(40, 25, 200, selection=1.0, seed=1)
    users, items = all_pairs(dataset)
    stated = truth.propensity(users, items).reshape(40, 25)
    np.testing.assert_allclose(stated.sum(axis=0), truth.count_I, atol=1e-9)
    wish = truth.user_UxD * (truth.selection / 0.8)
    seen = np.zeros((40, 25))
    draws = 600
    for number in range(draws):
        user, item, odds = synthetic._observe(
            truth.count_I, truth.activity_U, wish, truth.item_IxD, np.random.default_rng(number)
        )
        np.testing.assert_allclose(odds, truth.odds_I)
        np.add.at(seen, (user, item), 1)
    free = (stated > 0) & (stated < 1)
    assert free.sum() > 500
    error = (seen / draws - stated)[free] / np.sqrt(stated[free] * (1 - stated[free]) / draws)
    assert np.abs(error).max() < 5
    assert error.std() == pytest.approx(1.0, abs=0.15)
    np.testing.assert_array_equal((seen / draws)[~free], stated[~free])


def test_inverse_propensities_undo_the_selection():
    """Users pick what they like: the plain mean is too high, the inverse-propensity mean is that of all pairs."""
    dataset, truth = synthetic.catalogue(400, 60, 4000, cold_share=0.0, zipf=0.5, selection=1.0, noise=0.3, seed=2)
    events = dataset.interactions
    true_mean = truth.expected(*all_pairs(dataset)).mean()
    weight = 1 / truth.propensity(events.user, events.item)
    weighted = (weight * events.rating).sum() / (400 * 60)
    assert events.rating.mean() - true_mean > 0.15
    assert weighted == pytest.approx(true_mean, abs=0.12)


def test_expected_ratings_are_the_mean_of_simulated_ones(world):
    _, truth = world
    users, items = np.arange(8), np.arange(8) * 20
    rng = np.random.default_rng(0)
    drawn = truth.mean(users, items) + truth.noise * rng.normal(size=(40_000, 8))
    simulated = np.clip(np.floor(drawn + 0.5), *truth.scale).mean(axis=0)
    np.testing.assert_allclose(truth.expected(users, items), simulated, atol=0.02)


def test_observed_ratings_scatter_around_the_expected_ones(world):
    dataset, truth = world
    events = dataset.interactions
    error = events.rating - truth.expected(events.user, events.item)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(events))
    assert error.std() < 0.7 * events.rating.std()


def test_without_noise_ratings_are_known():
    dataset, truth = synthetic.catalogue(50, 40, 500, noise=0.0, scale=(0, 10))
    events = dataset.interactions
    np.testing.assert_array_equal(events.rating, truth.expected(events.user, events.item))


def test_text_alone_predicts_cold_items(world):
    """What the words of the description say (which topic), and nothing else, beats the user's mean on cold items."""
    dataset, truth = world
    genre_of_word = {word: topic.genre for topic in synthetic_texts.TOPICS for word in topic.nouns + topic.adjectives}
    told = np.array(
        [
            next(
                genre_of_word[word]
                for word in text.lower().strip(".").replace(",", "").split()
                if word in genre_of_word
            )
            for text in dataset.items["description"]
        ]
    )
    events = dataset.interactions
    users, items = all_pairs(dataset)
    cold = truth.count_I[items] == 0
    users, items = users[cold], items[cold]
    mean = np.array([events.rating[events.user == u].mean() for u in range(dataset.num_users)])
    residual = events.rating - mean[events.user]
    by_topic = {
        (u, genre): residual[(events.user == u) & (told[events.item] == genre)]
        for u in range(dataset.num_users)
        for genre in np.unique(told)
    }
    shift = np.array(
        [by_topic[u, told[i]].sum() / (len(by_topic[u, told[i]]) + 1) for u, i in zip(users, items, strict=True)]
    )
    target = truth.expected(users, items)
    without = np.sqrt(np.mean((mean[users] - target) ** 2))
    with_text = np.sqrt(np.mean((mean[users] + shift - target) ** 2))
    assert with_text < 0.85 * without


def test_texts_use_the_words_of_their_topic_only(world):
    dataset, truth = world
    texts = templates.render(dataset.info["template"], dataset.items)
    for text, topic in zip(texts, truth.topic_I, strict=True):
        words = set(text.lower().replace(".", "").replace(",", "").split())
        for other, entry in enumerate(synthetic_texts.TOPICS):
            used = words & {*entry.nouns, *entry.adjectives}
            assert bool(used) == (other == topic), text
        assert synthetic_texts.TOPICS[topic].genre in text


def test_no_word_belongs_to_two_topics():
    words = [w for topic in synthetic_texts.TOPICS for w in (*topic.nouns, *topic.adjectives)]
    assert len(words) == len(set(words))
    assert len({topic.genre for topic in synthetic_texts.TOPICS}) == 16


def test_one_seed_one_catalogue(world):
    again, _ = synthetic.catalogue(300, 200, 6000, seed=5)
    other, _ = synthetic.catalogue(300, 200, 6000, seed=6)
    assert again.fingerprint == world[0].fingerprint
    assert other.fingerprint != again.fingerprint


def test_it_survives_the_disk(world, tmp_path):
    dataset, _ = world
    saved = dataset.save(tmp_path / "d")
    assert saved.fingerprint == dataset.fingerprint
    assert saved.info["synthetic"]["zipf"] == 1.0


def test_every_user_can_have_every_item():
    dataset, truth = synthetic.catalogue(10, 5, 50, cold_share=0.0)
    assert (truth.count_I == 10).all()
    assert len(dataset.interactions) == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_interactions": 5}, "num_interactions = 5 cannot be met"),
        ({"num_interactions": 10_000}, "cannot be met by 36 warm items"),
        ({"topics": 17}, "topics = 17"),
        ({"scale": (5, 1)}, "scale"),
        ({"cold_share": 1.0}, "no item left"),
        ({"cold_share": -0.2}, "cold_share"),
        ({"topic_share": 1.5}, "topic_share"),
        ({"num_users": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_met_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        synthetic.catalogue(**{"num_users": 30, "num_items": 40, "num_interactions": 300} | arguments)


def read(directory):
    shards = sorted((directory / "interactions").glob("*.parquet"))
    return [pq.read_table(shard) for shard in shards], pq.read_table(directory / "items.parquet")


def test_streamed_events(tmp_path):
    directory = synthetic.stream(tmp_path / "raw", 500, 300, 25_000, rows_per_shard=10_000, cold_share=0.2, seed=3)
    shards, items = read(directory)
    assert [len(shard) for shard in shards] == [10_000, 10_000, 5_000]
    assert [str(field.type) for field in shards[0].schema] == ["string", "string", "float", "int64"]
    events = shards[0].to_pandas()
    assert set(events["rating"]) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert events["rating"].nunique() == 5
    assert items.column_names == ["item_id", "title", "genre", "description"]
    drawn = set().union(*(shard["item_id"].to_pylist() for shard in shards))
    known = set(items["item_id"].to_pylist())
    assert len(known) == 300
    assert drawn <= known
    assert len(drawn) <= 240
    assert not list(tmp_path.glob(".raw*"))


def test_streamed_popularity_follows_the_law(tmp_path):
    shards, _ = read(synthetic.stream(tmp_path / "raw", 50, 20_000, 200_000, zipf=1.0, cold_share=0.0))
    counts = shards[0].group_by("item_id").aggregate([("item_id", "count")])["item_id_count"].to_numpy()
    # Rank-frequency exponent s is the power law exponent 1 + 1 / s of the counts.
    assert popularity.power_law_exponent(counts, minimum=10) == pytest.approx(2.0, abs=0.1)


def test_streams_of_one_seed_are_equal_whatever_the_length(tmp_path):
    def stream(name, rows, seed):
        return read(synthetic.stream(tmp_path / name, 100, 50, rows, rows_per_shard=500, seed=seed))

    first, items = stream("a", 1000, 1)
    second, items_again = stream("b", 1500, 1)
    other, _ = stream("c", 1000, 2)
    assert items.equals(items_again)
    assert first[0].equals(second[0])
    assert first[1].equals(second[1])
    assert not first[0].equals(other[0])
    assert not first[0].equals(first[1])


def test_a_stream_does_not_overwrite(tmp_path):
    synthetic.stream(tmp_path / "raw", 10, 10, 10)
    with pytest.raises(UserError, match="raw"):
        synthetic.stream(tmp_path / "raw", 10, 10, 10)
    synthetic.stream(tmp_path / "raw", 10, 10, 20, replace=True)
    with pytest.raises(UserError, match="rows_per_shard"):
        synthetic.stream(tmp_path / "other", 10, 10, 10, rows_per_shard=0)


def test_a_streams_catalogue_can_be_opened_by_the_library(tmp_path):
    """Same columns as a dataset's item table."""
    _, items = read(synthetic.stream(tmp_path / "raw", 10, 10, 10))
    events = synthetic.catalogue(10, 10, 20)[0].interactions
    users = synthetic.catalogue(10, 10, 20)[0].users
    assert Dataset("x", events, users, items.to_pandas()).num_items == 10
