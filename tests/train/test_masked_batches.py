"""Masked batches: every text once, the same for any number of devices, and nothing but (seed, epoch, step) in them."""

import numpy as np
import pytest

from ltrec_jax.text.masking import Maskable
from ltrec_jax.text.store import TokenStore
from ltrec_jax.train.masked_batches import MaskedSource

SPECIAL = np.arange(50) < 5


def store(count=70, seed=0):
    rng = np.random.default_rng(seed)
    rows = [np.r_[2, rng.integers(5, 50, rng.integers(1, 20)), 3] for _ in range(count)]
    offsets = np.concatenate([[0], np.cumsum(list(map(len, rows)))])
    return TokenStore(np.concatenate(rows).astype(np.int32), offsets)


def source(tokens=None, **how):
    vocabulary = Maskable(4, SPECIAL, np.zeros(50, bool))
    chosen = {"batch_tokens": 200, "row_length": 32, "pad_id": 0, "seed": 3} | how
    return MaskedSource(tokens or store(), vocabulary, **chosen)


def answers(batch):
    """(what is read, what was there) of every hidden token of a global batch, sorted."""
    found = []
    for ids, place, target, weight in zip(batch.token_ids, batch.masked_place, batch.target, batch.weight, strict=True):
        found += list(zip(ids.reshape(-1)[place], target, strict=True))[: int(weight.sum())]
    return sorted((int(read), int(was)) for read, was in found)


def test_an_epoch_has_every_text_once_in_another_order():
    made = source()
    orders = [[made.texts(epoch, step).tolist() for step in range(made.steps_per_epoch)] for epoch in (0, 1)]
    for order in orders:
        assert sorted(text for texts in order for text in texts) == list(range(70))
    assert orders[0] != orders[1]


def test_putting_the_answers_back_gives_the_texts():
    tokens = store()
    made = source(tokens, devices=2)
    for step in range(made.steps_per_epoch):
        batch, found = made.batch(0, step), []
        for ids, segments, positions, place, target, weight in zip(*batch, strict=True):
            flat = ids.reshape(-1).copy()
            real = weight > 0
            flat[place[real]] = target[real]
            rows = flat.reshape(ids.shape)
            for row, segment, position in zip(rows, segments, positions, strict=True):
                for one in np.unique(segment[segment > 0]):
                    found.append(tuple(row[segment == one].tolist()))
                    assert position[segment == one].tolist() == list(range((segment == one).sum()))
        assert sorted(found) == sorted(tuple(tokens.row(text).tolist()) for text in made.texts(0, step))


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_change_what_is_hidden(devices):
    one, many = source(), source(devices=devices)
    for step in range(one.steps_per_epoch):
        assert answers(one.batch(1, step)) == answers(many.batch(1, step))


def test_a_share_is_those_slices_of_the_whole():
    whole = source(devices=4)
    halves = [source(devices=4, share=share) for share in (slice(0, 2), slice(2, 4))]
    for step in range(whole.steps_per_epoch):
        parts = zip(*(half.batch(0, step) for half in halves), strict=True)
        for expected, part in zip(whole.batch(0, step), parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(part), expected)


def test_a_batch_is_a_function_of_seed_epoch_and_step():
    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    first = source().batch(2, 1)
    assert same(first, source().batch(2, 1))
    assert not same(first, source().batch(3, 1))
    assert not same(first, source(seed=4).batch(2, 1))


def test_shapes_come_from_a_small_set_and_more_devices_than_texts_do_no_harm():
    made = source(store(400), batch_tokens=400)
    shapes = {
        tuple(a.shape for a in made.batch(epoch, step)) for epoch in (0, 1) for step in range(made.steps_per_epoch)
    }
    assert len(shapes) <= 2
    few = source(store(3), devices=8).batch(0, 0)
    assert few.token_ids.shape[0] == 8
    with pytest.raises(ValueError, match="outside an epoch"):
        made.batch(0, made.steps_per_epoch)


@pytest.mark.parametrize("devices", [1, 3])
def test_a_measured_epoch_asks_for_a_word_of_every_text(devices):
    """Of texts of one word most are not masked by the share alone; the shapes hold what is masked beyond it."""
    one_word = TokenStore(np.tile(np.array([2, 0, 3], np.int32), 40), np.arange(41) * 3)
    one_word.values[1::3] = 5 + np.arange(40)
    drawn, measured = (source(one_word, devices=devices, mask_share=0.01, every_text=every) for every in (False, True))
    asked = [was for epoch in range(2) for _, was in answers(measured.batch(epoch, 0))]
    assert sorted(asked) == sorted([*range(5, 45)] * 2)
    assert len(answers(drawn.batch(0, 0))) < 10
