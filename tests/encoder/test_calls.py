"""Calls side by side: in order, one compiling thread, never more at once than asked; packed calls hold every text."""

import itertools
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.encoder import calls
from ltrec_jax.text.store import TokenStore


class Watched:
    """Jobs that note in which thread they were started, and how many ran beside each other."""

    def __init__(self):
        self.threads, self.running, self.most = {}, 0, 0
        self._lock = threading.Lock()

    def job(self, number, shape, gate=None):
        def start():
            with self._lock:
                self.threads[number] = threading.get_ident()
                self.running += 1
                self.most = max(self.most, self.running)
            if gate is not None:
                gate.wait(timeout=10)
            with self._lock:
                self.running -= 1
            return jnp.full(2, number)

        return number, shape, start


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_results_come_in_order_and_new_shapes_are_started_here(at_once):
    watched, compiled = Watched(), {"known"}
    shapes = ["new", "known", "new", "other", "other", "known"]
    jobs = (watched.job(number, shape) for number, shape in enumerate(shapes))
    found = list(calls.side_by_side(jobs, at_once, compiled))
    assert [number for number, _ in found] == list(range(len(shapes)))
    for number, result in found:
        np.testing.assert_array_equal(result, [number, number])
    here = {number for number, thread in watched.threads.items() if thread == threading.get_ident()}
    assert here == (set(range(len(shapes))) if at_once == 1 else {0, 3})
    assert compiled == {"known", "new", "other"}


def test_as_many_run_at_once_as_asked():
    watched, together = Watched(), threading.Barrier(3)
    jobs = [watched.job(number, "known", together) for number in range(9)]
    assert len(list(calls.side_by_side(jobs, 3, {"known"}))) == 9
    assert watched.most == 3


def test_what_a_job_raises_is_raised_here():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(calls.side_by_side([(0, "known", broken)], 2, {"known"}))


def test_packed_calls_hold_every_text_that_has_tokens():
    lengths = [3, 0, 48, 7, 60, 1, 64, 20]
    tokens = TokenStore(np.arange(sum(lengths), dtype=np.int32) + 5, np.cumsum([0, *lengths]))
    found, shapes = {}, set()
    for call in calls.packed_calls(tokens, (48, 64), "float32", 0, 100):
        shapes.add(call.shape)
        for place, text in enumerate(call.texts.tolist()):
            inside = call.slot == place
            found[text] = call.ids[inside][np.argsort(call.position[inside])].tolist()
        padding = call.slot >= len(call.texts)
        assert (call.slot[padding] == call.slots).all()
        assert not call.ids[padding].any()
        assert (call.emptied().slot == call.slots).all()
        assert call.emptied().shape == call.shape
    assert found == {text: tokens.row(text).tolist() for text in range(len(tokens)) if lengths[text]}
    assert shapes == {(2, 48, 32), (1, 64, 32)}


def test_row_lengths_hold_every_text_and_pay_for_themselves():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 400, 5_000)
    rows = calls.row_lengths(lengths)
    assert list(rows) == sorted(set(rows))
    assert rows[-1] >= lengths.max()
    # Few texts: one program for all.
    assert len(calls.row_lengths(lengths[:5])) == 1
    # Many of them: each stands in a row that is little longer than itself.
    many = np.tile(lengths, 20)
    of_text = np.asarray(calls.row_lengths(many))
    assert (of_text[np.searchsorted(of_text, many)] - np.maximum(many, 48)).max() < 16
    assert calls.row_lengths(np.zeros(3, int)) == ()


@pytest.mark.parametrize("texts", [60, 600, 6_000])
def test_no_other_row_lengths_cost_less(texts):
    """Against all choices there are; a row length counts for 3,000 tokens."""
    lengths = np.random.default_rng(texts).integers(20, 180, texts)

    def cost(rows):
        rows = np.asarray(rows)
        return rows[np.searchsorted(rows, lengths)].sum() + 3_000 * len(rows)

    longest = -(-lengths.max() // 16) * 16
    shorter = range(48, longest, 16)
    every = (chosen for n in range(len(shorter) + 1) for chosen in itertools.combinations(shorter, n))
    assert cost(calls.row_lengths(lengths)) == min(cost((*chosen, longest)) for chosen in every)
