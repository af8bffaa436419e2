import jax
import numpy as np
import pytest

from ltrec_jax.data.dataset import Interactions
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train.batches import BatchSource, prefetch

USERS, ITEMS = 50, 40


def events(seed=0, pairs=700):
    rng = np.random.default_rng(seed)
    weight = 1.0 / (1 + np.arange(ITEMS))
    weight[-5:] = 0.0
    return Interactions(
        user=rng.integers(0, USERS, pairs).astype(np.int32),
        item=rng.choice(ITEMS, pairs, p=weight / weight.sum()).astype(np.int32),
        rating=np.arange(pairs, dtype=np.float32),  # names the pair
        timestamp=np.zeros(pairs, np.int64),
    )


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, ITEMS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenStore(rng.integers(5, 100, offsets[-1]).astype(np.int32), offsets)


def source(train=None, **changes):
    settings = {
        "num_users": USERS,
        "num_items": ITEMS,
        "gate_I": np.linspace(0, 1, ITEMS).astype(np.float32),
        "tokens": tokens(),
        "batch_pairs": 128,
        "batch_items": 16,
        "pairs_per_item": 12,
        "row_length": 16,
        "seed": 3,
    }
    train = events() if train is None else train
    return BatchSource(train, np.arange(len(train)), **(settings | changes))


def pairs_of(batch):
    """(user, item, rating) of the real pairs of a global batch, from what the model would read."""
    found = []
    for device in range(len(batch.item)):
        real = batch.weight[device] > 0
        items = batch.item[device][batch.pair_item[device][real]]
        found += list(
            zip(
                batch.pair_user[device][real].tolist(),
                items.tolist(),
                batch.target[device][real].tolist(),
                strict=True,
            )
        )
    return found


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("epoch", [0, 5])
def test_every_pair_comes_once_per_epoch(devices, epoch):
    train = events()
    batches = source(train, devices=devices)
    seen = [p for step in range(batches.steps_per_epoch) for p in pairs_of(batches.batch(epoch, step))]
    expected = zip(train.user.tolist(), train.item.tolist(), train.rating.tolist(), strict=True)
    assert sorted(seen) == sorted(expected)


def test_an_epoch_encodes_each_text_once_per_chunk():
    train, batches = events(), source()
    counts = np.bincount(train.item, minlength=ITEMS)
    expected = int(np.ceil(counts / 12).sum())
    slots = sum(int((batches.batch(0, s).item < ITEMS).sum()) for s in range(batches.steps_per_epoch))
    assert slots == batches.units_per_epoch == expected
    encoded = sum(int((b.token_slot < b.item.shape[1]).sum()) for b in all_batches(batches))
    assert encoded == batches.tokens_per_epoch == int((tokens().lengths * np.ceil(counts / 12)).sum())


def all_batches(batches, epoch=0):
    return [batches.batch(epoch, step) for step in range(batches.steps_per_epoch)]


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_batch_gets_short_and_long_texts(epoch):
    batches, longest = source(), int(tokens().lengths.max())
    encoded = [int((b.token_slot < b.item.shape[1]).sum()) for b in all_batches(batches, epoch)]
    # Dealt from a deck sorted by length, two batches differ by at most the spread of lengths and one card.
    assert max(encoded) - min(encoded) <= 2 * longest


def test_chunks_of_an_item_fall_into_different_batches():
    batches = source(pairs_per_item=40)
    assert batches.steps_per_epoch >= np.ceil(np.bincount(events().item).max() / 40)
    for batch in all_batches(batches):
        items = batch.item[batch.item < ITEMS]
        assert len(np.unique(items)) == len(items)


def test_a_batch_is_a_function_of_seed_epoch_and_step():
    one, other = source(), source()
    other.batch(4, 0)  # what was asked before does not matter
    for a, b in zip(one.batch(1, 2), other.batch(1, 2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.batch(1, 2).target, one.batch(2, 2).target)
    assert not np.array_equal(one.batch(1, 2).target, source(seed=4).batch(1, 2).target)


def test_devices_share_out_the_same_global_batch():
    for step in range(source().steps_per_epoch):
        assert sorted(pairs_of(source().batch(1, step))) == sorted(pairs_of(source(devices=4).batch(1, step)))


def test_tokens_of_a_slot_are_the_items_text_in_order():
    store = tokens()
    batch = source(devices=2).batch(0, 1)
    for device in range(2):
        for slot, item in enumerate(batch.item[device]):
            here = batch.token_slot[device] == slot
            if item == ITEMS:
                assert not here.any()
                continue
            order = np.argsort(batch.token_position[device][here])
            np.testing.assert_array_equal(batch.token_ids[device][here][order], store.row(item))
            assert len(np.unique(np.nonzero(here)[0])) == 1


def test_shapes_are_few_and_the_gate_follows_the_item():
    batches = source(devices=2)
    shapes = {tuple(a.shape for a in jax.tree.leaves(b)) for epoch in range(10) for b in all_batches(batches, epoch)}
    assert len(shapes) <= 3
    batch = batches.batch(0, 0)
    real = batch.item < ITEMS
    np.testing.assert_array_equal(batch.gate[real], np.linspace(0, 1, ITEMS).astype(np.float32)[batch.item[real]])


def test_without_texts_nothing_is_packed_and_pairs_decide_the_steps():
    batches = source(tokens=None, batch_items=1)
    assert batches.steps_per_epoch == -(-700 // 128)
    batch = batches.batch(0, 0)
    assert batch.token_ids is None
    assert batches.tokens_per_epoch == 0


def test_a_process_builds_its_own_devices_alone():
    whole = source(devices=4).batch(1, 2)
    for process in range(2):
        mine = source(devices=4, share=slice(2 * process, 2 * process + 2)).batch(1, 2)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(mine), strict=True):
            np.testing.assert_array_equal(a[2 * process : 2 * process + 2], b)


def test_only_the_given_rows_are_seen():
    train = events()
    rows = np.flatnonzero(train.user % 2 == 0)
    settings = {"num_users": USERS, "num_items": ITEMS, "gate_I": np.ones(ITEMS), "tokens": None}
    batches = BatchSource(train, rows, **settings, batch_pairs=64, batch_items=9, pairs_per_item=5, row_length=16)
    seen = [p for step in range(batches.steps_per_epoch) for p in pairs_of(batches.batch(0, step))]
    assert sorted(p[2] for p in seen) == rows.tolist()


def test_prefetch_gives_the_same_batches_from_any_step():
    batches = source()
    last = 2 * batches.steps_per_epoch
    whole = list(prefetch(batches, 0, last, lambda b: b))
    tail = list(prefetch(batches, 5, last, lambda b: b))
    assert [n for n, _ in tail] == list(range(5, last))
    for (_, a), (_, b) in zip(whole[5:], tail, strict=True):
        np.testing.assert_array_equal(a.target, b.target)


def test_an_error_in_the_background_reaches_the_caller():
    def fail(batch):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        list(prefetch(source(), 0, 3, fail))


def test_a_text_longer_than_a_row_and_an_empty_training_set_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        source(row_length=4)
    with pytest.raises(ValueError, match="empty"):
        source(Interactions(*(np.zeros(0, t) for t in (np.int32, np.int32, np.float32, np.int64))))


def test_one_rating_is_enough_for_an_epoch():
    one = Interactions(*(np.ones(1, t) for t in (np.int32, np.int32, np.float32, np.int64)))
    batches = source(one, devices=8)
    assert batches.steps_per_epoch == 1
    assert pairs_of(batches.batch(0, 0)) == [(1, 1, 1.0)]
