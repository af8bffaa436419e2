"""Pseudonyms and k-anonymity: laws on any table, and no trace of an id on disk."""

import hashlib
import hmac
import stat
import string

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from ltrec_jax.data import anonymise, generalise, synthetic
from ltrec_jax.data.dataset import Dataset, Interactions
from ltrec_jax.errors import UserError

SALT = b"0123456789abcdef0123456789abcdef"


def people(num_users, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user_id": [f"Erika Mustermann {u}@example" for u in range(num_users)],
            "age": rng.integers(16, 90, num_users),
            "zip": [f"{z:05d}" for z in rng.integers(1000, 99999, num_users)],
            "occupation": rng.choice(["nurse", "smith", "sailor", "pope"], num_users, p=[0.6, 0.3, 0.09, 0.01]),
            "income": rng.lognormal(10, 1, num_users),
        }
    )


@pytest.fixture(scope="module")
def named():
    """A dataset with telling ids and attributes."""
    dataset, _ = synthetic.catalogue(200, 60, 1500, seed=3)
    items = dataset.items.assign(item_id=[f"SKU/{i:04d}/secret" for i in range(60)])
    folds = {"official_splits": {"u1": [0, 500], "u2": [500, 1500]}}
    return Dataset("shop", dataset.interactions, people(200), items, {**dataset.info, **folds})


def events_by_name(dataset, users, items):
    found = dataset.interactions
    return sorted(
        zip(
            np.asarray(users)[found.user].tolist(),
            np.asarray(items)[found.item].tolist(),
            found.rating.tolist(),
            found.timestamp.tolist(),
            strict=True,
        )
    )


def pseudonym(kind, name, salt=SALT):
    return hmac.new(salt, f"{kind}:{name}".encode(), hashlib.sha256).hexdigest()[:32]


def test_events_are_the_same_under_other_names(named):
    found = anonymise.anonymise(named, SALT, pseudonymise_items=True)
    users = [pseudonym("user_id", name) for name in named.users["user_id"]]
    items = [pseudonym("item_id", name) for name in named.items["item_id"]]
    assert events_by_name(found, found.users["user_id"], found.items["item_id"]) == events_by_name(named, users, items)
    titles = dict(zip(items, named.items["title"], strict=True))
    assert found.items["title"].tolist() == [titles[name] for name in found.items["item_id"]]


def test_official_folds_hold_the_same_events(named):
    found = anonymise.anonymise(named, SALT)
    for first, end in named.info["official_splits"].values():
        assert (np.diff(found.interactions.timestamp[first:end]) >= 0).all()
        before, after = named.interactions.take(np.arange(first, end)), found.interactions.take(np.arange(first, end))
        names = named.users["user_id"].map(lambda name: pseudonym("user_id", name)).to_numpy()
        old = sorted(zip(names[before.user], before.item.tolist(), before.rating.tolist(), strict=True))
        new = sorted(
            zip(found.users["user_id"].to_numpy()[after.user], after.item.tolist(), after.rating.tolist(), strict=True)
        )
        assert old == new


def test_neither_codes_nor_rows_keep_the_order_of_the_ids():
    """Codes in the order of the ids and events grouped by user would tell who is who."""
    users = pd.DataFrame({"user_id": [str(u) for u in range(300)]})
    user = np.repeat(np.arange(300, dtype=np.int32), 2)
    events = Interactions(user, user % 7, np.ones(600, np.float32), np.zeros(600, np.int64))
    dataset = Dataset("ordered", events, users, pd.DataFrame({"item_id": list("abcdefg")}))
    found = anonymise.anonymise(dataset, SALT)
    assert found.users["user_id"].is_monotonic_increasing
    old = {pseudonym("user_id", str(u)): u for u in range(300)}
    order = np.array([old[name] for name in found.users["user_id"]])
    assert abs(np.corrcoef(order, np.arange(300))[0, 1]) < 0.2
    met = order[found.interactions.user]
    assert abs(np.corrcoef(met, np.arange(600))[0, 1]) < 0.2


def test_pseudonyms_depend_on_the_salt_alone(named):
    first = anonymise.anonymise(named, SALT, quasi_identifiers=())
    again = anonymise.anonymise(named, SALT, quasi_identifiers=())
    other = anonymise.anonymise(named, SALT[::-1], quasi_identifiers=())
    assert first.fingerprint == again.fingerprint
    assert not set(first.users["user_id"]) & set(other.users["user_id"])
    fewer = Dataset("part", named.interactions.take(np.zeros(0, np.int64)), named.users.head(50), named.items)
    assert set(anonymise.anonymise(fewer, SALT).users["user_id"]) <= set(first.users["user_id"])


def test_no_id_and_no_salt_is_left_on_disk(named, tmp_path):
    found = anonymise.anonymise(named, SALT, pseudonymise_items=True, drop=["description"])
    found.save(tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    # Parquet compresses: what it says is looked for in what it holds as well.
    content = b"".join(path.read_bytes() for path in files)
    content += found.users.to_csv().encode() + found.items.to_csv().encode()
    assert found.users["user_id"].iloc[7].encode() in content
    for name in [*named.users["user_id"], *named.items["item_id"], SALT.decode(), SALT.hex()]:
        assert name.encode() not in content
    saved = Dataset.load(tmp_path / "out")
    done = saved.info["anonymised"]
    assert done["dropped"] == ["description"]
    assert "description" not in saved.items
    assert done["k"] == 5
    assert set(done["quasi_identifiers"]) == {"age", "zip", "occupation", "income"}
    assert done["smallest_group"] >= 5


def test_a_template_that_names_a_dropped_column_goes_with_it(named):
    found = anonymise.anonymise(named, SALT, drop=["description"])
    assert "template" in named.info
    assert "template" not in found.info
    assert "template" in anonymise.anonymise(named, SALT, drop=["age"]).info


def smallest_group(frame):
    return frame.astype(object).where(frame.notna(), "missing").groupby(list(frame.columns)).size().min()


@pytest.mark.parametrize("k", [2, 5, 20, 200])
def test_people_hide_among_k(k):
    frame = people(200).drop(columns="user_id")
    found = generalise.k_anonymous(frame, k=k)
    assert smallest_group(found.frame) >= k
    assert found.smallest == smallest_group(found.frame)
    assert found.frame.index.equals(frame.index)


attributes = st.one_of(
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "other", "日本"])), min_size=30, max_size=30),
    st.lists(st.one_of(st.none(), st.integers(-50, 10**6)), min_size=30, max_size=30),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=30, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.lists(st.text(alphabet=string.digits, min_size=0, max_size=6), min_size=30, max_size=30),
    st.lists(st.datetimes().map(lambda d: pd.Timestamp(d).floor("s")), min_size=30, max_size=30),
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["zip", "age", "city", "born"]), attributes, min_size=1),
    st.integers(1, 30),
    st.floats(0, 1),
)
def test_any_table_becomes_k_anonymous(table, k, max_suppressed):
    frame = pd.DataFrame(table)
    found = generalise.k_anonymous(frame, k=k, max_suppressed=max_suppressed)
    assert list(found.frame.columns) == list(frame.columns)
    assert len(found.frame) == 30
    assert smallest_group(found.frame) >= k
    # A value is kept, made coarser or removed; never invented.
    for name in frame.columns:
        assert not (frame[name].isna() & found.frame[name].notna()).any()


def test_a_table_that_is_anonymous_already_stays():
    frame = pd.DataFrame({"age": [30] * 6 + [40] * 6, "city": ["Ulm"] * 12})
    found = generalise.k_anonymous(frame, k=5)
    pd.testing.assert_frame_equal(found.frame, frame)
    assert found.suppressed == 0
    assert set(found.levels.values()) == {"as it is"}


def test_numbers_become_ranges_codes_lose_digits_rare_values_become_other():
    ages = generalise.k_anonymous(pd.DataFrame({"age": np.arange(20, 80)}), k=5, max_suppressed=0.0)
    assert sorted(set(ages.frame["age"])) == [f"{low}-{low + 4}" for low in range(20, 80, 5)]
    below = generalise.k_anonymous(pd.DataFrame({"degrees": np.linspace(-1, 1, 50)}), k=20, max_suppressed=0.0)
    assert set(below.frame["degrees"]) <= {"-1.6 to 0", "0 to 1.6"}
    zips = generalise.k_anonymous(pd.DataFrame({"zip": ["55414", "55415"] * 3 + ["90210", "90211"] * 3}), k=4)
    assert set(zips.frame["zip"]) == {"5541*", "9021*"}
    numbers = generalise.k_anonymous(pd.DataFrame({"zip_code": [2138, 2139] * 3 + [90210, 90211] * 3}), k=4)
    assert set(numbers.frame["zip_code"]) == {"0213*", "9021*"}
    jobs = ["nurse"] * 20 + ["pope", "king", "sage", "bard", "smith"]
    found = generalise.k_anonymous(pd.DataFrame({"job": jobs}), k=5)
    assert found.frame["job"].value_counts().to_dict() == {"nurse": 20, "other": 5}
    born = pd.DataFrame({"born": pd.to_datetime([f"19{y}-01-0{d}" for y in (60, 70, 80) for d in (1, 2, 3)])})
    assert set(generalise.k_anonymous(born, k=3).frame["born"]) == {"1960-01", "1970-01", "1980-01"}


def test_few_outliers_lose_their_values_and_the_rest_keeps_them():
    frame = pd.DataFrame({"city": ["Ulm"] * 100 + ["Bonn"] * 100, "job": ["nurse"] * 199 + ["pope"]})
    found = generalise.k_anonymous(frame, k=5, max_suppressed=0.05)
    assert (found.frame["job"].dropna() == "nurse").all()
    # One alone would stand out among the others: the group without values has five members too.
    assert found.frame.isna().all(axis=1).sum() in (0, 5) or found.frame.isna().all(axis=1).sum() >= 5
    assert "pope" not in found.frame.to_csv()


def test_only_rows_that_lose_a_value_are_counted_as_suppressed():
    frame = pd.DataFrame({"job": ["nurse"] * 95 + [None] * 3 + ["pope"] * 2})
    found = generalise.k_anonymous(frame, k=5, max_suppressed=0.05)
    assert found.frame["job"].isna().sum() == 5
    assert found.suppressed == 2


def test_a_categorical_forgets_its_removed_values():
    frame = pd.DataFrame({"job": pd.Categorical(["nurse"] * 99 + ["pope"])})
    found = generalise.k_anonymous(frame, k=5)
    assert "pope" not in str(found.frame["job"].dtype)
    assert "pope" not in found.frame.to_csv()


def test_columns_that_are_named_stay_as_they_are(named):
    found = anonymise.anonymise(named, SALT, quasi_identifiers=["age"], drop=["zip"])
    assert found.info["anonymised"]["kept_as_they_are"] == ["occupation", "income"]
    assert "zip" not in found.users
    by_name = dict(
        zip(named.users["user_id"].map(lambda n: pseudonym("user_id", n)), named.users["income"], strict=True)
    )
    assert found.users["income"].tolist() == [by_name[name] for name in found.users["user_id"]]


def test_a_column_that_repeats_the_ids_is_refused(named):
    telling = Dataset("x", named.interactions, named.users.assign(email=named.users["user_id"]), named.items)
    with pytest.raises(UserError, match="'email' of users repeats"):
        anonymise.anonymise(telling, SALT, quasi_identifiers=["age"])
    assert not anonymise.anonymise(telling, SALT).users["email"].str.contains("Erika").any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"salt": b"short"}, "5 bytes"),
        ({"drop": ["zap"]}, "column to drop 'zap'.*'zip'"),
        ({"drop": ["user_id"]}, "cannot be dropped"),
        ({"quasi_identifiers": ["title"]}, "quasi-identifier 'title'"),
        ({"k": 0}, "k = 0"),
        ({"k": 201}, "200 users cannot hide among 201"),
        ({"max_suppressed": 2.0}, "max_suppressed"),
    ],
)
def test_mistakes_are_one_line(named, options, message):
    with pytest.raises(UserError, match=message):
        anonymise.anonymise(named, **{"salt": SALT} | options)


def test_a_new_salt_is_private_and_stays(tmp_path):
    path = tmp_path / "keys" / "salt"
    with pytest.raises(UserError, match="Cannot read the salt file"):
        anonymise.read_salt(path)
    salt = anonymise.read_salt(path, create=True)
    assert len(salt) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert anonymise.read_salt(path, create=True) == salt == anonymise.read_salt(path)
    assert anonymise.read_salt(tmp_path / "other", create=True) != salt


def test_a_salt_inside_a_dataset_is_refused(named, tmp_path):
    named.save(tmp_path / "data")
    for inside in (tmp_path / "data" / "salt", tmp_path / "data" / "deep" / "salt"):
        with pytest.raises(UserError, match="lies in the dataset directory"):
            anonymise.read_salt(inside, create=True)
        assert not inside.exists()
    with pytest.raises(UserError, match="lies in the dataset directory"):
        anonymise.read_salt(tmp_path / "new" / "salt", outside=[tmp_path / "new"], create=True)
    (tmp_path / "weak").write_text("tiny\n")
    with pytest.raises(UserError, match="4 bytes"):
        anonymise.read_salt(tmp_path / "weak")


def test_without_attributes_only_the_names_change(named):
    bare = Dataset("bare", named.interactions, named.users[["user_id"]], named.items)
    found = anonymise.anonymise(bare, SALT)
    assert list(found.users.columns) == ["user_id"]
    assert found.info["anonymised"]["suppressed_users"] == 0
