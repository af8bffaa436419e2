"""Users placed by their own texts: the block of a solve of ratings, and training by gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax import parallel
from ltrec_jax.bundle import Bundle
from ltrec_jax.config import BayesConfig, ScheduleConfig
from ltrec_jax.data import splits
from ltrec_jax.encoder import catalogue, pooling
from ltrec_jax.encoder.bert import Bert
from ltrec_jax.errors import UserError
from ltrec_jax.model.head import Head
from ltrec_jax.objectives.squared_error import squared_error
from ltrec_jax.serve.live_users import rule_of
from ltrec_jax.train import phases, sparse_table
from ltrec_jax.train.fit import fit
from ltrec_jax.train.pair_loss import make_pair_loss, row_ids
from ltrec_jax.train.problem import load_problem
from ltrec_jax.train.state import full_params
from ltrec_jax.train.text_vectors import encode_slots
from ltrec_jax.train.tracking import read_rows


@pytest.fixture(scope="module")
def cold_split(small_dataset):
    """A fifth of the users is cold; everybody's text tells the topic that they like, and nothing else does."""
    wish = np.array(["rocket planet", "tractor barn", "detective heist"])[np.arange(small_dataset.num_users) % 3]
    users = small_dataset.users.assign(wish=[f"{w} {n}" for n, w in enumerate(wish)])
    dataset = dataclasses.replace(small_dataset, users=users)
    return splits.cold_users(dataset, share=0.2, test=0.0, validation=0.0, seed=0)


def asking(config, user_template, **schedule):
    data = dataclasses.replace(config.data, user_template=user_template)
    solve = ScheduleConfig(**({"goal": "explicit", "steps": "solve"} | schedule))
    return dataclasses.replace(config, data=data, schedule=solve, bayes=BayesConfig(factors=2, iterations=40))


def error(bundle, events):
    return float(np.sqrt(np.mean((bundle.score_pairs(events.user, events.item) - events.rating) ** 2)))


@pytest.mark.slow
def test_a_user_without_ratings_stands_where_the_text_does(cold_split, small_config):
    cold = cold_split.test
    assert not set(cold.user) & set(cold_split.train.user)
    with_texts = fit(cold_split, asking(small_config, "the {wish}"))
    without = fit(cold_split, asking(small_config, ""))
    assert error(with_texts, cold) < 0.85 * error(without, cold)
    users = np.unique(cold.user)
    assert len(np.unique(with_texts.vectors.user_vectors[users].round(5), axis=0)) == 3
    assert len(np.unique(without.vectors.user_vectors[users].round(5), axis=0)) == 1


def test_a_solve_for_lists_reads_no_user_texts(cold_split, small_config):
    for steps in ("solve", "solve_tune_solve"):
        with pytest.raises(UserError, match=r"data\.user_template"):
            asking(small_config, "{wish}", goal="whole_data", steps=steps)
    with pytest.raises(UserError, match="colour"):
        fit(cold_split, asking(small_config, "{colour}"))


@pytest.fixture(scope="module")
def problem(cold_split, small_config):
    """Training by gradient with user texts: what the user likes, and one to four words that say nothing more."""
    wish = cold_split.dataset.users["wish"].str.replace(r"\d+", "", regex=True)
    more = np.array([" and" * n for n in range(1, 5)])[np.arange(len(wish)) // 3 % 4]
    users = cold_split.dataset.users.assign(wish=wish + more)
    dataset = dataclasses.replace(cold_split.dataset, users=users)
    split = splits.cold_users(dataset, share=0.2, validation_share=0.2, test=0.0, validation=0.0, seed=0)
    config = dataclasses.replace(small_config, data=dataclasses.replace(small_config.data, user_template="the {wish}"))
    return load_problem(split, config, spread=parallel.choose("jit"))


def on(problem, spread=None, **train):
    config = dataclasses.replace(problem.config, train=dataclasses.replace(problem.config.train, **train))
    return dataclasses.replace(problem, spread=spread or problem.spread, config=config)


def without_texts(problem):
    return dataclasses.replace(problem, users=None, profiles_TxE=None)


def batches_of(source, epoch=0):
    return [source.batch(epoch, step) for step in range(source.steps_per_epoch)]


def texts_of_pairs(batch, device, part=()):
    """What a pair's slot leads to among the gathered slots of all devices, for the real pairs of one slice."""
    names = np.concatenate([batch.user_texts.name[(d, *part)] for d in range(len(batch.item))])
    real = batch.weight[(device, *part)] > 0
    return batch.pair_user[(device, *part)][real], names[batch.pair_text[(device, *part)][real]]


@pytest.mark.parametrize("with_texts", [True, False])
@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (3, 1), (2, 2)])
def test_a_batch_has_each_distinct_text_of_its_users_once(problem, with_texts, devices, accumulate):
    spread = parallel.choose("vmap", count=devices)
    asked = on(problem, spread, accumulate=accumulate, batch_pairs=16, batch_items=2)
    source, plain = (p.batches(with_texts=with_texts) for p in (asked, without_texts(asked)))
    users, shapes = problem.users, set()
    assert len(users.tokens) == len(np.unique(problem.dataset.users["wish"])) == 12
    for batch, same in zip(batches_of(source, 1), batches_of(plain, 1), strict=True):
        # Beside the users' texts nothing has changed, bit for bit.
        for a, b in zip(
            jax.tree.leaves(batch._replace(pair_text=None, user_texts=None)), jax.tree.leaves(same), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        shapes.add(tuple(a.shape for a in jax.tree.leaves(batch)))
        for part in [(a,) for a in range(accumulate)] if accumulate > 1 else [()]:
            pairs = [texts_of_pairs(batch, device, part) for device in range(devices)]
            user, text = (np.concatenate(each) for each in zip(*pairs, strict=True))
            np.testing.assert_array_equal(users.text_U[user], text)
            names = np.concatenate([batch.user_texts.name[(d, *part)] for d in range(devices)])
            encoded = np.sort(names[names < len(users.tokens)])
            np.testing.assert_array_equal(encoded, np.unique(text))
            if not with_texts:
                assert batch.user_texts.token_ids is None
                continue
            for device in range(devices):
                block = jax.tree.map(lambda leaf, at=(device, *part): leaf[at], batch.user_texts)
                for slot, name in enumerate(block.name):
                    here = block.token_slot == slot
                    found = block.token_ids[here][np.argsort(block.token_position[here])]
                    assert found.tolist() == (users.tokens.row(name).tolist() if name < len(users.tokens) else [])
                    assert len(np.unique(np.nonzero(here)[0])) <= 1
    assert len(shapes) <= 2


def test_a_process_builds_its_own_devices_and_encodings_are_counted(problem):
    source = on(problem, parallel.choose("vmap", count=4)).batches(with_texts=True)
    whole = source.batch(1, 2)
    source._share = slice(1, 3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(source.batch(1, 2)), strict=True):
        np.testing.assert_array_equal(a[1:3], b)
    source._share = slice(None)
    texts = [b.user_texts for b in batches_of(source)]
    encoded = sum(int((t.name < len(problem.users.tokens)).sum()) for t in texts)
    tokens = sum(int((t.token_slot < t.name.shape[-1]).sum()) for t in texts)
    assert source.user_encodings_per_epoch == pytest.approx(encoded, rel=0.05)
    of_items = without_texts(problem).batches(with_texts=True).tokens_per_epoch
    assert source.tokens_per_epoch - of_items == pytest.approx(tokens, rel=0.05)
    assert len(source.lengths_per_epoch) == source.units_per_epoch + source.user_encodings_per_epoch
    assert source.lengths_per_epoch.sum() == source.tokens_per_epoch
    assert problem.batches(with_texts=False).tokens_per_epoch == 0


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_encoding_each_pairs_own_texts(problem, prepare):
    """Against every pair's two texts, each in a row of its own: all leaves of the encoder and of both heads."""
    model = dataclasses.replace(problem.config.model, embedding_dropout=0.0)
    asked = on(problem, trainable="top:2", cache_layers=False, batch_pairs=64, batch_items=8)
    prepared = prepare(asked, "encoder")
    params = jax.device_get(full_params(prepared.state))
    batch = jax.tree.map(lambda leaf: leaf[0], prepared.source.batch(0, 0))
    real = batch.weight > 0
    user, item = batch.pair_user[real], batch.item[batch.pair_item[real]]
    encoder, bert, head = problem.encoder, Bert(problem.encoder.config, "float32"), Head(model.embedding_dim)
    encode = encode_slots(problem, None)
    packed = make_pair_loss(pooled_texts=encode, pooled_users=encode, head=head, objective=squared_error, model=model)
    rows = {name: sparse_table.gather(prepared.state.tables[name], row_ids(batch)[name]) for name in ("users", "items")}

    def place(params, head_name, tokens):
        ids = np.zeros((len(tokens), int(tokens.lengths.max())), np.int32)
        for row in range(len(tokens)):
            ids[row, : tokens.lengths[row]] = tokens.row(row)
        mask = (np.arange(ids.shape[1])[None, :] < tokens.lengths[:, None]).astype(np.int32)
        slot = np.where(mask > 0, np.arange(len(tokens))[:, None], len(tokens))
        hidden = bert.apply(
            {"params": params["encoder"]}, ids, mask, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        )
        pooled = catalogue.finish(encoder, pooling.pool(hidden, slot, len(tokens), encoder.pooling))
        return head.apply({"params": params[head_name]}, pooled)

    def naive(params):
        q, b = place(params, "head", problem.tokens.take(item))
        p, c = place(params, "user_head", problem.users.tokens.take(problem.users.text_U[user]))
        error = params["head"]["mu"] + b + c + jnp.sum(p * q, axis=1) - batch.target[real]
        # Rows of tables are 0 yet: what is penalised are the texts' parts.
        return jnp.sum(error**2 + model.user_l2 * jnp.sum(p**2, axis=1) + model.bias_l2 * c**2)

    expected, gradient = jax.jit(jax.value_and_grad(naive))(params)
    batched = jax.value_and_grad(lambda params: packed(params, rows, batch, jax.random.key(0))[0])
    found, ours = jax.jit(batched)(params)
    assert len(user) > len(np.unique(problem.users.text_U[user])) > 3
    # Some gradients are zero but for rounding: a bias of attention's keys changes no weight.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6 * largest, err_msg=jax.tree_util.keystr(path))
    assert all(np.abs(leaf).max() > 0 for name, leaf in ours["user_head"].items())


@pytest.mark.parametrize(
    ("mode", "count", "phase", "train"),
    [
        pytest.param("pmap", 8, "head", {}, marks=pytest.mark.slow),
        pytest.param("vmap", 2, "head", {"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("pmap", 8, "encoder", {"encoder_dropout": True, "trainable": "top:1"}, marks=pytest.mark.slow),
        pytest.param("shard_map", 8, "encoder", {"trainable": "top:1"}, marks=pytest.mark.slow),
        pytest.param("shard_map", 8, "head", {"objective": "softmax"}, marks=pytest.mark.slow),
        pytest.param("jit", 1, "encoder", {"accumulate": 3}, marks=pytest.mark.slow),
    ],
)
def test_devices_and_slices_give_the_parameters_of_one(problem, run_steps, mode, count, phase, train, cache):
    whole = {name: value for name, value in train.items() if name != "accumulate"}
    one, rows_of_one = run_steps(on(problem, **whole), phase, steps=2)
    many, rows_of_many = run_steps(on(problem, parallel.choose(mode, count=count), **train), phase, steps=2)
    for a, b in zip(rows_of_one, rows_of_many, strict=True):
        for name in a.keys() - {"gradient_norm"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-3)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_the_cache_of_hidden_states_changes_no_step(problem, prepare, run_steps, cache):
    plainly, rows = run_steps(on(problem, trainable="top:1", cache_layers=False), "encoder", steps=2)
    cached, again = run_steps(on(problem, trainable="top:1"), "encoder", steps=2)
    source = prepare(on(problem, trainable="top:1"), "encoder").source
    assert source.batch(0, 0).user_texts.hidden is not None
    for a, b in zip(rows, again, strict=True):
        np.testing.assert_allclose(a["squared_error"], b["squared_error"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(plainly), jax.tree.leaves(cached), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_a_user_without_events_is_the_text_and_a_known_one_moves_from_it(problem, prepare):
    prepared = prepare(problem, "head")
    users = prepared.state.tables["users"]
    noise = jax.random.normal(jax.random.key(0), users.cells.shape)
    tables = prepared.state.tables | {"users": dataclasses.replace(users, cells=noise)}
    state = jax.device_get(dataclasses.replace(prepared.state, tables=tables))
    vectors, _ = phases.finished_vectors(problem, prepared, state)
    head = state.trainable["user_head"] | state.frozen["user_head"]
    z = problem.profiles - head["center"]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cold = np.setdiff1d(np.arange(problem.dataset.num_users), problem.split.train.user)
    assert len(cold) >= 24
    np.testing.assert_allclose(vectors.user_vectors[cold], (z @ head["projection"])[cold], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors.user_biases[cold], (z @ head["text_bias"])[cold], rtol=1e-4, atol=1e-6)
    warm = np.unique(problem.split.train.user)
    rows = state.tables["users"].values
    beside = np.column_stack([vectors.user_vectors, vectors.user_biases]) - rows
    expected = np.column_stack([z @ head["projection"], z @ head["text_bias"]])
    np.testing.assert_allclose(beside[warm], expected[warm], rtol=1e-4, atol=1e-6)
    fresh = users.values
    assert not fresh.any()


@pytest.mark.slow
def test_a_run_places_cold_users_by_their_texts_and_goes_on_where_it_stopped(problem, tmp_path):
    model = dataclasses.replace(problem.config.model, user_l2=0.1)
    train = dataclasses.replace(problem.config.train, head_epochs=12)
    config = dataclasses.replace(problem.config, model=model, train=train)
    free = dataclasses.replace(config, data=dataclasses.replace(config.data, user_template=""))
    bundle = fit(problem.split, config, tmp_path / "run")
    cold = problem.split.test
    assert error(bundle, cold) < 0.9 * error(fit(problem.split, free), cold)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "encodings_per_epoch" in row]
    assert [row.get("user_encodings_per_epoch", 0) > 0 for row in rows] == [False, True]
    again = fit(problem.split, config, tmp_path / "run", resume=True)
    np.testing.assert_array_equal(again.vectors.user_vectors, bundle.vectors.user_vectors)
    read = Bundle.load(tmp_path / "run" / "bundle")
    np.testing.assert_array_equal(read.user_text_rows, bundle.user_text_rows)
    users, known = np.unique(cold.user), np.unique(problem.split.train.user)
    np.testing.assert_array_equal(read.user_text_rows[users, :-1], read.vectors.user_vectors[users])
    # Who comes without a text is as the texts of known users are on average.
    vector, _ = rule_of(read).fresh().solve()
    np.testing.assert_allclose(vector, read.user_text_rows[known, :-1].mean(axis=0), rtol=1e-4)
